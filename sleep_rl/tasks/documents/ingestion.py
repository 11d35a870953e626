"""The record of ingested documents of a run: one day per run that found new, changed or deleted
documents.

It is <run>/documents.json: the text of every piece and question by day, so that a run can be
resumed, sampled from and evaluated even if the source files have changed or are gone.
"""

from __future__ import annotations

import difflib
import json
import os
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

from sleep_rl.contracts.errors import InputError, RunError
from sleep_rl.contracts.records import DELETED, UNANSWERABLE
from sleep_rl.files import content, nfc, write_atomically
from sleep_rl.tasks.documents.sources import (
    DocumentQuestion,
    ScanResult,
    Source,
    lookup,
    words,
)
from sleep_rl.tasks.documents.splitting import pieces

FILE = "documents.json"
MOST_NAMES = 5  # that a line shows


@dataclass(frozen=True)
class IngestedDocument:
    """A document as it was ingested on one day, split into pieces."""

    name: str
    digest: str  # of the whole text, before splitting
    pieces: tuple[str, ...]


@dataclass(frozen=True)
class IngestedDay:
    """The documents ingested on one day, and the questions about them.

    `left_out`: what was found that day and not used, with the reason; `deleted`: names of documents
    of earlier days that were not found; `forgotten`: names of those that the user had forgotten,
    with the digest of the text that is not ingested again.
    """

    documents: tuple[IngestedDocument, ...]
    questions: tuple[DocumentQuestion, ...] = ()
    left_out: dict[str, str] = field(default_factory=dict)
    deleted: tuple[str, ...] = ()
    forgotten: dict[str, str] = field(default_factory=dict)


def read(folder: str | Path) -> tuple[IngestedDay, ...]:
    """Return the recorded days of the run in `folder`; empty if there is no record.

    Raises InputError if the record is damaged.
    """
    file = Path(folder) / FILE
    if not os.path.lexists(file):
        return ()
    try:
        return tuple(_day(row) for row in json.loads(content(file)))
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise InputError(
            f"{file}: expected the record of ingested documents, got {type(error).__name__}: "
            f"{error}"
        ) from None


def _day(row: dict) -> IngestedDay:
    documents = tuple(
        IngestedDocument(d["name"], d["digest"], tuple(d["pieces"])) for d in row["documents"]
    )
    questions = tuple(_question(q) for q in row["questions"])
    texts = [dict(row.get(name, {})) for name in ("left_out", "forgotten")]
    return IngestedDay(documents, questions, texts[0], tuple(row.get("deleted", ())), texts[1])


def _question(row: dict) -> DocumentQuestion:
    """Return a recorded question; records of earlier versions have no `choices`."""
    choices = tuple(row.get("choices", ()))
    if not all(isinstance(choice, str) for choice in choices):
        raise TypeError("a choice that is no text")
    return DocumentQuestion(**{**row, "choices": choices})


def write(folder: str | Path, days: Sequence[IngestedDay]) -> None:
    """Replace the record of the run in `folder` atomically.

    Raises RunError if it cannot be written; the earlier record is then intact.
    """
    file = Path(folder) / FILE
    record = json.dumps([asdict(day) for day in days], ensure_ascii=False, indent=1)
    try:
        write_atomically(file, record.encode())
    except OSError as error:
        raise RunError(f"{file}: cannot be written ({error.strerror or error})") from error


def next_day(
    days: Sequence[IngestedDay],
    sources: Sequence[Source],
    questions: Sequence[DocumentQuestion],
    max_tokens: int,
    count_tokens: Callable[[str], int],
    where: str = "task.documents.questions",
    left_out: Mapping[str, str] | None = None,
    deleted: Sequence[str] = (),
    forgotten: Mapping[str, str] | None = None,
) -> tuple[IngestedDay, ...]:
    """Append a day with the sources that differ from the documents so far, and assign all questions
    to days.

    Returns `days` unchanged if nothing is new, deleted or forgotten. Sources are split into pieces
    of at most `max_tokens` tokens. A question that names a document belongs to the latest day with
    a document of that name, and changes with it (see `_follow`); any other one to the day on which
    it was first asked. `where` names the config key in errors; `left_out`, `deleted` and
    `forgotten` are recorded with the day. Raises InputError for a question about an unknown
    document.
    """
    known_digests = {document.digest for _, document in current(days).values()}
    known_digests.update(digest for day in days for digest in day.forgotten.values())
    new = [source for source in sources if source.digest not in known_digests]
    if not new and not deleted and not forgotten:
        return tuple(days)
    documents = tuple(
        IngestedDocument(s.name, s.digest, tuple(pieces(s.text, max_tokens, count_tokens)))
        for s in new
    )
    newest = IngestedDay(documents, (), dict(left_out or {}), tuple(deleted), dict(forgotten or {}))
    all_days = [*days, newest]
    names = [(d.name, n) for n, day in enumerate(all_days) for d in day.documents]
    day_of_document = lookup(names)
    first_asked = {
        (words(q.question), words(q.answer)): n
        for n, day in enumerate(days)
        for q in day.questions
        if not q.document
    }
    questions_by_day: list[list[DocumentQuestion]] = [[] for _ in all_days]
    follow = _follow(all_days)
    for asked in questions:
        q = follow(asked)
        if q.document:
            day_index = day_of_document(q.document)
        else:
            day_index = first_asked.get((words(q.question), words(q.answer)), len(days))
        if day_index is None:
            raise InputError(
                f"{where}: `document` names an ingested document "
                f"({', '.join(sorted(dict(names)))[:120]}), got {q.document!r}"
            )
        questions_by_day[day_index].append(q)
    return tuple(
        replace(day, questions=tuple(asked))
        for day, asked in zip(all_days, questions_by_day, strict=True)
    )


def current(days: Sequence[IngestedDay]) -> dict[str, tuple[int, IngestedDocument]]:
    """Return name -> (number of its day, document): the newest version of every document that was
    neither deleted nor forgotten.
    """
    found: dict[str, tuple[int, IngestedDocument]] = {}
    for number, day in enumerate(days, start=1):
        before = lookup((name, name) for name in found)
        names = (*day.deleted, *day.forgotten, *(document.name for document in day.documents))
        for name in filter(None, map(before, names)):
            found.pop(name, None)
        found |= {document.name: (number, document) for document in day.documents}
    return found


def missing(days: Sequence[IngestedDay], scanned: ScanResult) -> tuple[str, ...]:
    """Return the names of the documents so far that are gone from where they were found.

    A document whose text is found under another name was renamed. Where not one of the documents so
    far is found, by name or text, another folder was read, and none is gone.
    """
    by_name = lookup((source.name, True) for source in scanned.sources)
    digests = {source.digest for source in scanned.sources}
    covered = {
        name: document for name, (_, document) in current(days).items() if scanned.covers(name)
    }
    gone = tuple(
        name
        for name, document in covered.items()
        if not by_name(name) and document.digest not in digests
    )
    return gone if len(gone) < len(covered) else ()


def forget(days: Sequence[IngestedDay], document: str) -> tuple[IngestedDay, ...]:
    """Append a day without documents on which a document is forgotten; return `days` unchanged if
    that was done before.

    Raises InputError for a document that no day has, with the nearest name.
    """
    found = current(days)
    name = lookup((name, name) for name in found)(document)
    if name is None:
        gone = ((name, True) for day in days for name in (*day.forgotten, *day.deleted))
        if lookup(gone)(document):
            return tuple(days)
        near = difflib.get_close_matches(nfc(document), found, n=1, cutoff=0.4)
        hint = f"; did you mean {near[0]}?" if near else f" ({', '.join(sorted(found))[:120]})"
        raise InputError(f"forget: a document of the run, got {document!r}{hint}")
    questions = [question for day in days for question in day.questions]
    forgotten = {name: found[name][1].digest}
    return next_day(days, (), questions, 1, len, forgotten=forgotten)


def _follow(
    days: Sequence[IngestedDay],
) -> Callable[[DocumentQuestion], DocumentQuestion]:
    """Return a function that changes a question as its document did.

    Of a document that was deleted, the question becomes one of kind deleted, with its answer as the
    old one. Where the newest day corrected the document, the answer before is the old one; it stays
    so on later days. An old answer that the user gives is kept.
    """
    names = lookup((d.name, n) for n, day in enumerate(days) for d in day.documents)
    exists = lookup((name, True) for name in current(days))
    before = {words(q.question): q for day in days for q in day.questions}

    def follow(q: DocumentQuestion) -> DocumentQuestion:
        if not q.document or names(q.document) is None or q.kind in UNANSWERABLE:
            return q
        if not exists(q.document):
            return DocumentQuestion(q.question, "", "", DELETED, (), q.old_answer or q.answer)
        earlier = before.get(words(q.question))
        if q.old_answer or earlier is None or not earlier.answer:
            return q
        if words(earlier.answer) == words(q.answer):
            return replace(q, old_answer=earlier.old_answer)
        corrected = names(q.document) == len(days) - 1
        return replace(q, old_answer=earlier.answer) if corrected else q

    return follow


def summary_line(days: Sequence[IngestedDay]) -> str:
    """Return the newest day in one line, such as
    "day 2: 3 new and 1 changed documents in 6 pieces, 4 questions".
    """
    *earlier_days, day = days
    is_known = lookup((name, True) for name in current(earlier_days))
    changed = sum(bool(is_known(d.name)) for d in day.documents)
    count = sum(len(d.pieces) for d in day.documents)
    gone = [
        f", {what}: {_first_names(names)}"
        for what, names in (("deleted", day.deleted), ("forgotten", day.forgotten))
        if names
    ]
    return (
        f"day {len(days)}: {len(day.documents) - changed} new and {changed} changed "
        f"documents in {count} pieces, {len(day.questions)} questions{''.join(gone)}"
    )


def _first_names(names: Collection[str]) -> str:
    """Return the first MOST_NAMES names in one text, with dots if there are more."""
    shown = list(names)[:MOST_NAMES]
    return ", ".join([*shown, "..."] if len(names) > MOST_NAMES else shown)

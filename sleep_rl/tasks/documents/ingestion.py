"""The record of ingested documents of a run: one day per run that found new or changed documents.

It is <run>/documents.json: the text of every piece and question by day, so that a run can be
resumed, sampled from and evaluated even if the source files have changed or are gone.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

from sleep_rl.contracts.errors import InputError, RunError
from sleep_rl.files import content, write_atomically
from sleep_rl.tasks.documents.sources import DocumentQuestion, Source, lookup, words
from sleep_rl.tasks.documents.splitting import pieces

FILE = "documents.json"


@dataclass(frozen=True)
class IngestedDocument:
    """A document as it was ingested on one day, split into pieces."""

    name: str
    digest: str  # of the whole text, before splitting
    pieces: tuple[str, ...]


@dataclass(frozen=True)
class IngestedDay:
    """The documents ingested on one day, and the questions about them.

    `left_out`: what was found that day and not used, with the reason.
    """

    documents: tuple[IngestedDocument, ...]
    questions: tuple[DocumentQuestion, ...] = ()
    left_out: dict[str, str] = field(default_factory=dict)


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
    return IngestedDay(documents, questions, dict(row.get("left_out", {})))


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
) -> tuple[IngestedDay, ...]:
    """Append a day with the sources that no earlier day contains, and assign all questions to days.

    Returns `days` unchanged if there is no new source. Sources are split into pieces of at most
    `max_tokens` tokens. A question that names a document belongs to the latest day with a document
    of that name; any other one to the day on which it was first asked. `where` names the config key
    in errors; `left_out` is recorded with the day. Raises InputError for a question about an
    unknown document.
    """
    known_digests = {d.digest for day in days for d in day.documents}
    new = [source for source in sources if source.digest not in known_digests]
    if not new:
        return tuple(days)
    documents = tuple(
        IngestedDocument(s.name, s.digest, tuple(pieces(s.text, max_tokens, count_tokens)))
        for s in new
    )
    all_days = [*days, IngestedDay(documents, left_out=dict(left_out or {}))]
    names = [(d.name, n) for n, day in enumerate(all_days) for d in day.documents]
    day_of_document = lookup(names)
    first_asked = {
        (words(q.question), words(q.answer)): n
        for n, day in enumerate(days)
        for q in day.questions
        if not q.document
    }
    questions_by_day: list[list[DocumentQuestion]] = [[] for _ in all_days]
    for q in questions:
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


def summary_line(days: Sequence[IngestedDay]) -> str:
    """Return the newest day in one line, such as
    "day 2: 3 new and 1 changed documents in 6 pieces, 4 questions".
    """
    *earlier_days, day = days
    is_known = lookup((d.name, True) for earlier in earlier_days for d in earlier.documents)
    changed = sum(bool(is_known(d.name)) for d in day.documents)
    count = sum(len(d.pieces) for d in day.documents)
    return (
        f"day {len(days)}: {len(day.documents) - changed} new and {changed} changed "
        f"documents in {count} pieces, {len(day.questions)} questions"
    )

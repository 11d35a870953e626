"""What a life on a person's own documents has taken in: one day per run that found new or changed
ones.

The record is <run>/documents.json: the text of every piece and question by day, so that a life can
be continued, asked and judged whatever has become of the files.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from sleep_rl.contracts.errors import InputError, RunError
from sleep_rl.files import content, write_atomically
from sleep_rl.tasks.documents.sources import Asked, Source, pieces

FILE = "documents.json"


@dataclass(frozen=True)
class Taken:
    """A document as one day took it in."""

    name: str
    digest: str
    pieces: tuple[str, ...]


@dataclass(frozen=True)
class Intake:
    """What one day brought, and what is asked about it."""

    documents: tuple[Taken, ...]
    questions: tuple[Asked, ...] = ()


def read(folder: str | Path) -> tuple[Intake, ...]:
    """The record in a run's folder, a day each; empty where there is none. Raises InputError when
    it is damaged.
    """
    file = Path(folder) / FILE
    if not os.path.lexists(file):
        return ()
    try:
        return tuple(
            Intake(
                tuple(Taken(d["name"], d["digest"], tuple(d["pieces"])) for d in day["documents"]),
                tuple(Asked(**q) for q in day["questions"]),
            )
            for day in json.loads(content(file))
        )
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise InputError(
            f"{file}: expected the record of what was taken in, got {type(error).__name__}: {error}"
        ) from None


def write(folder: str | Path, days: Sequence[Intake]) -> None:
    """Replaces the record at once. Raises RunError when the disk refuses; the record before it
    stays.
    """
    file = Path(folder) / FILE
    record = json.dumps([asdict(day) for day in days], ensure_ascii=False, indent=1)
    try:
        write_atomically(file, record.encode())
    except OSError as error:
        raise RunError(f"{file}: cannot be written ({error.strerror or error})") from error


def next_day(
    days: Sequence[Intake],
    sources: Sequence[Source],
    asked: Sequence[Asked],
    most: int,
    count: Callable[[str], int],
    where: str = "task.documents.questions",
) -> tuple[Intake, ...]:
    """`days` and one more with the sources that none of them holds, in pieces of at most `most`
    tokens; `days` alone where there is none. A question belongs to the day that last brought its
    document; one that names none, to the day from which on it is asked. Raises InputError for a
    question about a document that is not there.
    """
    held = {d.digest for day in days for d in day.documents}
    fresh = [s for s in sources if s.digest not in held]
    if not fresh:
        return tuple(days)
    new = Intake(tuple(Taken(s.name, s.digest, tuple(pieces(s.text, most, count))) for s in fresh))
    grown = [*days, new]
    # the latest day wins
    newest = {d.name: n for n, day in enumerate(grown) for d in day.documents}
    before = {
        (q.question, q.answer): n
        for n, day in enumerate(days)
        for q in day.questions
        if not q.document
    }
    mine: list[list[Asked]] = [[] for _ in grown]
    for q in asked:
        if q.document and q.document not in newest:
            raise InputError(
                f"{where}: `document` names one that was taken in "
                f"({', '.join(sorted(newest))[:120]}), got "
                f"{q.document!r}"
            )
        mine[
            newest[q.document] if q.document else before.get((q.question, q.answer), len(days))
        ].append(q)
    return tuple(
        Intake(day.documents, tuple(questions)) for day, questions in zip(grown, mine, strict=True)
    )


def summary_line(days: Sequence[Intake]) -> str:
    """Return the newest day in one line, such as
    "day 2: 3 new and 1 changed documents in 6 pieces, 4 questions".
    """
    *before, day = days
    names = {d.name for earlier in before for d in earlier.documents}
    changed = sum(d.name in names for d in day.documents)
    count = sum(len(d.pieces) for d in day.documents)
    return (
        f"day {len(days)}: {len(day.documents) - changed} new and {changed} changed "
        f"documents in {count} pieces, "
        f"{len(day.questions)} questions"
    )

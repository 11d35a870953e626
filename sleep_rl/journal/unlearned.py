"""Lines of console and report on what nights unlearned, and how well: changed and deleted
documents.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from sleep_rl.journal.schema import Entry, OldAnswers, Written
from sleep_rl.journal.text import decimal

MOST_NAMES = 5  # of documents that a line shows
BEFORE = "before"


@dataclass
class UnlearnedNight:
    """Documents that one night unlearned.

    `documents`: changed or deleted -> name -> [prompts of past nights about the document, those
    that were answered anew].
    """

    documents: dict[str, dict[str, list[int]]] = field(default_factory=dict)
    before: dict[str, float | None] = field(default_factory=dict)  # corrected or deleted -> share
    after: dict[str, float | None] = field(default_factory=dict)
    questions: dict[str, float] = field(default_factory=dict)

    def take(self, entry: Written | OldAnswers) -> None:
        """Add an entry of this night."""
        if isinstance(entry, Written):
            parts = {"changed": entry.changed, "deleted": entry.deleted}
            found = {what: documents for what, documents in parts.items() if documents}
            self.documents = found or self.documents
        elif entry.when == BEFORE:
            self.before = entry.shares
            self.questions = entry.n or {}
        else:
            self.after = entry.shares
            self.questions = entry.n or {}


@dataclass
class Unlearned:
    """Documents that all nights unlearned, by number of the night."""

    nights: dict[int, UnlearnedNight] = field(default_factory=dict)

    def take(self, entry: Entry) -> None:
        """Add an entry of any kind; most change nothing."""
        if isinstance(entry, Written | OldAnswers) and entry.night is not None:
            self.nights.setdefault(entry.night, UnlearnedNight()).take(entry)

    def lines(self) -> list[str]:
        """Return one or two lines per night, in order: the documents, and the old answers."""
        return [line for number in sorted(self.nights) for line in self._lines(number)]

    def _lines(self, number: int) -> Iterator[str]:
        night = self.nights[number]
        shown = "; ".join(_documents(what, names) for what, names in night.documents.items())
        if shown:
            yield f"night {number} unlearned {shown}"
        shares = ", ".join(
            f"{which} {decimal(night.before.get(which))} -> {decimal(night.after.get(which))} "
            f"({night.questions.get(which, 0):.0f} questions)"
            for which in dict.fromkeys((*night.before, *night.after))
        )
        if shares:
            yield f"night {number}, old answers still given, before -> after: {shares}"


def _documents(what: str, documents: dict[str, list[int]]) -> str:
    names = list(documents)
    shown = names[:MOST_NAMES] + (["..."] if len(names) > MOST_NAMES else [])
    asked, answered = (sum(counts[i] for counts in documents.values()) for i in (0, 1))
    return f"{len(names)} {what} ({', '.join(shown)}): {answered} of {asked} prompts answered anew"

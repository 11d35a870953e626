"""Lines of console and report on what nights unlearned, and how well: changed and deleted
documents.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from sleep_rl.journal.schema import Entry, OldAnswers, Written

MOST_NAMES = 5  # of documents that a line shows
BEFORE = "before"
NOT_MEASURED = "-"


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


@dataclass
class Unlearned:
    """Documents that all nights unlearned, by number of the night."""

    nights: dict[int, UnlearnedNight] = field(default_factory=dict)

    def take(self, entry: Entry) -> None:
        """Add an entry of any kind; most change nothing."""
        if isinstance(entry, Written) and entry.night is not None:
            parts = {"changed": entry.changed, "deleted": entry.deleted}
            found = {what: documents for what, documents in parts.items() if documents}
            if found:
                self._night(entry.night).documents = found
        if isinstance(entry, OldAnswers) and entry.night is not None:
            night = self._night(entry.night)
            if entry.when == BEFORE:
                night.before = entry.shares
            else:
                night.after = entry.shares
            night.questions = entry.n or {}

    def lines(self) -> list[str]:
        """Return one or two lines per night, in order: the documents, and the old answers."""
        return [line for number in sorted(self.nights) for line in self._lines(number)]

    def _night(self, number: int) -> UnlearnedNight:
        return self.nights.setdefault(number, UnlearnedNight())

    def _lines(self, number: int) -> Iterator[str]:
        night = self.nights[number]
        shown = "; ".join(_documents(what, names) for what, names in night.documents.items())
        if shown:
            yield f"night {number} unlearned {shown}"
        shares = ", ".join(
            f"{which} {_share(night.before.get(which))} -> {_share(night.after.get(which))} "
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


def _share(value: float | None) -> str:
    return NOT_MEASURED if value is None else f"{value:.2f}"

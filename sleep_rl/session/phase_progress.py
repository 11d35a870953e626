"""The progress of a phase as text, for progress bars and plain lines."""

from __future__ import annotations

import time
from dataclasses import dataclass, field

from rich.progress import ProgressColumn, Task
from rich.text import Text

from sleep_rl.journal.text import clock


@dataclass
class PhaseProgress:
    """The progress of one phase."""

    name: str
    total: int | None
    done: int = 0
    note: str = ""
    began: float = field(default_factory=time.monotonic)
    reported: float = field(default_factory=time.monotonic)  # time of the last progress line

    def advance(self, n: int, note: str) -> None:
        """Add n finished units, and replace the note by one that is not empty."""
        self.done += n
        self.note = note or self.note

    def due(self, every: float) -> bool:
        """Return whether the last progress line is `every` seconds old; if so, the next one is
        printed.
        """
        if time.monotonic() - self.reported < every:
            return False
        self.reported = time.monotonic()
        return True

    def seconds(self) -> float:
        """Return the duration so far."""
        return time.monotonic() - self.began

    def count(self) -> str:
        """Return the finished units, with the total if it is known: "40/200"."""
        return f"{self.done:,}" if self.total is None else f"{self.done:,}/{self.total:,}"

    def rate(self) -> list[str]:
        """Return ["2.4/s"] or ["3.1 s each"]; empty before the first tick."""
        if not self.done:
            return []
        rate = self.done / max(self.seconds(), 1e-9)
        return [f"{rate:,.1f}/s" if rate >= 1 else f"{1 / rate:.1f} s each"]

    def numbers(self) -> str:
        """Return "40/200, 2.4/s, 1:07 min left, loss 0.31", as far as it is known."""
        parts = [] if self.total is None and not self.done else [self.count(), *self.rate()]
        if self.done and self.total is not None:
            parts.append(
                f"{clock(max(self.total - self.done, 0) * self.seconds() / self.done)} left"
            )
        else:
            parts.append(clock(self.seconds()))
        return ", ".join([*parts, self.note] if self.note else parts)


class NumbersColumn(ProgressColumn):
    """The column of a progress bar with the same text as the plain lines."""

    def render(self, task: Task) -> Text:
        """Return the cell of one bar; called by rich."""
        return Text(task.fields["state"].numbers(), style="dim")

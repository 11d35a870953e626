"""Watchdog for remote calls: reports pending calls at an interval, and dumps all stacks of this
process when a call misses its deadline.
"""

from __future__ import annotations

import faulthandler
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from sleep_rl.journal.text import clock

STACKS = "stacks.log"
MAX_NAMED = 4  # pending calls that a line names


@dataclass
class Watchdog:
    """Reports long waits to the user.

    `say`: prints a line; `phase`: returns the name of the run's current phase; `folder`: for the
    driver's stacks (a worker's are in its own log); `every_s`: seconds between two lines of a wait.
    """

    say: Callable[[str], None] = lambda line: None
    phase: Callable[[], str] = lambda: ""
    folder: str | None = None
    every_s: float = 60.0

    def report(
        self, pending_calls: Sequence[str], calls: int, waited_s: float, timeout_s: float
    ) -> None:
        """Print which of `calls` calls are pending, for how long, and their timeout."""
        named = ", ".join(pending_calls[:MAX_NAMED])
        if len(pending_calls) > MAX_NAMED:
            named += f" and {len(pending_calls) - MAX_NAMED} more"
        phase = f"{self.phase()}: " if self.phase() else ""
        self.say(
            f"{phase}waited {clock(waited_s)} for {len(pending_calls)} of {calls} calls "
            f"({named}); timeout {clock(timeout_s)}"
        )

    def dump_stacks(self, what: str) -> None:
        """Append the stacks of all threads of this process, headed by `what`, to a file in
        `folder`. When it cannot be written, a warning is printed and the run continues.
        """
        if self.folder is None:
            return
        path = Path(self.folder) / STACKS
        try:
            os.makedirs(self.folder, exist_ok=True)
            with open(path, "a") as file:
                file.write(f"{time.strftime('%F %T')} {what}\n")
                file.flush()
                faulthandler.dump_traceback(file, all_threads=True)
        except OSError as error:
            self.say(f"warning: {path} cannot be written: {error.strerror or error}")

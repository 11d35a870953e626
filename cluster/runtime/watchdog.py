"""Watchdog for remote calls: reports pending calls after a while, and dumps all stacks of this
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
NAMED = 4  # pending calls that a line names


@dataclass
class Watch:
    """Tells people about long waits.

    `say` prints a line; `phase` names what the run is doing; `folder` is where the driver's stacks
    go (a worker's go into its own log); `every_s`: seconds between two lines of one wait.
    """

    say: Callable[[str], None] = lambda line: None
    phase: Callable[[], str] = lambda: ""
    folder: str | None = None
    every_s: float = 60.0

    def waiting(
        self, pending_calls: Sequence[str], calls: int, waited_s: float, limit_s: float
    ) -> None:
        """Print which of so many calls are pending, for how long, and when they are given up."""
        named = ", ".join(pending_calls[:NAMED])
        if len(pending_calls) > NAMED:
            named += f" and {len(pending_calls) - NAMED} more"
        phase = f"{self.phase()}: " if self.phase() else ""
        self.say(
            f"{phase}waiting since {clock(waited_s)} for {len(pending_calls)} of {calls} calls "
            f"({named}); given up after {clock(limit_s)}"
        )

    def given_up(self, what: str) -> None:
        """Append the stacks of all threads of this process to a file in `folder`. A disk that
        refuses loses the stacks only.
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

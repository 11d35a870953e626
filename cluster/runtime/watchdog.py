"""Who waits for whom: after a minute a wait says what it waits for, and past its deadline it leaves
every stack behind.
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


@dataclass
class Watch:
    """What a person hears of long waits. `say` prints a line, `phase` names what the run is doing;
    `folder` is where the driver's stacks go (the workers' go into their own logs).
    """

    say: Callable[[str], None] = lambda line: None
    phase: Callable[[], str] = lambda: ""
    folder: str | None = None
    every_s: float = 60.0

    def waiting(
        self, open_calls: Sequence[str], calls: int, waited_s: float, limit_s: float
    ) -> None:
        """One line: the phase, how many of the calls are open and which, how long already and how
        long at most.
        """
        named = ", ".join(open_calls[:4]) + (
            f" and {len(open_calls) - 4} more" if len(open_calls) > 4 else ""
        )
        where = f"{self.phase()}: " if self.phase() else ""
        self.say(
            f"{where}waiting since {clock(waited_s)} for {len(open_calls)} of {calls} calls "
            f"({named}); given up "
            f"after {clock(limit_s)}"
        )

    def given_up(self, what: str) -> None:
        """Leaves the stacks of all threads of this process in `folder`. A disk that refuses loses
        the stacks only.
        """
        if self.folder is None:
            return
        try:
            os.makedirs(self.folder, exist_ok=True)
            with open(Path(self.folder) / STACKS, "a") as file:
                file.write(f"{time.strftime('%F %T')} {what}\n")
                file.flush()
                faulthandler.dump_traceback(file, all_threads=True)
        except OSError as error:
            self.say(
                f"warning: {self.folder}/{STACKS} cannot be written: {error.strerror or error}"
            )

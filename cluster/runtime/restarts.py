"""How often a run may start workers anew: one count for all of them, with a record of each."""

from __future__ import annotations

from sleep_rl.contracts.errors import RunError
from sleep_rl.journal.journal import Journal


class Restarts:
    """Counts what is started anew over a run (`cluster.restarts`)."""

    def __init__(self, most: int, journal: Journal) -> None:
        self.most, self.used, self._journal = most, 0, journal

    def spend(self, worker: str, reason: str) -> None:
        """One more restart, on record. Raises RunError with the reason when none is left."""
        if self.used == self.most:
            raise RunError(f"{reason}; cluster.restarts = {self.most} are used up")
        self.used += 1
        self._journal.log("restarted", worker=worker, reason=reason)

"""The restart budget of a run: one count over all workers, with a journal record of each
restart.
"""

from __future__ import annotations

from sleep_rl.contracts.errors import RunError
from sleep_rl.journal.journal import Journal


class Restarts:
    """Counts the workers that are restarted during a run."""

    def __init__(self, limit: int, journal: Journal) -> None:
        """Start to count. `limit`: the config's cluster.restarts."""
        self.limit = limit
        self.used = 0
        self._journal = journal

    def count(self, worker: str, reason: str) -> None:
        """Count and record one restart. Raises RunError with the reason when the budget is
        spent.
        """
        if self.used == self.limit:
            raise RunError(f"{reason}; cluster.restarts = {self.limit} are used up")
        self.used += 1
        self._journal.log("restarted", worker=worker, reason=reason)

"""The result of one check of the doctor."""

from __future__ import annotations

from dataclasses import dataclass

GB = 10**9


@dataclass(frozen=True)
class Finding:
    """One line of the doctor. `name`: of the check; `message`: what holds, or what to do."""

    name: str
    ok: bool
    message: str

    def __str__(self) -> str:
        status = "ok" if self.ok else "to do"
        return f"{status:<6} {self.name}: {' '.join(self.message.split())}"

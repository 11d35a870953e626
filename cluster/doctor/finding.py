"""What a check of the doctor finds."""

from __future__ import annotations

from dataclasses import dataclass

GB = 10**9


@dataclass(frozen=True)
class Finding:
    """One line of the doctor: what is ok, or what to do."""

    name: str
    ok: bool
    message: str

    def __str__(self) -> str:
        status = "ok" if self.ok else "to do"
        return f"{status:<6} {self.name}: {' '.join(self.message.split())}"

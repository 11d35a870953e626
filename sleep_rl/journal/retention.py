"""Retention: the accuracies that the `evaluate` records of a run hold together."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from dataclasses import dataclass, field

from sleep_rl.journal.journal import Record

KNOWN = "known"
"""Name of the column that asks about what the base model knew before the first day."""

METHODS = {"sleep": "sleep", "sft": "plain SFT", "joint": "joint upper bound"}
"""Methods in the order of every table, with the name that people read."""


@dataclass
class Retention:
    """What `evaluate` records say together: per method the accuracies after each night. A newer
    record wins.
    """

    records: dict[str, dict[str, Record]] = field(default_factory=dict)  # method -> after -> record
    columns: list[str] = field(default_factory=list)  # known, then the days in order of appearance
    # first measurement per column: before sleep
    open_book: dict[str, float] = field(default_factory=dict)

    def add(self, record: Record) -> None:
        """Takes one `evaluate` record; one with an empty row measured the open book alone."""
        if record["row"]:
            self.records.setdefault(record["method"], {})[record["after"]] = record
        for column in (*record["row"], *(record.get("open_book") or {})):
            if column not in self.columns:
                self.columns.insert(0 if column == KNOWN else len(self.columns), column)
        for column, value in (record.get("open_book") or {}).items():
            if value is not None:
                self.open_book.setdefault(column, value)

    @classmethod
    def of(cls, records: Iterable[Record]) -> Retention:
        retention = cls()
        for record in records:
            if record["kind"] == "evaluate":
                retention.add(record)
        return retention

    @property
    def methods(self) -> list[str]:
        """Methods that were evaluated beyond the base model, in the order of METHODS, unknown ones
        last.
        """
        found = [m for m, afters in self.records.items() if set(afters) != {"base"}]
        return [m for m in METHODS if m in found] + [m for m in found if m not in METHODS]

    @property
    def base(self) -> Record | None:
        """The evaluation of the base model: the same model for every method, so whoever measured
        it.
        """
        return next((afters["base"] for afters in self.records.values() if "base" in afters), None)

    def last(self, method: str) -> Record:
        """The newest evaluation of a method."""
        return max(self.records[method].values(), key=lambda r: r["t"])

    def all_days(self, method: str) -> float | None:
        """Accuracy over the questions of all days together, after the last night; None where a day
        was not asked about or nobody counted the questions.
        """
        record = self.last(method)
        days, counts = [c for c in self.columns if c != KNOWN], record.get("n") or {}
        if not days or any(record["row"].get(c) is None or not counts.get(c) for c in days):
            return None
        return sum(record["row"][c] * counts[c] for c in days) / sum(counts[c] for c in days)

    def future(self, after: str, column: str) -> bool:
        """Whether the column's day was not lived yet."""
        lived = nights_lived(after)
        days = [c for c in self.columns if c != KNOWN]
        return column in days and lived is not None and days.index(column) >= lived


def nights_lived(after: str) -> int | None:
    """How many nights an `after` label counts: "base" 0, "night 3" 3; None when it does not say."""
    number = re.search(r"(\d{1,9})\s*$", after)
    return int(number.group(1)) if number else 0 if after == "base" else None


def wilson_interval(share: float, count: int, z: float = 1.96) -> tuple[float, float]:
    """95 % interval of a share of `count` yes-or-no answers."""
    middle, scale = share + z * z / (2 * count), 1 + z * z / count
    reach = z * math.sqrt(max(share * (1 - share), 0) / count + z * z / (4 * count * count))
    return max(0.0, (middle - reach) / scale), min(1.0, (middle + reach) / scale)

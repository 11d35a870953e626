"""Curves that grow with a run and stay small: means over neighbours, all nights on one axis."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from sleep_rl.journal.journal import Record

MOST = 240
"""Points of a curve that are handed out; about twice as many are held."""

Points = list[tuple[float, float | None]]
"""x and y; None makes a gap."""


class Trace:
    """One curve. When it has grown too long, two neighbours each become their mean."""

    def __init__(self) -> None:
        # of each: sum of x, sum of y, values that were finite, values
        self._width, self._means = 1, []

    def add(self, x: float, y: Any) -> None:
        if not self._means or self._means[-1][3] >= self._width:
            self._means.append([0.0, 0.0, 0, 0])
        last = self._means[-1]
        last[0] += x
        last[3] += 1
        if isinstance(y, (int, float)) and math.isfinite(y):
            last[1] += y
            last[2] += 1
        if len(self._means) > 2 * MOST:
            self.shrink(2 * MOST)

    def shrink(self, most: int) -> None:
        """To at most `most` means."""
        while len(self._means) > most:
            self._means = _merged(self._means, 2)
            self._width *= 2

    def points(self, most: int = MOST) -> Points:
        means = _merged(self._means, math.ceil(len(self._means) / most) or 1)
        return [
            (float(f"{x / n:.6g}"), float(f"{y / m:.4g}") if m else None) for x, y, m, n in means
        ]


def _merged(means: list[list], every: int) -> list[list]:
    return [
        [sum(column) for column in zip(*means[i : i + every])] for i in range(0, len(means), every)
    ]


@dataclass
class Part:
    """One night (or day) of a course: its steps stand from `start` to `end` on the common axis."""

    key: tuple
    label: str
    start: int
    end: int
    step: int = -1
    traces: dict[str, Trace] = field(default_factory=dict)


class Course:
    """The curves of records with `step`, night behind night on one axis."""

    def __init__(self, *names: str) -> None:
        self._names, self.parts = names, []

    def add(self, key: tuple, label: str, record: Record) -> None:
        """`key` tells nights apart; steps that begin anew make a part of their own, too."""
        step = int(record["step"])
        if not self.parts or self.parts[-1].key != key or step <= self.parts[-1].step:
            start = self.parts[-1].end if self.parts else 0
            self.parts.append(Part(key, label, start, start))
            for part in self.parts[:-1]:
                for trace in part.traces.values():
                    trace.shrink(max(4, 2 * MOST // len(self.parts)))
        part = self.parts[-1]
        part.step, part.end = (
            step,
            max(part.end, part.start + max(step + 1, int(record.get("steps") or 0))),
        )
        for name in self._names:
            if name in record:
                if name not in part.traces:
                    part.traces[name] = Trace()
                part.traces[name].add(part.start + step, record[name])

    def points(self, name: str) -> Points:
        """The curve of one field, with a gap between nights; empty when it never was recorded."""
        points: Points = []
        steps = sum(part.end - part.start for part in self.parts) or 1
        for part in self.parts:
            if name in part.traces:
                points += [(float(part.start), None)] if points else []
                points += part.traces[name].points(max(2, MOST * (part.step + 1) // steps))
        return points if any(y is not None for _, y in points) else []

    def begins(self) -> list[tuple[int, str]]:
        return [(part.start, part.label) for part in self.parts]


def on_one_axis(records: Iterable[Record]) -> tuple[list[Record], tuple[tuple[float, str], ...]]:
    """Records with `x`, their step counted over all nights (or days), and `part`, their night;
    where each one begins.

    A step that was run again, after a crash, replaces the first attempt.
    """
    nights_by_step: dict[Any, dict[int, Record]] = {}
    for record in records:
        nights_by_step.setdefault(record.get("night", record.get("day")), {})[record["step"]] = (
            record
        )
    placed: list[Record] = []
    begins: list[tuple[float, str]] = []
    offset = 0
    for night, by_step in nights_by_step.items():
        placed += [by_step[step] | {"x": offset + step, "part": night} for step in sorted(by_step)]
        begins.append((offset, f"night {night}"))
        offset += max(max(by_step), next(reversed(by_step.values())).get("steps") or 0)
    return placed, tuple(begins)


def course(records: Iterable[Record], x: str, y: str, most: int = 200) -> list[tuple[float, float]]:
    """Curve: means of neighbours if over `most` records, never across nights; NaN is a gap; empty
    without values.
    """
    records = list(records)
    every = math.ceil(len(records) / most) or 1
    points: list[tuple[float, float]] = []
    for _, night in itertools.groupby(records, lambda r: r.get("part")):
        points += [(math.nan, math.nan)] if points else []
        group = list(night)
        for near in (group[i : i + every] for i in range(0, len(group), every)):
            values = [r[y] for r in near if r.get(y) is not None]
            points.append(
                (near[len(near) // 2][x], sum(values) / len(values) if values else math.nan)
            )
    return points if any(not math.isnan(value) for _, value in points) else []

"""Curves that grow with a run and stay small, and the charts that the panels make of them.

Points are means over neighbours. Steps of all nights stand on one axis, night behind night.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

from sleep_rl.journal.panels import MINUTES, PANELS, Curve, Panel
from sleep_rl.journal.schema import Entry
from sleep_rl.journal.text import night_label

MOST = 240
"""Points of a curve that are handed out; about twice as many are held."""

MOST_NAMES = 8
"""Curves that one field may tell apart, e.g. states by their name."""

Points = list[tuple[float, float | None]]
"""x and y; None makes a gap."""


@dataclass
class Mean:
    """Neighbouring points that have become one."""

    x_sum: float = 0.0
    y_sum: float = 0.0
    finite: int = 0
    count: int = 0

    @property
    def x(self) -> float:
        return self.x_sum / self.count

    def merge(self, other: Mean) -> None:
        self.x_sum += other.x_sum
        self.y_sum += other.y_sum
        self.finite += other.finite
        self.count += other.count

    def point(self) -> tuple[float, float | None]:
        """Return x and y as text of six and four digits would hold them."""
        y = float(f"{self.y_sum / self.finite:.4g}") if self.finite else None
        return float(f"{self.x:.6g}"), y


class Trace:
    """One curve. When it has grown too long, two neighbours each become their mean."""

    def __init__(self) -> None:
        self._width = 1
        self._means: list[Mean] = []

    def add(self, x: float, y: Any) -> None:
        """Append a point; a `y` that is no finite number makes a gap."""
        mean = Mean(x, 0.0, 0, 1)
        if isinstance(y, (int, float)) and math.isfinite(y):
            mean.y_sum = y
            mean.finite = 1
        if self._means and self._means[-1].count < self._width:
            self._means[-1].merge(mean)
        else:
            self._means.append(mean)
        if len(self._means) > 2 * MOST:
            self.shrink(2 * MOST)

    def cut(self, x: float) -> None:
        """Drop the points from `x` on (whole means only)."""
        while self._means and self._means[-1].x >= x:
            self._means.pop()

    def shrink(self, most: int) -> None:
        """Merge neighbours until at most `most` means are left."""
        while len(self._means) > most:
            self._means = _merged(self._means, 2)
            self._width *= 2

    def points(self, most: int = MOST) -> Points:
        """Return at most `most` points."""
        every = math.ceil(len(self._means) / most) or 1
        return [mean.point() for mean in _merged(self._means, every)]


def _merged(means: list[Mean], every: int) -> list[Mean]:
    merged = []
    for start in range(0, len(means), every):
        total = Mean()
        for mean in means[start : start + every]:
            total.merge(mean)
        merged.append(total)
    return merged


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
    """The curves of entries with a `step`, night behind night on one axis."""

    def __init__(self, *names: str) -> None:
        self._names = names
        self.parts: list[Part] = []

    def add(self, key: tuple, label: str, entry: Entry) -> None:
        """Append a step. `key` tells nights apart; a step of the last night that comes once more
        replaces what that night had from there on.
        """
        step = int(entry.step)
        if not self.parts or self.parts[-1].key != key:
            start = self.parts[-1].end if self.parts else 0
            self.parts.append(Part(key, label, start, start))
            for part in self.parts[:-1]:
                for trace in part.traces.values():
                    trace.shrink(max(4, 2 * MOST // len(self.parts)))
        part = self.parts[-1]
        if step <= part.step:
            for trace in part.traces.values():
                trace.cut(part.start + step)
        part.step = step
        steps = int(getattr(entry, "steps", None) or 0)
        part.end = max(part.end, part.start + max(step + 1, steps))
        for name in self._names:
            value = getattr(entry, name)
            if value is not None or name in entry.nonfinite:
                part.traces.setdefault(name, Trace()).add(part.start + step, value)

    def points(self, name: str) -> Points:
        """Return the curve of one field, with a gap between nights; empty when it never was
        recorded.
        """
        points: Points = []
        steps = sum(part.end - part.start for part in self.parts) or 1
        for part in self.parts:
            if name in part.traces:
                points += [(float(part.start), None)] if points else []
                points += part.traces[name].points(max(2, MOST * (part.step + 1) // steps))
        return points if any(y is not None for _, y in points) else []

    def begins(self) -> list[tuple[int, str]]:
        """Return where each night begins, and its label."""
        return [(part.start, part.label) for part in self.parts]


@dataclass(frozen=True)
class Series:
    """One curve with points. `name`: the value of the field that tells curves apart, if any."""

    label: str
    name: str
    points: Points


@dataclass(frozen=True)
class Chart:
    """A panel with the points of a run. `nights`: where each night begins, and its label."""

    panel: Panel
    series: tuple[Series, ...]
    nights: tuple[tuple[int, str], ...] = ()


class Charts:
    """What the panels plot of a run. Takes entries one by one, in memory of bounded size."""

    def __init__(self, panels: tuple[Panel, ...] | None = None) -> None:
        """`panels`: None for PANELS."""
        self._panels = PANELS if panels is None else panels
        self._curves: dict[str, list[tuple[Panel, Curve]]] = {}
        for panel in self._panels:
            for curve in panel.curves:
                self._curves.setdefault(curve.kind, []).append((panel, curve))
        self._courses: dict[str, dict[str, Course]] = {}
        """Kind -> name -> course."""
        self._traces: dict[Curve, dict[str, Trace]] = {}
        self._start: float | None = None
        self.taken = 0
        """Entries that a panel plots."""

    def add(self, entry: Entry) -> None:
        """Take the next entry."""
        if self._start is None:
            self._start = entry.t
        self.taken += entry.kind in self._curves
        for name in {_name(curve, entry) for _, curve in self._stepwise(entry.kind)}:
            courses = self._courses.setdefault(entry.kind, {})
            if name in courses or len(courses) < MOST_NAMES:
                self._course(entry.kind, name).add(*_night(entry), entry)
        for panel, curve in self._curves.get(entry.kind, ()):
            value = _value(curve, entry)
            if panel.x == MINUTES and value is not None:
                traces = self._traces.setdefault(curve, {})
                name = _name(curve, entry)
                if name in traces or len(traces) < MOST_NAMES:
                    trace = traces.setdefault(name, Trace())
                    trace.add((entry.t - self._start) / 60, value)

    def charts(self) -> list[Chart]:
        """Return every panel, those without values with no series."""
        return [self._chart(panel) for panel in self._panels]

    def _chart(self, panel: Panel) -> Chart:
        series = []
        nights: list[tuple[int, str]] = []
        for curve in panel.curves:
            if panel.x == MINUTES:
                named = {name: t.points() for name, t in self._traces.get(curve, {}).items()}
            else:
                courses = self._courses.get(curve.kind, {})
                named = {name: course.points(curve.field) for name, course in courses.items()}
                if curve.kind == "seed" and "" in courses:
                    nights = courses[""].begins()
            series += [
                Series(curve.label or name, name, points)
                for name, points in named.items()
                if points
            ]
        return Chart(panel, tuple(series), tuple(nights))

    def _stepwise(self, kind: str) -> list[tuple[Panel, Curve]]:
        return [pair for pair in self._curves.get(kind, ()) if pair[0].x != MINUTES]

    def _course(self, kind: str, name: str) -> Course:
        fields = dict.fromkeys(curve.field for _, curve in self._stepwise(kind))
        return self._courses[kind].setdefault(name, Course(*fields))


def _name(curve: Curve, entry: Entry) -> str:
    return str(getattr(entry, curve.by)) if curve.by else ""


def _night(entry: Entry) -> tuple[tuple, str]:
    """Return what tells the nights (or days) of a course apart, and how they are called."""
    day = getattr(entry, "day", None)
    if not hasattr(entry, "night"):
        return (day,), str(day)
    sender = getattr(entry, "sender", 0)
    return (entry.night, sender, day), night_label(entry.night, sender)


def _value(curve: Curve, entry: Entry) -> float | None:
    value = getattr(entry, curve.field)
    if value is None:
        return None
    if curve.per:
        divisor = getattr(entry, curve.per)
        return value * curve.scale / divisor if divisor else None
    return value * curve.scale

"""Downsampled curves of a growing run in bounded memory, and the charts of the panels.

A point is the mean of neighbouring values. The steps of all nights share one axis, in sequence.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

from sleep_rl.journal.panels import MINUTES, PANELS, Curve, Panel
from sleep_rl.journal.schema import Entry
from sleep_rl.journal.text import night_label

MOST = 240
"""Largest number of points of a curve; about twice as many are stored."""

MOST_NAMES = 8
"""Largest number of curves that a field distinguishes, e.g. states by their name."""

Points = list[tuple[float, float | None]]
"""x and y; y None is a gap."""


@dataclass
class Mean:
    """The mean of neighbouring points."""

    x_sum: float = 0.0
    y_sum: float = 0.0
    finite: int = 0
    count: int = 0

    @property
    def x(self) -> float:
        """Mean of x."""
        return self.x_sum / self.count

    def merge(self, other: Mean) -> None:
        """Add the points of `other`."""
        self.x_sum += other.x_sum
        self.y_sum += other.y_sum
        self.finite += other.finite
        self.count += other.count

    def point(self) -> tuple[float, float | None]:
        """Return x and y, rounded to six and four significant digits."""
        y = float(f"{self.y_sum / self.finite:.4g}") if self.finite else None
        return float(f"{self.x:.6g}"), y


class Trace:
    """One downsampled curve: when it becomes too long, each two neighbours become their mean."""

    def __init__(self) -> None:
        self._width = 1
        self._means: list[Mean] = []

    def add(self, x: float, y: Any) -> None:
        """Append a point; a `y` that is not a finite number is a gap."""
        is_gap = not isinstance(y, (int, float)) or not math.isfinite(y)
        mean = Mean(x, 0.0, 0, 1) if is_gap else Mean(x, y, 1, 1)
        if self._means and self._means[-1].count < self._width:
            self._means[-1].merge(mean)
        else:
            self._means.append(mean)
        if len(self._means) > 2 * MOST:
            self.shrink(2 * MOST)

    def cut(self, x: float) -> None:
        """Drop the means from `x` on."""
        while self._means and self._means[-1].x >= x:
            self._means.pop()

    def shrink(self, most: int) -> None:
        """Merge neighbours until at most `most` means remain."""
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
class Segment:
    """One night (or day) on the common axis, from step `start` to `end`."""

    key: tuple
    label: str
    start: int
    end: int
    step: int = -1
    traces: dict[str, Trace] = field(default_factory=dict)

    def go_to(self, step: int, steps: int) -> None:
        """Make `step` the newest step of the night, which has `steps` steps at least; a repeated
        step drops the values from there on.
        """
        if step <= self.step:
            for trace in self.traces.values():
                trace.cut(self.start + step)
        self.step = step
        self.end = max(self.end, self.start + max(step + 1, steps))


class StepCurves:
    """The curves of entries with a `step`, with the steps of all nights on one axis."""

    def __init__(self, *names: str) -> None:
        self._names = names
        self.segments: list[Segment] = []

    def add(self, key: tuple, label: str, entry: Entry) -> None:
        """Append a step of the night `key`. A repeated step of the last night replaces that night's
        values from there on.
        """
        step = int(entry.step)
        if not self.segments or self.segments[-1].key != key:
            start = self.segments[-1].end if self.segments else 0
            self.segments.append(Segment(key, label, start, start))
            for segment in self.segments[:-1]:
                for trace in segment.traces.values():
                    trace.shrink(max(4, 2 * MOST // len(self.segments)))
        segment = self.segments[-1]
        segment.go_to(step, int(getattr(entry, "steps", None) or 0))
        for name in self._names:
            value = getattr(entry, name)
            if value is not None or name in entry.nonfinite:
                segment.traces.setdefault(name, Trace()).add(segment.start + step, value)

    def points(self, name: str) -> Points:
        """Return the curve of one field, with a gap between nights; empty if it was never
        recorded.
        """
        points: Points = []
        steps = sum(segment.end - segment.start for segment in self.segments) or 1
        for segment in self.segments:
            if name in segment.traces:
                points += [(float(segment.start), None)] if points else []
                points += segment.traces[name].points(max(2, MOST * (segment.step + 1) // steps))
        return points if any(y is not None for _, y in points) else []

    def nights(self) -> list[tuple[int, str]]:
        """Return (first step on the axis, label) of each night."""
        return [(segment.start, segment.label) for segment in self.segments]


@dataclass(frozen=True)
class Series:
    """One curve of a chart. `name`: the value of the field `Curve.by`, if any."""

    label: str
    name: str
    points: Points


@dataclass(frozen=True)
class Chart:
    """A panel with the curves of a run. `nights`: (first step on the axis, label) of each."""

    panel: Panel
    series: tuple[Series, ...]
    nights: tuple[tuple[int, str], ...] = ()


class Charts:
    """The charts of a growing run, in bounded memory."""

    def __init__(self, panels: tuple[Panel, ...] | None = None) -> None:
        """Create empty charts; `panels` None: PANELS."""
        self._panels = PANELS if panels is None else panels
        self._curves: dict[str, list[tuple[Panel, Curve]]] = {}
        for panel in self._panels:
            for curve in panel.curves:
                self._curves.setdefault(curve.kind, []).append((panel, curve))
        self._step_curves: dict[str, dict[str, StepCurves]] = {}
        """Kind -> name -> its curves over steps."""
        self._traces: dict[Curve, dict[str, Trace]] = {}
        """Curve over minutes -> name -> trace."""
        self._start: float | None = None
        self.plotted = 0
        """Number of entries that a panel plots."""

    def add(self, entry: Entry) -> None:
        """Add the values of the next entry."""
        if self._start is None:
            self._start = entry.t
        self.plotted += entry.kind in self._curves
        for name in {_name(curve, entry) for _, curve in self._over_steps(entry.kind)}:
            named = self._step_curves.setdefault(entry.kind, {})
            if name in named or len(named) < MOST_NAMES:
                self._curves_of(entry.kind, name).add(*_night(entry), entry)
        for panel, curve in self._curves.get(entry.kind, ()):
            value = _value(curve, entry)
            if panel.x == MINUTES and value is not None:
                traces = self._traces.setdefault(curve, {})
                name = _name(curve, entry)
                if name in traces or len(traces) < MOST_NAMES:
                    trace = traces.setdefault(name, Trace())
                    trace.add((entry.t - self._start) / 60, value)

    def charts(self) -> list[Chart]:
        """Return one chart per panel; a panel without values has no series."""
        return [self._chart(panel) for panel in self._panels]

    def _chart(self, panel: Panel) -> Chart:
        series = []
        nights: list[tuple[int, str]] = []
        for curve in panel.curves:
            if panel.x == MINUTES:
                named = {name: t.points() for name, t in self._traces.get(curve, {}).items()}
            else:
                by_name = self._step_curves.get(curve.kind, {})
                named = {name: curves.points(curve.field) for name, curves in by_name.items()}
                if curve.kind == "seed" and "" in by_name:
                    nights = by_name[""].nights()
            series += [
                Series(curve.label or name, name, points)
                for name, points in named.items()
                if points
            ]
        return Chart(panel, tuple(series), tuple(nights))

    def _over_steps(self, kind: str) -> list[tuple[Panel, Curve]]:
        return [pair for pair in self._curves.get(kind, ()) if pair[0].x != MINUTES]

    def _curves_of(self, kind: str, name: str) -> StepCurves:
        fields = dict.fromkeys(curve.field for _, curve in self._over_steps(kind))
        return self._step_curves[kind].setdefault(name, StepCurves(*fields))


def _name(curve: Curve, entry: Entry) -> str:
    return str(getattr(entry, curve.by)) if curve.by else ""


def _night(entry: Entry) -> tuple[tuple, str]:
    """Return (key, label) of the night (or day) that an entry belongs to."""
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

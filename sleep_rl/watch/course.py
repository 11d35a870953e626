"""The charts of a run that goes on, as HTML: the report's figures, drawn again when they changed,
and no more often than is cheap.
"""

from __future__ import annotations

import time

from markupsafe import Markup

from sleep_rl.journal.series import Chart
from sleep_rl.report.figures import figure
from sleep_rl.report.sections import figures

REDRAW_S = 5.0
"""Seconds at least between two drawings."""
SHARE = 0.05
"""Of the time that may be spent on drawing."""


class CourseFigures:
    """The newest drawing of the charts. Not thread-safe."""

    def __init__(self) -> None:
        self._html = b""
        self._version = ""
        self._next = 0.0
        """Monotonic time from which on it may be drawn again."""
        self._drawn: dict[str, tuple[Chart, Markup]] = {}
        """Title -> what was drawn last."""

    def is_due(self, version: str) -> bool:
        """Return whether charts of this version should be drawn."""
        return version != self._version and time.monotonic() >= self._next

    def draw(self, version: str, charts: list[Chart]) -> None:
        """Draw the charts that differ from those drawn last."""
        start = time.monotonic()
        self._html = figures(charts, self._figure, newest=True).encode()
        end = time.monotonic()
        self._version = version
        self._next = end + max(REDRAW_S, (end - start) / SHARE)

    def newest(self) -> tuple[str, bytes]:
        """Return the version that was drawn last, and its HTML."""
        return self._version, self._html

    def _figure(self, chart: Chart) -> Markup:
        title = chart.panel.title
        if title not in self._drawn or self._drawn[title][0] != chart:
            self._drawn[title] = (chart, figure(chart))
        return self._drawn[title][1]

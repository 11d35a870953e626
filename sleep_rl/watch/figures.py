"""The charts of a running run as HTML: the report's figures, redrawn when they change, at a limited
rate.
"""

from __future__ import annotations

import time

from markupsafe import Markup

from sleep_rl.journal.series import Chart
from sleep_rl.report.figures import figure
from sleep_rl.report.sections import figures

REDRAW_S = 5.0
"""Smallest interval between two drawings, in seconds."""
SHARE = 0.05
"""Largest share of the time that is spent on drawing."""


class LiveFigures:
    """The newest figures of the charts. Not thread-safe."""

    def __init__(self) -> None:
        self._html = b""
        self._version = ""
        self._next = 0.0
        """Monotonic time of the next drawing at the earliest."""
        self._drawn: dict[str, tuple[Chart, Markup]] = {}
        """Title -> newest chart and its figure."""

    def is_due(self, version: str) -> bool:
        """Return whether charts of this version must be drawn, and may be drawn now."""
        return version != self._version and time.monotonic() >= self._next

    def draw(self, version: str, charts: list[Chart]) -> None:
        """Draw the charts that have changed, and store the HTML of all."""
        start = time.monotonic()
        self._html = figures(charts, self._figure, newest=True).encode()
        end = time.monotonic()
        self._version = version
        self._next = end + max(REDRAW_S, (end - start) / SHARE)

    def newest(self) -> tuple[str, bytes]:
        """Return the newest drawn version, and its HTML."""
        return self._version, self._html

    def _figure(self, chart: Chart) -> Markup:
        title = chart.panel.title
        if title not in self._drawn or self._drawn[title][0] != chart:
            self._drawn[title] = (chart, figure(chart))
        return self._drawn[title][1]

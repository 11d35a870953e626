"""Draw charts as SVG elements for HTML pages.

matplotlib is imported inside the functions that draw, because its import is slow.
"""

from __future__ import annotations

import io
import math
import re
from html import escape
from typing import TYPE_CHECKING

from markupsafe import Markup

from sleep_rl.journal.retention import label_of_method
from sleep_rl.journal.series import Chart, Points, Series
from sleep_rl.report.colours import COLOURS, CURVES, FAINT, PLOT

if TYPE_CHECKING:
    from matplotlib.axes import Axes

WIDTH = 5.4
HEIGHT = 2.7
"""Inches."""
CHARACTER = 0.0135
"""Width of a character of a night's label, as a share of the axes."""


def figure(chart: Chart) -> Markup:
    """Return the chart as an SVG element with escaped texts."""
    import matplotlib
    from matplotlib.figure import Figure

    title = chart.panel.title
    # element ids that differ between the figures of a page, and are the same in every run
    with matplotlib.rc_context(PLOT | {"svg.hashsalt": title}):
        figure = Figure(figsize=(WIDTH, HEIGHT), layout="constrained")
        _draw(figure.add_subplot(), chart)
        figure.savefig(buffer := io.StringIO(), format="svg", transparent=True)
    # without the XML prolog, metadata and namespaces
    svg = buffer.getvalue().partition("<svg")[2]
    svg = re.sub(r"<metadata>.*?</metadata>|\sxmlns(:\w+)?=\"[^\"]*\"", "", svg, flags=re.DOTALL)
    return Markup(f'<svg role="img" aria-label="{escape(title)}"{svg}')


def label_of(series: Series) -> str:
    """Return the label of a curve in the legend."""
    return label_of_method(series.label)[:40]


def _draw(axes: Axes, chart: Chart) -> None:
    for number, series in enumerate(chart.series):
        colour = COLOURS.get(series.name) or CURVES[number % len(CURVES)]
        _plot(axes, series, colour, chart.panel.dots)
    axes.autoscale_view()
    values = [y for series in chart.series for _, y in series.points if y is not None]
    low = min(0, *values)
    # from zero, with space for the labels of the nights
    axes.set_ylim(low, low + 1.18 * (max(0, *values) - low or 1))
    _mark_nights(axes, chart)
    axes.set(xlabel=chart.panel.x, ylabel=chart.panel.unit)
    if len(chart.series) > 1:
        axes.legend(
            loc="lower left",
            bbox_to_anchor=(-0.01, 1.0),
            ncols=4,
            handlelength=1.2,
            columnspacing=1.4,
        )


def _plot(axes: Axes, series: Series, colour: str, dots: bool) -> None:
    x = [x for x, _ in series.points]
    y = [math.nan if value is None else value for _, value in series.points]
    marked = range(len(x)) if dots else _isolated(series.points)
    axes.plot(
        x,
        y,
        color=colour,
        label=label_of(series),
        linestyle="" if len(marked) == len(x) else "-",
        linewidth=1.3,
        marker="o" if marked else "",
        markevery=list(marked),
        markersize=3.5,
        markeredgewidth=0,
    )


def _isolated(points: Points) -> list[int]:
    """Return the positions of points between two gaps, which a line does not show."""
    finite = [False, *(y is not None for _, y in points), False]
    return [i for i in range(len(points)) if finite[i + 1] and not finite[i] and not finite[i + 2]]


def _mark_nights(axes: Axes, chart: Chart) -> None:
    """Mark the first step of each night, with a label if there is space for it."""
    left, right = axes.get_xlim()
    room = left
    for x, label in chart.nights:
        if x > right:
            break
        axes.axvline(x, color="#dfe3e9", linewidth=0.8, zorder=0)
        if x >= room:
            axes.annotate(
                label,
                (x, 1),
                xycoords=("data", "axes fraction"),
                xytext=(3, -2),
                textcoords="offset points",
                va="top",
                fontsize=7.5,
                color=FAINT,
            )
            room = x + CHARACTER * (len(label) + 2) * (right - left)
    axes.set_xlim(left, right)

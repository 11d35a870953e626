"""The retention matrix as an image for W&B: one row per night, a column for the known and per day,
one panel per method.
"""

from __future__ import annotations

import io
from typing import TYPE_CHECKING

from sleep_rl.journal.retention import Retention, label_of_method
from sleep_rl.report.colours import FUTURE, MUTED, PLOT, colours_of, ink_on, shade

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MOST_NUMBERED = 20
"""Largest number of columns for which the cells show their values."""


def png(retention: Retention) -> bytes:
    """Return a PNG with the matrices of all methods side by side. There must be an evaluation after
    a night.
    """
    import matplotlib
    from matplotlib.figure import Figure

    methods = retention.methods
    with matplotlib.rc_context(PLOT | {"axes.grid": False}):
        width = len(retention.columns)
        height = max(len(retention.history(method)) for method in methods)
        size = (min(1.2 + 0.75 * width, 14) * len(methods), min(1.0 + 0.42 * height, 14))
        figure = Figure(figsize=size, layout="constrained")
        panels = figure.subplots(1, len(methods), squeeze=False)[0]
        for axes, method in zip(panels, methods, strict=True):
            _draw(axes, retention, method)
        figure.savefig(buffer := io.BytesIO(), format="png", dpi=120)
    return buffer.getvalue()


def _draw(axes: Axes, retention: Retention, method: str) -> None:
    from matplotlib.colors import to_rgb

    rows = retention.history(method)
    shades = [
        [
            FUTURE if cell.value is None or not cell.lived else shade(cell.value)
            for cell in row.cells
        ]
        for row in rows
    ]
    axes.imshow(
        [[to_rgb(colour) for colour in line] for line in shades],
        aspect="auto",
        interpolation="nearest",
    )
    if len(retention.columns) <= MOST_NUMBERED:
        for y, row in enumerate(rows):
            for x, cell in enumerate(row.cells):
                if cell.value is not None:
                    ink = ink_on(cell.value) if cell.lived else MUTED
                    text = f"{cell.value:.2f}"
                    axes.text(x, y, text, ha="center", va="center", fontsize=8, color=ink)
    axes.set_xticks(range(len(retention.columns)), retention.columns, rotation=30, ha="right")
    axes.set_yticks(range(len(rows)), [row.after for row in rows])
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    colour = colours_of(retention.methods)[method]
    axes.set_title(label_of_method(method), loc="left", fontsize=9.5, color=colour)

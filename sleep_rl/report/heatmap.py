"""The retention matrix as a picture: one row per night, one column for the known and per day, one
panel per method.
"""

from __future__ import annotations

import io
from typing import TYPE_CHECKING

from sleep_rl.journal.retention import METHODS, Retention
from sleep_rl.report.page import COLOURS, INK, MUTED, PLOT, PURPLE, shade

if TYPE_CHECKING:
    from matplotlib.axes import Axes

FUTURE = "#f0f1f3"  # of a day that was not lived yet
MOST_NUMBERED = 20  # columns up to which each cell says its number


def png(retention: Retention) -> bytes:
    """The matrices of all methods beside each other. Needs at least one evaluation after a
    night.
    """
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context(PLOT | {"axes.grid": False}):
        wide, high = (
            len(retention.columns),
            max(len(rows_of(retention, method)) for method in retention.methods),
        )
        size = (min(1.2 + 0.75 * wide, 14) * len(retention.methods), min(1.0 + 0.42 * high, 14))
        figure = Figure(figsize=size, layout="constrained")
        panels = figure.subplots(1, len(retention.methods), squeeze=False)[0]
        for axes, method in zip(panels, retention.methods, strict=True):
            _draw(axes, retention, method)
        figure.savefig(buffer := io.BytesIO(), format="png", dpi=120)
    return buffer.getvalue()


def rows_of(retention: Retention, method: str) -> list[tuple[str, list[float | None]]]:
    """(after, accuracy per column): the base model, then every night; None for what was not
    asked.
    """
    records = [
        retention.base,
        *(r for after, r in retention.records[method].items() if after != "base"),
    ]
    return [
        (r["after"], [r["row"].get(column) for column in retention.columns]) for r in records if r
    ]


def _draw(axes: Axes, retention: Retention, method: str) -> None:
    from matplotlib.colors import to_rgb

    rows, columns = rows_of(retention, method), retention.columns
    lived = [
        [
            value is not None and not retention.future(after, column)
            for column, value in zip(columns, values, strict=True)
        ]
        for after, values in rows
    ]
    axes.imshow(
        [
            [
                to_rgb(shade(value) if known else FUTURE)
                for value, known in zip(values, there, strict=True)
            ]
            for (_, values), there in zip(rows, lived, strict=True)
        ],
        aspect="auto",
        interpolation="nearest",
    )
    for y, (_, values) in enumerate(rows):
        for x, value in enumerate(values):
            if value is not None and len(columns) <= MOST_NUMBERED:
                ink = MUTED if not lived[y][x] else "#fff" if value > 0.55 else INK
                axes.text(x, y, f"{value:.2f}", ha="center", va="center", fontsize=8, color=ink)
    axes.set_xticks(range(len(columns)), columns, rotation=30, ha="right")
    axes.set_yticks(range(len(rows)), [after for after, _ in rows])
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    axes.set_title(
        METHODS.get(method, method), loc="left", fontsize=9.5, color=COLOURS.get(method, PURPLE)
    )

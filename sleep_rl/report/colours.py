"""Colours and matplotlib style of all figures."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import cycle

BLUE = "#2f5d9b"
PURPLE = "#8e5aa8"
CYAN = "#45a1b5"
INK = "#1d2330"
MUTED = "#7b8494"
FAINT = "#a2a9b6"
FUTURE = "#f0f1f3"
"""Colour of a cell whose day is after the evaluation."""

COLOURS = {"sleep": BLUE, "sft": "#c4661f", "sft_self_written": "#b08a1e", "joint": "#3d8b6b"}
"""Method -> its colour in all figures; other curves have those of CURVES."""
OTHERS = (PURPLE, CYAN, "#a8455a", "#6b7a2a")
"""Colours of other methods, in their order."""
CURVES = (BLUE, PURPLE, CYAN, "#c4661f", "#3d8b6b", MUTED)

PLOT = {
    "svg.fonttype": "none",
    "text.parse_math": False,
    "font.family": "sans-serif",
    "font.size": 9,
    "text.color": INK,
    "font.sans-serif": ["Helvetica Neue", "Arial", "Liberation Sans", "DejaVu Sans"],
    "axes.edgecolor": FAINT,
    "axes.labelcolor": MUTED,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.grid.axis": "y",
    "axes.axisbelow": True,
    "grid.color": "#eef0f3",
    "legend.frameon": False,
    "legend.fontsize": 8.5,
}
"""rcParams of matplotlib."""

LOW = (244, 246, 243)
HIGH = (23, 92, 105)


def colours_of(methods: Iterable[str]) -> dict[str, str]:
    """Return method -> colour, for methods that are not in COLOURS by their order."""
    others = [method for method in methods if method not in COLOURS]
    return COLOURS | dict(zip(others, cycle(OTHERS), strict=False))


def shade(value: float) -> str:
    """Return the colour of an accuracy in a heat map: white at 0, dark blue-green at 1."""
    share = min(max(value, 0.0), 1.0)
    channels = (round(a + (b - a) * share) for a, b in zip(LOW, HIGH, strict=True))
    return "#" + "".join(f"{channel:02x}" for channel in channels)


def ink_on(value: float) -> str:
    """Return the text colour for the background `shade(value)`."""
    return "#fff" if value > 0.55 else INK

"""Colours and the matplotlib style of every picture."""

from __future__ import annotations

BLUE = "#2f5d9b"
PURPLE = "#8e5aa8"
CYAN = "#45a1b5"
INK = "#1d2330"
MUTED = "#7b8494"
FAINT = "#a2a9b6"
FUTURE = "#f0f1f3"
"""Of a day that was not lived yet."""

COLOURS = {"sleep": BLUE, "sft": "#c4661f", "joint": "#3d8b6b"}
"""One colour per method, everywhere; what is no method is drawn in CURVES."""
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
"""Settings of matplotlib."""

LOW = (244, 246, 243)
HIGH = (23, 92, 105)


def shade(value: float) -> str:
    """Return the colour of an accuracy in a heat map: 0 to 1 is white to deep blue-green."""
    share = min(max(value, 0.0), 1.0)
    channels = (round(a + (b - a) * share) for a, b in zip(LOW, HIGH, strict=True))
    return "#" + "".join(f"{channel:02x}" for channel in channels)


def ink_on(value: float) -> str:
    """Return the colour of a number that stands on `shade(value)`."""
    return "#fff" if value > 0.55 else INK

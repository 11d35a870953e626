"""Text for people: durations, aligned tables, names of nights, lines without terminal codes."""

from __future__ import annotations


def aligned(rows: list[list[str]]) -> str:
    """A text table: columns as wide as their widest cell."""
    widths = [max(map(len, column)) for column in zip(*rows)]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip() for row in rows
    )


def clock(seconds: float) -> str:
    """A duration for people: "4.2 s", "1:23 min", "2:05:00 h"."""
    if seconds < 59.95:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return (
        f"{minutes}:{rest:02d} min"
        if minutes < 60
        else f"{minutes // 60}:{minutes % 60:02d}:{rest:02d} h"
    )

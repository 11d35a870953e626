"""Formatted text: durations, aligned tables, names of nights, lines without terminal codes."""

from __future__ import annotations

import os
import re
from pathlib import Path

TERMINAL_CODES = re.compile(
    r"\x1b\[[0-?]*[ -/]*[@-~]"  # colours, cursor
    r"|\x1b\][^\x07\x1b]*(?:\x07|\x1b\\)"  # titles, links
    r"|[\x00-\x08\x0b-\x1f\x7f-\x9f]"  # control characters but tab and newline
)


TAIL_BYTES = 4096
"""Read from the end of a log."""
NO_VALUE = "-"
"""In plain text, in the place of a missing value."""


def decimal(value: float | None, form: str = ".2f") -> str:
    """Return a formatted number, or NO_VALUE."""
    return NO_VALUE if value is None else format(value, form)


def clock(seconds: float) -> str:
    """Return a formatted duration: "4.2 s", "1:23 min", "2:05:00 h"."""
    if seconds < 59.95:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes}:{rest:02d} min"
    return f"{minutes // 60}:{minutes % 60:02d}:{rest:02d} h"


def aligned(rows: list[list[str]]) -> str:
    """Return a text table with aligned columns."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = (
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        for row in rows
    )
    return "\n".join(line.rstrip() for line in lines)


def night_label(night: object, sender: int | None = 0) -> str:
    """Return the name of a consolidation: "night 3" (from the context window, level 0), "night 3,
    level 1 to 2", "night 3, dreams" (sender -1).
    """
    if not sender:
        return f"night {night}"
    if sender < 0:
        return f"night {night}, dreams"
    return f"night {night}, level {sender} to {sender + 1}"


def without_terminal_codes(line: str) -> str:
    """Return the line without escape sequences and control characters."""
    return TERMINAL_CODES.sub("", line)


def last_line(text: str) -> str:
    """Return the last line that is not empty, without terminal codes; of a progress bar, which
    overwrites its line, the last state. Empty if there is none.
    """
    for line in reversed(re.split(r"[\r\n]+", text)):
        if stripped := without_terminal_codes(line).strip():
            return stripped
    return ""


def end_of_log(path: str | Path) -> str:
    """Return the last line of a log file; empty if its end has none. Raises OSError."""
    with open(path, "rb") as file:
        file.seek(max(0, file.seek(0, os.SEEK_END) - TAIL_BYTES))
        return last_line(file.read(TAIL_BYTES).decode("utf-8", "replace"))

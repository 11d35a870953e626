"""Read one file of documents or questions as a text or as rows."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from sleep_rl.contracts.errors import one_line
from sleep_rl.files import content, regular
from sleep_rl.tasks.documents.conversion import CONVERTERS, Unreadable, converted

TEXT_FILES = (".txt", ".md", ".markdown", ".rst")
ROW_FILES = (".jsonl", ".parquet")
KINDS = ", ".join(suffix[1:] for suffix in (*TEXT_FILES, *ROW_FILES, *CONVERTERS))
LINE_END = re.compile(r"\r\n|\r|\n")
"""Separator of rows. JSON escapes these in strings, but not other line ends such as U+2028."""


def has_rows(file: Path) -> bool:
    """Return whether a file has one document per row."""
    return file.suffix.lower() in ROW_FILES


def read_text(file: Path) -> str:
    """Return the text of a file that is one document. Raises Unreadable."""
    suffix = file.suffix.lower()
    if suffix in CONVERTERS:
        text = converted(_bytes(file), suffix)
    elif suffix in TEXT_FILES:
        text = _plain(file)
    else:
        raise Unreadable(f"expected one of {KINDS}")
    return check_text(text)


def check_text(text: str) -> str:
    """Return the text. Raises Unreadable for NUL characters and unpaired surrogates."""
    if "\0" in text:
        raise Unreadable("expected text, got a NUL character")
    if any("\ud800" <= character <= "\udfff" for character in text):  # of a broken JSON escape
        raise Unreadable("expected text, got half of a surrogate pair")
    return text


def read_rows(file: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield (line or row number, row) of a jsonl or parquet file. Raises Unreadable."""
    if file.suffix.lower() == ".parquet":
        yield from enumerate(_parquet(file), start=1)
        return
    for number, line in enumerate(LINE_END.split(_plain(file)), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise Unreadable(f"line {number}: expected a JSON object, got {error}") from None
        if not isinstance(row, dict):
            raise Unreadable(f"line {number}: expected a JSON object, got {type(row).__name__}")
        yield number, row


def _plain(file: Path) -> str:
    try:
        return _bytes(file).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise Unreadable(
            f"expected UTF-8 text, got another encoding at byte {error.start}"
        ) from None


def _bytes(file: Path) -> bytes:
    try:
        return content(file)
    except OSError as error:
        raise Unreadable(f"cannot be read ({error.strerror})") from None
    except ValueError as error:  # a NUL in the name
        raise Unreadable(f"cannot be read ({error})") from None


def _parquet(file: Path) -> list[dict[str, Any]]:
    import pyarrow.parquet as parquet

    try:
        with regular(file) as source:
            return parquet.read_table(source).to_pylist()
    # Boundary: pyarrow's errors have no common base class; all of it is about this file.
    except Exception as error:
        raise Unreadable(f"no readable parquet file ({one_line(error)})") from error

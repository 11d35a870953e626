"""Convert other file formats to text by MarkItDown, of the extra `formats`."""

from __future__ import annotations

import hashlib
import io
import logging
import re
from typing import Any

from sleep_rl.contracts.errors import one_line

CONVERTERS = {
    ".html": "HtmlConverter",
    ".htm": "HtmlConverter",
    ".csv": "CsvConverter",
    ".pdf": "PdfConverter",
    ".docx": "DocxConverter",
    ".pptx": "PptxConverter",
}
"""Suffix -> class of MarkItDown. MarkItDown's own choice depends on the content, and would read a
damaged file as plain text.
"""
DECLARED = re.compile(rb"charset\s*=\s*[\"']?([\w.:-]+)", re.I)
HEAD_BYTES = 1024  # in which an HTML page must declare its encoding
SLIDE_COMMENT = re.compile(r"<!-- Slide number: \d+ -->\n?")
_texts: dict[tuple[bytes, str], str] = {}
"""(digest of a file, suffix) -> its text, since a run reads a folder more than once."""


class Unreadable(ValueError):
    """A file that cannot be read as a document. The message is one line, without the file's
    name.
    """


def converted(data: bytes, suffix: str) -> str:
    """Return a file's text as Markdown. Raises Unreadable, also if the extra is not installed."""
    key = (hashlib.blake2b(data, digest_size=16).digest(), suffix)
    if key not in _texts:
        _texts[key] = _convert(data, suffix)
    return _texts[key]


def _convert(data: bytes, suffix: str) -> str:
    try:
        from markitdown import MissingDependencyException, StreamInfo, converters
    except ImportError:
        raise _missing(suffix) from None
    for name in ("pdfminer", "bs4"):  # they warn of unknown fonts and of empty pages
        logging.getLogger(name).setLevel(logging.ERROR)
    if suffix in (".html", ".htm", ".csv"):
        data = _decoded(data, suffix).encode()
    converter: Any = getattr(converters, CONVERTERS[suffix])()
    stream_info = StreamInfo(extension=suffix, charset="utf-8")
    try:
        text = converter.convert(io.BytesIO(data), stream_info).markdown
    except MissingDependencyException:
        raise _missing(suffix) from None
    except Exception as error:
        # Boundary: the converters' errors have no common base class; all concern this file.
        raise Unreadable(f"no readable {suffix[1:]} file ({one_line(error)})") from error
    # a form feed ends each page of a PDF
    return SLIDE_COMMENT.sub("", text).replace("\f", "\n")


def _decoded(data: bytes, suffix: str) -> str:
    """Return the text of a file in UTF-8, or of an HTML page in the encoding that it declares.

    Raises Unreadable: a guessed encoding would give wrong words.
    """
    declared = DECLARED.search(data[:HEAD_BYTES]) if suffix != ".csv" else None
    encodings = ["utf-8-sig"] + ([declared[1].decode("ascii")] if declared else [])
    for encoding in encodings:
        try:
            return data.decode(encoding)
        except (UnicodeError, LookupError):
            continue
    raise Unreadable(f"expected UTF-8{' or a declared encoding' * (suffix != '.csv')}, got another")


def _missing(suffix: str) -> Unreadable:
    return Unreadable(f"{suffix} needs the extra `formats`: pip install -e '.[formats]'")

"""A person's own documents: reading them from files or a dataset, splitting them, telling new ones
from known ones.

A document is known by the digest of its text: renamed or moved, it is no new one; changed, it is.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sleep_rl.contracts.errors import InputError, one_line
from sleep_rl.files import content, regular
from sleep_rl.model.shape import HUB_NAME

TEXT_FILES = (".txt", ".md")
ROW_FILES = (".jsonl", ".parquet")
QUESTIONS = "questions.jsonl"
COLUMNS = ("text", "content", "document", "body")
"""Columns of a row that may hold its text; the first one that is there does."""
SEPARATORS = (
    re.compile(r"\n\s*\n"),
    re.compile(r"\n"),
    re.compile(r"(?<=[.!?])\s+"),
    re.compile(r"\s+"),
)
"""Where a document is cut, the best places first: between paragraphs, lines, sentences, words."""


@dataclass(frozen=True)
class Source:
    """One document as it was found. `name` says where: the file's path inside the folder, and the
    row where it has rows.
    """

    name: str
    text: str

    @property
    def digest(self) -> str:
        return hashlib.blake2b(self.text.encode(), digest_size=16).hexdigest()


@dataclass(frozen=True)
class Asked:
    """A question about the documents. `document`: the name of the file that answers it, or
    empty.
    """

    question: str
    answer: str
    document: str = ""


@dataclass(frozen=True)
class ScanResult:
    """The documents of a folder, file or dataset. `left_out`: name -> why it is left out."""

    sources: tuple[Source, ...]
    left_out: dict[str, str]


def scan(path: str, where: str) -> ScanResult:
    """Read every document at `path`: a folder with txt, md, jsonl and parquet files (except hidden
    ones and questions.jsonl), one such file, a folder saved by `datasets`, or a hub dataset's train
    split. Empty documents and repeated texts are left out.

    Raises InputError for what cannot be read, and when there is no document at all.
    """
    sources, left_out = _sources(path, where)
    distinct: dict[str, Source] = {}
    for source in sources:
        if not source.text.strip():
            left_out[source.name] = "empty"
        elif source.digest in distinct:
            left_out[source.name] = f"the same text as {distinct[source.digest].name}"
        else:
            distinct[source.digest] = source
    if not distinct:
        raise InputError(f"{where}: at least one document that is not empty, got none in {path}")
    return ScanResult(tuple(distinct.values()), left_out)


def _sources(path: str, where: str) -> tuple[list[Source], dict[str, str]]:
    """Return the documents at `path`, and which files of a folder are left out and why."""
    place = Path(os.path.expanduser(path))
    if os.path.isdir(place):
        marks = ("dataset_info.json", "dataset_dict.json")
        if any(os.path.isfile(place / mark) for mark in marks):
            return _dataset(str(place), where), {}
        return _folder(place, where)
    if os.path.exists(place):
        if place.suffix.lower() not in TEXT_FILES + ROW_FILES:
            raise InputError(f"{where}: a txt, md, jsonl or parquet file, got {path}")
        return _read(place, place.name, where), {}
    if HUB_NAME.fullmatch(path):
        return _dataset(str(place), where), {}
    raise InputError(
        f"{where}: a folder or file of documents, a datasets folder or a hub name, got {path}: "
        "no such file"
    )


def _folder(folder: Path, where: str) -> tuple[list[Source], dict[str, str]]:
    sources = []
    left_out = {}
    for file in _files(folder):
        name = file.relative_to(folder).as_posix()
        if file.suffix.lower() in TEXT_FILES + ROW_FILES:
            sources += _read(file, name, where)
        elif name != QUESTIONS:
            left_out[name] = "no txt, md, jsonl or parquet file"
    return sources, left_out


def questions(path: str | None, folder: str, where: str) -> tuple[Asked, ...]:
    """The questions in a jsonl file of {"question", "answer"[, "document"]}; without a path those
    of `questions.jsonl` in the documents' folder, if there is one. Raises InputError.
    """
    file = Path(os.path.expanduser(path or folder)) / ("" if path else QUESTIONS)
    if not path and not os.path.isfile(file):
        return ()
    out = []
    for number, row in _rows(file, where):
        values = [row.get(key, "") for key in ("question", "answer", "document")]
        if not all(isinstance(v, str) for v in values) or not (
            values[0].strip() and values[1].strip()
        ):
            raise InputError(
                f"{where}: {file} line {number}: texts `question` and `answer` (and "
                "`document`), got "
                f"{json.dumps(row, ensure_ascii=False)[:80]}"
            )
        out.append(Asked(*(v.strip() for v in values)))
    return tuple(out)


def pieces(text: str, most: int, count: Callable[[str], int]) -> list[str]:
    """The text in pieces of at most `most` tokens, as `count` counts them, cut at the best places
    and each as long as it can be. A word that alone is longer is cut between characters.
    """
    text = text.strip()
    return list(_packed(text, count(text), most, count, 0))


def _packed(
    text: str, size: int, most: int, count: Callable[[str], int], level: int
) -> Iterator[str]:
    """`size`: the text's tokens; each text is counted once, since that is what takes time."""
    if size <= most:
        yield text
        return
    if level == len(SEPARATORS):
        step = max(len(text) * most // (2 * size), 1)
        for start in range(0, len(text), step):
            yield text[start : start + step]
        return
    if not SEPARATORS[level].search(text):
        yield from _packed(text, size, most, count, level + 1)
        return
    held = ""
    size = 0

    # the sum of its parts is a little more, or less, than the whole
    def ended(piece: str) -> Iterator[str]:
        return _packed(piece, count(piece), most, count, level + 1)

    for part, behind in _cut(text, SEPARATORS[level]):
        longer = count(part + behind)
        if held and size + longer > most:
            yield from ended(held.strip())
            held = ""
            size = 0
        if not held and longer > most:
            *whole, held = _packed(part, longer, most, count, level + 1)
            yield from whole
            held = held + behind
            size = count(held)
        else:
            held = held + part + behind
            size = size + longer
    if held.strip():
        yield from ended(held.strip())


def _cut(text: str, separator: re.Pattern) -> Iterator[tuple[str, str]]:
    """(part, the separator behind it)."""
    start = 0
    for match in separator.finditer(text):
        yield text[start : match.start()], match.group()
        start = match.end()
    yield text[start:], ""


def _files(folder: Path) -> Iterator[Path]:
    """Files below a folder in the order of their names; folders that are links are not entered, so
    there is no circle.
    """
    for place, inside, names in os.walk(folder):
        inside[:] = sorted(name for name in inside if not name.startswith("."))
        yield from (Path(place) / name for name in sorted(names) if not name.startswith("."))


def _read(file: Path, name: str, where: str) -> list[Source]:
    """The documents of one file. Rows are named by their `id`, or by their text's digest: a row may
    move.
    """
    if file.name == QUESTIONS:
        return []
    if file.suffix.lower() in TEXT_FILES:
        return [Source(name, _text(file, where))]
    return _named([row for _, row in _rows(file, where)], name, where)


def _text(file: Path, where: str) -> str:
    try:
        text = content(file).decode("utf-8-sig")
    except OSError as error:
        raise InputError(f"{where}: cannot read {file}: {error.strerror}") from None
    except ValueError as error:  # a NUL in the name
        if not isinstance(error, UnicodeDecodeError):
            raise InputError(f"{where}: cannot read {file}: {error}") from None
        raise InputError(
            f"{where}: UTF-8 text, got another encoding in {file} at byte {error.start}"
        ) from None
    if "\0" in text:
        raise InputError(f"{where}: UTF-8 text, got a NUL character in {file}")
    return text


def _rows(file: Path, where: str) -> Iterator[tuple[int, dict]]:
    """Yield (line or row number, row) of a jsonl or parquet file."""
    if file.suffix.lower() == ".parquet":
        import pyarrow.parquet as parquet

        try:
            with regular(file) as source:
                yield from enumerate(parquet.read_table(source).to_pylist(), start=1)
        # Boundary: pyarrow's errors have no common base class; all of it is about this file.
        except Exception as error:  # noqa: BLE001
            raise InputError(f"{where}: a parquet file, got {file}: {one_line(error)}") from None
        return
    for number, line in enumerate(_text(file, where).splitlines(), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise InputError(
                f"{where}: one JSON object per line, got {file} line {number}: {error}"
            ) from None
        if not isinstance(row, dict):
            raise InputError(
                f"{where}: one JSON object per line, got {type(row).__name__} in "
                f"{file} line {number}"
            )
        yield number, row


def _named(rows: Iterable[dict[str, Any]], name: str, where: str) -> list[Source]:
    out = []
    for number, row in enumerate(rows, start=1):
        column = next((c for c in COLUMNS if isinstance(row.get(c), str)), None)
        if column is None:
            raise InputError(
                f"{where}: rows with a text in one of {', '.join(COLUMNS)}, got "
                f"{', '.join(map(str, row))[:80] or 'none'} "
                f"in {name} row {number}"
            )
        source = Source(name, row[column])
        label = row.get("id")
        suffix = source.digest[:8] if label is None else " ".join(str(label).split())[:80]
        out.append(Source(f"{name}#{suffix}", source.text))
    return out


def _dataset(path: str, where: str) -> list[Source]:
    import datasets  # takes seconds to import and is needed for this kind of input only

    try:
        loaded = (
            datasets.load_from_disk(path)
            if os.path.isdir(path)
            else datasets.load_dataset(path, split="train")
        )
        rows = loaded["train"] if isinstance(loaded, dict) else loaded
        return _named(rows, Path(path).name if os.path.isdir(path) else path, where)
    except InputError:
        raise
    except Exception as error:
        # what the loaders raise has no common base class; all of it is about this input
        what = one_line(error)
        raise InputError(f"{where}: a datasets folder or a hub name, got {path}: {what}") from error

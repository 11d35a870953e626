"""Read the user's documents from files or a dataset, and split them into pieces.

A document is identified by the digest of its text: a renamed or moved file is not a new document, a
changed one is.
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
"""Columns of a row that may hold its text; the first of them that the row has is used."""
SEPARATORS = (
    re.compile(r"\n\s*\n"),
    re.compile(r"\n"),
    re.compile(r"(?<=[.!?])\s+"),
    re.compile(r"\s+"),
)
"""Where a document is split, in order of preference: paragraphs, lines, sentences, words."""


@dataclass(frozen=True)
class Source:
    """One document as it was read.

    `name` is the file's path inside the folder, followed by #<row> for a file of rows.
    """

    name: str
    text: str

    @property
    def digest(self) -> str:
        """BLAKE2b of the text, 128 bits in hex."""
        return hashlib.blake2b(self.text.encode(), digest_size=16).hexdigest()


@dataclass(frozen=True)
class DocumentQuestion:
    """A question about the documents. `document` names the one that answers it; empty: any."""

    question: str
    answer: str
    document: str = ""


@dataclass(frozen=True)
class ScanResult:
    """The documents of a folder, file or dataset. `left_out`: name -> why it is not used."""

    sources: tuple[Source, ...]
    left_out: dict[str, str]


def scan(path: str, where: str) -> ScanResult:
    """Read every document at `path`: a folder with txt, md, jsonl and parquet files (except hidden
    ones and questions.jsonl), one such file, a folder saved by `datasets`, or a hub dataset's train
    split. Empty documents and duplicate texts are left out.

    `where` names the config key in errors. Raises InputError for what cannot be read, and if no
    document is left.
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
    location = Path(os.path.expanduser(path))
    if os.path.isdir(location):
        dataset_files = ("dataset_info.json", "dataset_dict.json")
        if any(os.path.isfile(location / name) for name in dataset_files):
            return _dataset(str(location), where), {}
        return _folder(location, where)
    if os.path.exists(location):
        if location.suffix.lower() not in TEXT_FILES + ROW_FILES:
            raise InputError(f"{where}: a txt, md, jsonl or parquet file, got {path}")
        return _read(location, location.name, where), {}
    if HUB_NAME.fullmatch(path):
        return _dataset(str(location), where), {}
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


def questions(path: str | None, folder: str, where: str) -> tuple[DocumentQuestion, ...]:
    """Return the questions of a jsonl file with rows {"question", "answer"[, "document"]}.

    `path` None: the file is questions.jsonl in `folder`, and may be missing. `where` names the
    config key in errors. Raises InputError for a file that cannot be read and for a row of another
    form.
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
        out.append(DocumentQuestion(*(v.strip() for v in values)))
    return tuple(out)


def pieces(text: str, max_tokens: int, count_tokens: Callable[[str], int]) -> list[str]:
    """Split a text greedily into pieces of at most `max_tokens` tokens, at the best separators.

    A single word of more tokens is split between characters.
    """
    text = text.strip()
    return list(_split(text, count_tokens(text), max_tokens, count_tokens, 0))


def _split(
    text: str, size: int, max_tokens: int, count_tokens: Callable[[str], int], level: int
) -> Iterator[str]:
    """Split at SEPARATORS[level], and at the next levels where a part is still too long.

    `size`: tokens of `text`. Each text is counted once, since counting dominates the time.
    """
    if size <= max_tokens:
        yield text
        return
    if level == len(SEPARATORS):
        step = max(len(text) * max_tokens // (2 * size), 1)
        for start in range(0, len(text), step):
            yield text[start : start + step]
        return
    if not SEPARATORS[level].search(text):
        yield from _split(text, size, max_tokens, count_tokens, level + 1)
        return
    piece = ""
    size = 0

    # Counted as a whole: the sum over its parts may differ by a few tokens.
    def finished(piece: str) -> Iterator[str]:
        return _split(piece, count_tokens(piece), max_tokens, count_tokens, level + 1)

    for part, separator in _parts(text, SEPARATORS[level]):
        part_size = count_tokens(part + separator)
        if piece and size + part_size > max_tokens:
            yield from finished(piece.strip())
            piece = ""
            size = 0
        if not piece and part_size > max_tokens:
            *complete, piece = _split(part, part_size, max_tokens, count_tokens, level + 1)
            yield from complete
            piece = piece + separator
            size = count_tokens(piece)
        else:
            piece = piece + part + separator
            size = size + part_size
    if piece.strip():
        yield from finished(piece.strip())


def _parts(text: str, separator: re.Pattern) -> Iterator[tuple[str, str]]:
    """Yield (part, separator that follows it); the last separator is empty."""
    start = 0
    for match in separator.finditer(text):
        yield text[start : match.start()], match.group()
        start = match.end()
    yield text[start:], ""


def _files(folder: Path) -> Iterator[Path]:
    """Yield the files below a folder, sorted by name, without hidden ones.

    Folders that are links are not followed, so there is no cycle.
    """
    for parent, folders, names in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        yield from (Path(parent) / name for name in sorted(names) if not name.startswith("."))


def _read(file: Path, name: str, where: str) -> list[Source]:
    """Return the documents of one file.

    A row is named by its `id`, else by its text's digest, since its number may change.
    """
    if file.name == QUESTIONS:
        return []
    if file.suffix.lower() in TEXT_FILES:
        return [Source(name, _text(file, where))]
    return _row_sources([row for _, row in _rows(file, where)], name, where)


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
        # Boundary: pyarrow's errors have no common base class; all concern this file.
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


def _row_sources(rows: Iterable[dict[str, Any]], name: str, where: str) -> list[Source]:
    """Return one document per row; `name` is that of the file or dataset."""
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
        return _row_sources(rows, Path(path).name if os.path.isdir(path) else path, where)
    except InputError:
        raise
    except Exception as error:
        # Boundary: the loaders' errors have no common base class; all concern this dataset.
        reason = one_line(error)
        raise InputError(
            f"{where}: a datasets folder or a hub name, got {path}: {reason}"
        ) from error

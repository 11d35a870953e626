"""Read the user's documents from files or a dataset.

A document is identified by the digest of its words: a file that was renamed, moved, re-wrapped or
saved with other line ends is not a new document, a changed one is.
"""

from __future__ import annotations

import hashlib
import os
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from sleep_rl.contracts.errors import InputError, one_line
from sleep_rl.files import nfc, spelled
from sleep_rl.model.shape import HUB_NAME
from sleep_rl.tasks.documents.reading import (
    Unreadable,
    check_text,
    has_rows,
    read_rows,
    read_text,
)
from sleep_rl.tasks.documents.rows import row_text

QUESTIONS = "questions.jsonl"
MOST_REASONS = 3  # in the error of a folder without a readable document
T = TypeVar("T")


@dataclass(frozen=True)
class Source:
    """One document as it was read.

    `name` is the file's path inside the folder, followed by #<row> for a file of rows.
    """

    name: str
    text: str

    @property
    def digest(self) -> str:
        """BLAKE2b of the words, 128 bits in hex."""
        return hashlib.blake2b(words(self.text).encode(), digest_size=16).hexdigest()


@dataclass(frozen=True)
class DocumentQuestion:
    """A question about the documents. `document` names the one that answers it; empty: any.

    `kind`, `choices` and `old_answer` are those of records.Question.
    """

    question: str
    answer: str
    document: str = ""
    kind: str = ""
    choices: tuple[str, ...] = ()
    old_answer: str = ""


@dataclass(frozen=True)
class ScanResult:
    """The documents of a folder, file or dataset. `left_out`: name -> why it is not used; `within`:
    name of the file or dataset, empty for a folder.
    """

    sources: tuple[Source, ...]
    left_out: dict[str, str]
    within: str = ""

    def covers(self, name: str) -> bool:
        """Return whether a document of this name would have been found here: not in another file,
        and not in one that could not be read.
        """
        file = name.partition("#")[0]
        if self.within and self.within not in (name, file):
            return False
        return name not in self.left_out and file not in self.left_out


def words(text: str) -> str:
    """Return a text with normalised white space and Unicode form, which other programs may
    change.
    """
    return " ".join(unicodedata.normalize("NFC", text).split())


def lookup(named: Iterable[tuple[str, T]]) -> Callable[[str], T | None]:
    """Return a function from a name to its value, None for an unknown one.

    A name equals the same one in another Unicode form, as another system wrote it; one in the same
    form comes first. Of equal names the last counts.
    """
    exact = dict(named)
    normalised = {nfc(name): value for name, value in exact.items()}
    return lambda name: exact.get(name, normalised.get(nfc(name)))


def scan(path: str, where: str) -> ScanResult:
    """Read every document at `path`: a folder with files of reading.KINDS (except hidden ones and
    questions.jsonl), one such file, a folder saved by `datasets`, or a hub dataset's train split.
    Files of a folder that cannot be read, empty documents and duplicate texts are left out.

    `where` names the config key in errors. Raises InputError for a file or dataset that cannot be
    read, and if no document is left.
    """
    sources, left_out, within = _sources(path, where)
    distinct: dict[str, Source] = {}
    for source in sources:
        if not source.text.strip():
            left_out[source.name] = "empty"
        elif source.digest in distinct:
            left_out[source.name] = f"the same text as {distinct[source.digest].name}"
        else:
            distinct[source.digest] = source
    if not distinct:
        reasons = [f"{name}: {why}" for name, why in left_out.items()]
        if len(reasons) > MOST_REASONS:
            reasons[MOST_REASONS:] = [f"and {len(reasons) - MOST_REASONS} more"]
        got = f"{path} ({'; '.join(reasons)})" if reasons else path
        raise InputError(f"{where}: at least one document that is not empty, got none in {got}")
    return ScanResult(tuple(distinct.values()), left_out, within)


def _sources(path: str, where: str) -> tuple[list[Source], dict[str, str], str]:
    """Return the documents at `path`, which files of a folder are left out and why, and the name of
    a file or dataset.
    """
    location = Path(spelled(os.path.expanduser(path)))
    if os.path.isdir(location):
        dataset_files = ("dataset_info.json", "dataset_dict.json")
        if any(os.path.isfile(location / name) for name in dataset_files):
            return _dataset(str(location), where), {}, location.name
        return *_folder(location), ""
    if os.path.exists(location):
        name = _name(Path(location.name))
        try:
            return _read(location, name), {}, name
        except Unreadable as error:
            raise InputError(f"{where}: {location}: {error}") from None
    if HUB_NAME.fullmatch(path):
        return _dataset(str(location), where), {}, path
    raise InputError(
        f"{where}: a folder or file of documents, a datasets folder or a hub name, got {path}: "
        "no such file"
    )


def _folder(folder: Path) -> tuple[list[Source], dict[str, str]]:
    sources = []
    left_out = {}
    for file in _files(folder):
        name = _name(file.relative_to(folder))
        try:
            sources += _read(file, name)
        except Unreadable as error:
            left_out[name] = str(error)
    return sources, left_out


def _name(path: Path) -> str:
    """Return a path as text; bytes that are no UTF-8, which a name may hold, as escapes."""
    return os.fsencode(path.as_posix()).decode("utf-8", "backslashreplace")


def _files(folder: Path) -> Iterator[Path]:
    """Yield the files below a folder, sorted by name, without hidden ones and questions, and the
    folders that are links: they are not followed, so there is no cycle.
    """
    for parent, folders, names in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        yield from (Path(parent, name) for name in folders if os.path.islink(Path(parent, name)))
        documents = (name for name in names if not name.startswith(".") and name != QUESTIONS)
        yield from (Path(parent, name) for name in sorted(documents))


def _read(file: Path, name: str) -> list[Source]:
    """Return the documents of one file. Raises Unreadable."""
    if os.path.isdir(file):
        raise Unreadable("a link to a folder, which is not followed")
    if has_rows(file):
        return _row_sources([row for _, row in read_rows(file)], name)
    return [Source(name, read_text(file))]


def _row_sources(rows: Iterable[Mapping[str, Any]], name: str) -> list[Source]:
    """Return one document per row; `name` is that of the file or dataset. Raises Unreadable.

    A row is named by its `id`, else by its text's digest, since its number may change.
    """
    out = []
    for number, row in enumerate(rows, start=1):
        try:
            text = check_text(row_text(row))
        except ValueError as error:
            raise Unreadable(f"row {number}: {error}") from None
        label = row.get("id")
        suffix = "" if label is None else " ".join(str(label).split())[:80]
        out.append(Source(f"{name}#{suffix or Source(name, text).digest[:8]}", text))
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
        return _row_sources(rows, Path(path).name if os.path.isdir(path) else path)
    except Unreadable as error:
        raise InputError(f"{where}: {path}: {error}") from None
    except Exception as error:
        # Boundary: the loaders' errors have no common base class; all concern this dataset.
        reason = one_line(error)
        raise InputError(
            f"{where}: a datasets folder or a hub name, got {path}: {reason}"
        ) from error

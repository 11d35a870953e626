"""The journal of a run, a JSONL file from which console, W&B and report are derived.

One line is one record: `{"t": unix seconds, "kind": "seed", ...}`. `sleep_rl.journal.schema`
declares every kind and field.
"""

from __future__ import annotations

import json
import math
import os
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol

from sleep_rl.config.secrets import masked, without_secrets
from sleep_rl.contracts.errors import InputError, RunError, one_line
from sleep_rl.files import content
from sleep_rl.journal.schema import Entry, Record, Torn, parse


class Sink(Protocol):
    """A consumer of the records while they are written. A sink that raises is switched off; the run
    continues.
    """

    name: str
    failed: str
    """Why it cannot be used; empty: it can."""

    def log(self, record: Record) -> None:
        """Process the next record."""

    def recall(self, records: list[Record]) -> None:
        """Reset to exactly these records, since a resume has truncated the journal."""

    def close(self) -> None:
        """Flush and release everything."""


class Journal:
    """Appends records to `path`, each flushed at once, and forwards them to `sinks`. Thread-safe.

    Raises RunError if the file cannot be written, which ends the run.
    """

    def __init__(
        self, path: str | Path, sinks: Iterable[Sink] = (), keep: int | None = None
    ) -> None:
        """Open or create the journal. `keep`: size in bytes to which an existing one is truncated,
        for a resume; None: not at all.
        """
        self.path = Path(path)
        self._lock = threading.RLock()
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            # unbuffered, so that no record is lost; closed by `close`
            self._file = open(self.path, "a+b", buffering=0)  # noqa: SIM115
            if keep is not None:
                # truncate would pad it with zeros
                if os.fstat(self._file.fileno()).st_size < keep:
                    raise RunError(
                        f"the run's journal {self.path}: expected at least the {keep} bytes that "
                        "its checkpoint refers to, got less; it was not changed"
                    )
                self._file.truncate(keep)
            size = os.fstat(self._file.fileno()).st_size
            if size and os.pread(self._file.fileno(), 1, size - 1) != b"\n":
                # end the torn line of an earlier crash
                self._write(b"\n")
        except OSError as error:
            raise self._unwritable(error) from error
        self._sinks: list[Sink] = []
        for sink in sinks:
            if sink.failed:
                self.log("sink_failed", sink=sink.name, reason=one_line(sink.failed, None))
            else:
                self._sinks.append(sink)
        if keep:
            self._recall()

    def log(self, kind: str, /, **values: Any) -> None:
        """Append one record of `kind` with fields `values`.

        NaN and infinity become null and are named in `nonfinite`; secrets become ***. Raises
        TypeError for a value that JSON cannot represent.
        """
        if kind == "run" and isinstance(values.get("config"), Mapping):
            values["config"] = without_secrets(values["config"])
        nonfinite: list[str] = []
        record = {
            "t": time.time(),
            "kind": kind,
            **{k: _plain(v, k, nonfinite) for k, v in values.items()},
        }
        if nonfinite:
            record["nonfinite"] = nonfinite
        line = (
            json.dumps(record, ensure_ascii=False, allow_nan=False).encode("utf-8", "replace")
            + b"\n"
        )
        with self._lock:
            try:
                self._write(line)
            except OSError as error:
                raise self._unwritable(error) from error
            self._forward(lambda sink: sink.log(record))

    def size(self) -> int:
        """Sync the file and return its size in bytes, from which a resumed run continues."""
        with self._lock:
            os.fsync(self._file.fileno())
            return os.fstat(self._file.fileno()).st_size

    def cut(self, size: int) -> None:
        """Truncate the journal to `size` bytes and reset the sinks; the dropped steps will run and
        be logged again.
        """
        with self._lock:
            try:
                self._file.truncate(size)
            except OSError as error:
                raise self._unwritable(error) from error
            self._recall()

    def close(self) -> None:
        """Close the sinks in reverse order, so that the console, the first one, can report failures
        of the others; then the file.
        """
        with self._lock:
            while self._sinks:
                sink = self._sinks.pop()
                try:
                    sink.close()
                except Exception as error:  # noqa: BLE001 (as in _forward)
                    self._report(sink, error)
            self._file.close()

    def _write(self, line: bytes) -> None:
        # a raw write may be partial, e.g. when the disk is full; the next one then raises
        while line:
            line = line[self._file.write(line) :]

    def _recall(self) -> None:
        records = read(self.path)
        self._forward(lambda sink: sink.recall(records))

    def _forward(self, call: Callable[[Sink], None]) -> None:
        for sink in tuple(self._sinks):
            try:
                call(sink)
            # Boundary: a sink that fails must not end the run.
            except Exception as error:  # noqa: BLE001
                self._sinks.remove(sink)
                self._report(sink, error)

    def _report(self, sink: Sink, error: Exception) -> None:
        self.log(
            "sink_failed", sink=sink.name, reason=one_line(f"{type(error).__name__}: {error}", None)
        )

    def _unwritable(self, error: OSError) -> RunError:
        return RunError(f"cannot write the run's journal {self.path}: {error.strerror or error}")


def read(path: str | Path) -> list[Record]:
    """Return all records of a journal; an invalid line becomes `{"kind": "torn", "line": number,
    "text": ...}`. Raises InputError for a file that cannot be read.
    """
    return [record for record, _ in _lines(path)]


def read_entries(path: str | Path) -> list[Entry]:
    """Return all records of a journal in their typed form, invalid lines as `Torn`.

    Raises InputError for a file that cannot be read.
    """
    return [entry for _, entry in _lines(path)]


def _lines(path: str | Path) -> Iterator[tuple[Record, Entry]]:
    try:
        lines = content(path).split(b"\n")
    except (OSError, ValueError) as error:
        raise InputError(
            f"cannot read metrics: {getattr(error, 'strerror', None) or error}: {path}"
        ) from error
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
            if not isinstance(record, dict) or not isinstance(record.get("kind"), str):
                raise ValueError("no record")
            entry = parse(record)
        except (ValueError, RecursionError):
            # also UnicodeDecodeError: a crash may split a character
            text = line[:80].decode("utf-8", "replace")
            record = {"kind": "torn", "line": number, "text": text}
            entry = Torn(t=0.0, line=number, text=text)
        yield record, entry


def _plain(value: Any, name: str, nonfinite: list[str]) -> Any:
    """Return the value as JSON can represent it; append the dotted name of each number that is not
    finite to `nonfinite`.
    """
    if isinstance(value, Mapping):
        return {str(k): _plain(v, f"{name}.{k}", nonfinite) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(v, f"{name}.{i}", nonfinite) for i, v in enumerate(value)]
    if isinstance(value, float) and not math.isfinite(value):
        nonfinite.append(name)
        value = None
    elif isinstance(value, str):
        value = masked(value)
    elif isinstance(value, os.PathLike):
        value = os.fspath(value)
    elif hasattr(value, "item"):  # a scalar of numpy or torch
        value = _plain(value.item(), name, nonfinite)
    elif not (value is None or isinstance(value, (bool, int, float))):
        raise TypeError(
            f"metric {name!r}: expected a number, text, list or dict, got {type(value).__name__}"
        )
    return value

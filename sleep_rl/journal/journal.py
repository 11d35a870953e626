"""The record of a run: one JSONL file is the truth, everything else (console, W&B, report) is a
reader of it.

One line is one record: `{"t": unix seconds, "kind": "seed", ...}`. `METRICS` names every kind and
field.
"""

from __future__ import annotations

import json
import math
import os
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, Protocol

from sleep_rl.config.secrets import masked, without_secrets
from sleep_rl.contracts.errors import InputError, RunError
from sleep_rl.files import content
from sleep_rl.journal.schema import fault

Record = dict[str, Any]


class Sink(Protocol):
    """Something that follows the journal. Whatever it raises switches it off and never stops the
    run.
    """

    name: str
    failed: str  # why it cannot be used; empty while it works

    def log(self, record: Record) -> None: ...

    def recall(self, records: list[Record]) -> None:
        """These records stand, and nothing else that was told: what follows goes on behind them."""

    def close(self) -> None: ...


class Journal:
    """Appends records to `path`, each flushed at once, and forwards them to `sinks`. Thread-safe.

    Raises RunError when the file cannot be written: a run without its record is not worth going on
    with.
    """

    def __init__(
        self, path: str | Path, sinks: Iterable[Sink] = (), keep: int | None = None
    ) -> None:
        """`keep`: bytes of an earlier record that stand; what follows them is cut off and will be
        written again.
        """
        self.path = Path(path)
        self._lock = threading.RLock()
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            # unbuffered: nothing to flush, nothing to lose
            self._file = open(self.path, "a+b", buffering=0)
            if keep is not None:
                # truncate would fill it up with zeros
                if os.fstat(self._file.fileno()).st_size < keep:
                    raise RunError(
                        f"the run's record {self.path}: expected at least the {keep} "
                        "bytes that its checkpoint "
                        "knows of, got less; nothing was changed"
                    )
                self._file.truncate(keep)
            size = os.fstat(self._file.fileno()).st_size
            if size and os.pread(self._file.fileno(), 1, size - 1) != b"\n":
                # or the first record would be glued to the torn line of the crash before
                self._write(b"\n")
        except OSError as error:
            raise self._unwritable(error) from error
        self._sinks: list[Sink] = []
        for sink in sinks:
            if sink.failed:
                self.log("sink_failed", sink=sink.name, reason=_one_line(sink.failed))
            else:
                self._sinks.append(sink)
        if keep:
            self._recall()

    def log(self, kind: str, /, **values: Any) -> None:
        """Appends one record. NaN and infinity become null, named in `nonfinite`; secrets become
        ***.
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
            self._tell(lambda sink: sink.log(record))

    def size(self) -> int:
        """Bytes written and on the disk: where a continued run goes on."""
        with self._lock:
            os.fsync(self._file.fileno())
            return os.fstat(self._file.fileno()).st_size

    def cut(self, keep: int) -> None:
        """Takes back every record behind the first `keep` bytes: what they tell of will be done,
        and told, again.
        """
        with self._lock:
            try:
                self._file.truncate(keep)
            except OSError as error:
                raise self._unwritable(error) from error
            self._recall()

    def close(self) -> None:
        """Closes the sinks, the last one first (the console, given first, hears of the others),
        then the file.
        """
        with self._lock:
            while self._sinks:
                sink = self._sinks.pop()
                try:
                    sink.close()
                except Exception as error:  # as in `log`
                    self._report(sink, error)
            self._file.close()

    def _write(self, line: bytes) -> None:
        # a raw write may stop short, e.g. when the disk fills up; the next one then raises
        while line:
            line = line[self._file.write(line) :]

    def _recall(self) -> None:
        records = read(self.path)
        self._tell(lambda sink: sink.recall(records))

    def _tell(self, what: Callable[[Sink], None]) -> None:
        for sink in tuple(self._sinks):
            try:
                what(sink)
            except Exception as error:  # any: a broken dashboard must not cost a night of training
                self._sinks.remove(sink)
                self._report(sink, error)

    def _report(self, sink: Sink, error: Exception) -> None:
        self.log(
            "sink_failed", sink=sink.name, reason=_one_line(f"{type(error).__name__}: {error}")
        )

    def _unwritable(self, error: OSError) -> RunError:
        return RunError(f"cannot write the run's record {self.path}: {error.strerror or error}")


def read(path: str | Path) -> list[Record]:
    """All records of a journal. A line that is none becomes `{"kind": "torn", "line": number,
    "text": ...}`.
    """
    try:
        lines = content(path).split(b"\n")
    except (OSError, ValueError) as error:
        raise InputError(
            f"cannot read metrics: {getattr(error, 'strerror', None) or error}: {path}"
        ) from error
    records: list[Record] = []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
            valid = (
                isinstance(record, dict)
                and isinstance(record.get("kind"), str)
                and not fault(record)
            )
        except (ValueError, RecursionError):
            # also UnicodeDecodeError: the crash cut a character in two
            valid = False
        text = line[:80].decode("utf-8", "replace")
        records.append(record if valid else {"kind": "torn", "line": number, "text": text})
    return records


def _plain(value: Any, name: str, nonfinite: list[str]) -> Any:
    """The value as JSON knows it; appends to `nonfinite` the dotted name of each number that JSON
    does not know.
    """
    if isinstance(value, Mapping):
        return {str(k): _plain(v, f"{name}.{k}", nonfinite) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(v, f"{name}.{i}", nonfinite) for i, v in enumerate(value)]
    if isinstance(value, float) and not math.isfinite(value):
        nonfinite.append(name)
        return None
    if isinstance(value, str):
        return masked(value)
    if value is None or isinstance(value, (bool, int, float)):
        return value
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if hasattr(value, "item"):  # a scalar of numpy or torch
        return _plain(value.item(), name, nonfinite)
    raise TypeError(
        f"metric {name!r}: expected a number, text, list or dict, got {type(value).__name__}"
    )


def _one_line(text: str) -> str:
    return " ".join(text.split())

"""The record of a run: one JSONL file is the truth, everything else (console, W&B, report) is a
reader of it.

One line is one record: `{"t": unix seconds, "kind": "seed", ...}`. `METRICS` names every kind and
field.
"""

from __future__ import annotations

import itertools
import json
import math
import os
import re
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from sleep_rl.config.secrets import masked, without_secrets
from sleep_rl.contracts.errors import InputError, RunError
from sleep_rl.files import content
from sleep_rl.journal.schema import METRICS, fault

Record = dict[str, Any]

KNOWN = "known"
"""Name of the column that asks about what the base model knew before the first day."""

METHODS = {"sleep": "sleep", "sft": "plain SFT", "joint": "joint upper bound"}
"""Methods in the order of every table, with the name that people read."""


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


def undocumented(records: Iterable[Record]) -> list[str]:
    """Names `kind.field` that METRICS does not explain."""
    return sorted(
        {
            f"{r['kind']}.{name}"
            for r in records
            for name in r.keys() - METRICS.get(r["kind"], {}).keys() - {"t", "kind", "nonfinite"}
        }
    )


@dataclass
class Retention:
    """What `evaluate` records say together: per method the accuracies after each night. A newer
    record wins.
    """

    records: dict[str, dict[str, Record]] = field(default_factory=dict)  # method -> after -> record
    columns: list[str] = field(default_factory=list)  # known, then the days in order of appearance
    # first measurement per column: before sleep
    open_book: dict[str, float] = field(default_factory=dict)

    def add(self, record: Record) -> None:
        """Takes one `evaluate` record; one with an empty row measured the open book alone."""
        if record["row"]:
            self.records.setdefault(record["method"], {})[record["after"]] = record
        for column in (*record["row"], *(record.get("open_book") or {})):
            if column not in self.columns:
                self.columns.insert(0 if column == KNOWN else len(self.columns), column)
        for column, value in (record.get("open_book") or {}).items():
            if value is not None:
                self.open_book.setdefault(column, value)

    @classmethod
    def of(cls, records: Iterable[Record]) -> Retention:
        retention = cls()
        for record in records:
            if record["kind"] == "evaluate":
                retention.add(record)
        return retention

    @property
    def methods(self) -> list[str]:
        """Methods that were evaluated beyond the base model, in the order of METHODS, unknown ones
        last.
        """
        found = [m for m, afters in self.records.items() if set(afters) != {"base"}]
        return [m for m in METHODS if m in found] + [m for m in found if m not in METHODS]

    @property
    def base(self) -> Record | None:
        """The evaluation of the base model: the same model for every method, so whoever measured
        it.
        """
        return next((afters["base"] for afters in self.records.values() if "base" in afters), None)

    def last(self, method: str) -> Record:
        """The newest evaluation of a method."""
        return max(self.records[method].values(), key=lambda r: r["t"])

    def all_days(self, method: str) -> float | None:
        """Accuracy over the questions of all days together, after the last night; None where a day
        was not asked about or nobody counted the questions.
        """
        record = self.last(method)
        days, counts = [c for c in self.columns if c != KNOWN], record.get("n") or {}
        if not days or any(record["row"].get(c) is None or not counts.get(c) for c in days):
            return None
        return sum(record["row"][c] * counts[c] for c in days) / sum(counts[c] for c in days)

    def future(self, after: str, column: str) -> bool:
        """Whether the column's day was not lived yet."""
        lived = nights(after)
        days = [c for c in self.columns if c != KNOWN]
        return column in days and lived is not None and days.index(column) >= lived


def nights(after: str) -> int | None:
    """How many nights an `after` label counts: "base" 0, "night 3" 3; None when it does not say."""
    number = re.search(r"(\d{1,9})\s*$", after)
    return int(number.group(1)) if number else 0 if after == "base" else None


def on_one_axis(records: Iterable[Record]) -> tuple[list[Record], tuple[tuple[float, str], ...]]:
    """Records with `x`, their step counted over all nights (or days), and `part`, their night;
    where each one begins.

    A step that was run again, after a crash, replaces the first attempt.
    """
    nights_by_step: dict[Any, dict[int, Record]] = {}
    for record in records:
        nights_by_step.setdefault(record.get("night", record.get("day")), {})[record["step"]] = (
            record
        )
    placed: list[Record] = []
    begins: list[tuple[float, str]] = []
    offset = 0
    for night, by_step in nights_by_step.items():
        placed += [by_step[step] | {"x": offset + step, "part": night} for step in sorted(by_step)]
        begins.append((offset, f"night {night}"))
        offset += max(max(by_step), next(reversed(by_step.values())).get("steps") or 0)
    return placed, tuple(begins)


def course(records: Iterable[Record], x: str, y: str, most: int = 200) -> list[tuple[float, float]]:
    """Curve: means of neighbours if over `most` records, never across nights; NaN is a gap; empty
    without values.
    """
    records = list(records)
    every = math.ceil(len(records) / most) or 1
    points: list[tuple[float, float]] = []
    for _, night in itertools.groupby(records, lambda r: r.get("part")):
        points += [(math.nan, math.nan)] if points else []
        group = list(night)
        for near in (group[i : i + every] for i in range(0, len(group), every)):
            values = [r[y] for r in near if r.get(y) is not None]
            points.append(
                (near[len(near) // 2][x], sum(values) / len(values) if values else math.nan)
            )
    return points if any(not math.isnan(value) for _, value in points) else []


def wilson(share: float, count: int, z: float = 1.96) -> tuple[float, float]:
    """95 % interval of a share of `count` yes-or-no answers."""
    middle, scale = share + z * z / (2 * count), 1 + z * z / count
    reach = z * math.sqrt(max(share * (1 - share), 0) / count + z * z / (4 * count * count))
    return max(0.0, (middle - reach) / scale), min(1.0, (middle + reach) / scale)


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

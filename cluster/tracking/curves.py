"""Translate journal records into W&B updates: numbers over the x axis of their phase (declared in
`sleep_rl.journal.panels`), tables, and the run's summary.

The state is a pure function of the records, so that a resumed run continues after its kept ones.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field

from sleep_rl.journal.panels import axis_of, phase_of
from sleep_rl.journal.retention import BASE, Retention, nights_lived
from sleep_rl.journal.schema import (
    Done,
    Entry,
    Evaluation,
    Failed,
    InvalidRecord,
    Record,
    Saved,
    parse,
)

MATRIX = "retention/matrix"
TABLES = {
    "samples/answers": ("when", "day", "question", "prompt", "answer", "completion", "score"),
    "samples/written": ("night", "sender", "day", "text"),
    "samples/dreams": (
        "night",
        "round",
        "task",
        "number",
        "text",
        "importance",
        "kept",
        "tau_before",
        "reward",
        "gain",
        "held_out",
        "reason",
    ),
}
"""Table -> columns: fields of `completion`, `written` and `dream` records."""
MAX_ROWS = 5000
"""Of a table, which is sent whole each time."""
_ROW_OF = {"completion": "samples/answers", "written": "samples/written", "dream": "samples/dreams"}
_SENT_AFTER = {
    "saved": "samples/answers",
    "done": "samples/answers",
    "written": "samples/written",
    "dreamed": "samples/dreams",
}
_NO_CURVE = {"t", "step", "steps", "round", "sender", "version", "number"}
"""Fields without a curve: time and counters, which the x axes replace."""
_GROUPS = {
    "row": "{}",
    "deeper": "{}",
    "kinds": "{}",
    "open_book": "open book",
    "nll": "{} nll",
    "choice": "{} choice",
    "held_out_row": "{} held out",
    "as_base": "{} as base",
    "old_answers": "{} old answers",
    "probes": "{} probe",
}
"""Field with a number per column -> group of its curves, in which {} is the method."""
_COUNTS = ("wake", "seed", "policy", "dreamed", "baseline")
"""Kinds whose records advance the x axis of their phase by one."""


@dataclass
class WandbUpdate:
    """The W&B update of one record: numbers (with their x axis), tables with all their rows, and
    changed summary values.
    """

    numbers: dict[str, float] = field(default_factory=dict)
    phase: str = ""
    """Phase of the numbers; empty if there are none."""
    tables: dict[str, list[list]] = field(default_factory=dict)
    summary: dict[str, float | str] = field(default_factory=dict)
    matrix: bool = False
    """Whether the retention matrix changed."""
    memory: str = ""
    """Path of a night's stored memory, relative to the run's folder."""


class Curves:
    """The state of W&B's curves and tables; `take` gets the records of a run in their order."""

    def __init__(self, records: Iterable[Record] = ()) -> None:
        self.retention = Retention()
        self.rows = 0
        """Number of records so far with a number, a table or a matrix: W&B's step."""
        self._position: Counter[str] = Counter()
        """Phase -> current value of its x axis."""
        self._rows: dict[str, list[list]] = {name: [] for name in TABLES}
        self._unsent: set[str] = set()
        """Tables with rows that have not been sent."""
        self._failures = 0
        self._start: float | None = None
        for record in records:
            self.take(record)

    def take(self, record: Record) -> WandbUpdate:
        """Return the W&B update of the next record; an empty one for a record that does not
        parse.
        """
        kind = record["kind"]
        try:
            entry = parse(record)
        except InvalidRecord:  # also a torn line, which has no time
            return WandbUpdate()
        self._start = entry.t if self._start is None else self._start
        phase = phase_of(entry)
        numbers: dict[str, float] = {}
        if phase:
            if kind in _COUNTS:
                self._position[phase] += 1
            prefix = phase if kind in (phase, "baseline") else f"{phase}/{kind}"
            numbers = {f"{prefix}/{name}": value for name, value in _numbers(record).items()}
        if numbers:
            numbers[axis_of(phase)] = self._x(phase, entry)
        self._keep_rows(record)
        tables: dict[str, list[list]] = {}
        if (table := _SENT_AFTER.get(kind)) in self._unsent:
            tables[table] = self._rows[table]
            self._unsent.discard(table)
        is_matrix = isinstance(entry, Evaluation) and entry.after != BASE and bool(entry.row)
        update = WandbUpdate(
            numbers,
            phase if numbers else "",
            tables,
            self._summary(entry),
            is_matrix,
            (entry.path or "") if isinstance(entry, Saved) else "",
        )
        if numbers or tables or is_matrix:
            self.rows += 1
        return update

    def _x(self, phase: str, entry: Entry) -> float:
        if phase == "evaluate":
            return nights_lived(entry.after) or 0
        if phase == "workers":
            return (entry.t - self._start) / 60
        return self._position[phase]

    def _keep_rows(self, record: Record) -> None:
        table = _ROW_OF.get(record["kind"])
        if table is None:
            return
        rows = [record]
        if record["kind"] == "written":
            rows = [record | {"text": text} for text in record.get("examples") or ()]
        self._rows[table] += [[row.get(column) for column in TABLES[table]] for row in rows]
        del self._rows[table][:-MAX_ROWS]
        self._unsent.add(table)

    def _summary(self, entry: Entry) -> dict[str, float | str]:
        """Return the values of the run's summary that an entry changes."""
        match entry:
            case Evaluation():
                self.retention.add(entry)
                if entry.after == BASE or not entry.row:
                    return {}
                method = f"retention/{entry.method}"
                accuracies = {c: v for c, v in entry.row.items() if v is not None}
                summary = {f"{method}/{c}": v for c, v in accuracies.items()}
                return summary | {f"{method}/after": entry.after}
            case Failed():
                self._failures += 1 if entry.count is None else entry.count
                return {"failures": self._failures}
            case Done():
                fields = {
                    "seconds": entry.seconds,
                    "status": entry.status,
                    "reason": entry.reason,
                }
                return {f"done/{k}": v for k, v in fields.items() if v is not None}
        return {}


def _numbers(record: Record) -> dict[str, float]:
    """Return name -> number of a record's fields, including those outside the schema; accuracies by
    method (or open book) and column.
    """
    numbers: dict[str, float] = {}
    for name, value in record.items():
        if name in _GROUPS:
            group = _GROUPS[name].format(record.get("method") or record.get("context", ""))
            scores = {column: v for column, v in (value or {}).items() if v is not None}
            numbers |= {f"{group}/{column}": v for column, v in scores.items()}
        elif (
            name not in _NO_CURVE
            and isinstance(value, (int, float))
            and not isinstance(value, bool)
        ):
            numbers[name] = value
    return numbers

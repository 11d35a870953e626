"""What W&B is told of each journal record: numbers on the axis of their phase, tables, and the
run's summary.

Pure: the same records give the same curves, whoever hears them, so a resumed run goes on where its
kept records end.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field

from sleep_rl.journal.journal import Record
from sleep_rl.journal.retention import Retention, nights_lived

AXES = {
    "wake": "day",
    "consolidate": "step",
    "dream": "step",
    "evaluate": "night",
    "sft": "step",
    "joint": "step",
    "workers": "minutes",
}
"""Phase -> its x axis, `<phase>/<axis>`. `day`: days lived; `step`: optimizer steps of the phase
over all nights (of dreaming also its rounds); `night`: nights lived, 0 is the base model;
`minutes`: since the run began.
"""
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
MOST_ROWS = 5000  # of a table: a table is sent whole each time
_ROW_OF = {"completion": "samples/answers", "written": "samples/written", "dream": "samples/dreams"}
_SHOWN_AT = {
    "saved": "samples/answers",
    "done": "samples/answers",
    "written": "samples/written",
    "dreamed": "samples/dreams",
}
# counters that the axes stand for
_NO_CURVE = {"t", "step", "steps", "round", "sender", "version", "number"}
_PHASES = {
    "wake": "wake",
    "evaluate": "evaluate",
    "dreamed": "dream",
    "policy": "dream",
    "tried": "dream",
    "sample": "workers",
    "push": "workers",
    "scaled": "workers",
}
_CONSOLIDATES = ("written", "seed", "flow", "night")
_COUNTS = ("wake", "seed", "policy", "dreamed", "baseline")  # kinds that move their phase's axis on


@dataclass
class WandbUpdate:
    """Of one record: curves (with their axis), tables with all their rows, and what the summary
    says from here on.
    """

    numbers: dict[str, float] = field(default_factory=dict)
    tables: dict[str, list[list]] = field(default_factory=dict)
    summary: dict[str, float | str] = field(default_factory=dict)
    matrix: bool = False  # the retention matrix changed
    memory: str = ""  # the memory after a night, from the run's folder


class Curves:
    """Takes the records of a run in their order."""

    def __init__(self, records: Iterable[Record] = ()) -> None:
        self.retention = Retention()
        # records so far of which there is something to see on an axis, in a table or a picture
        self.rows = 0
        self._at: Counter[str] = Counter()  # phase -> where its axis stands
        self._rows: dict[str, list[list]] = {name: [] for name in TABLES}
        self._unseen: set[str] = set()  # tables with rows that were not told
        self._failures = 0
        self._began: float | None = None
        for record in records:
            self.take(record)

    def take(self, record: Record) -> WandbUpdate:
        """What is to be told of the next record."""
        kind, told = record["kind"], WandbUpdate()
        if kind == "torn":
            return told
        self._began = record["t"] if self._began is None else self._began
        if phase := phase_of(record):
            if kind in _COUNTS:
                self._at[phase] += 1
            if numbers := _numbers(record):
                axis = f"{phase}/{AXES[phase]}"
                told.numbers = {f"{_prefix(phase, kind)}/{k}": v for k, v in numbers.items()}
                told.numbers[axis] = self._x(phase, record)
        self._keep_rows(record)
        if (table := _SHOWN_AT.get(kind)) in self._unseen:
            told.tables[table] = self._rows[table]
            self._unseen.discard(table)
        self._summarize(record, told)
        self.rows += bool(told.numbers or told.tables or told.matrix)
        return told

    def _x(self, phase: str, record: Record) -> float:
        if phase == "evaluate":
            return nights_lived(record["after"]) or 0
        return (record["t"] - self._began) / 60 if phase == "workers" else self._at[phase]

    def _keep_rows(self, record: Record) -> None:
        table = _ROW_OF.get(record["kind"])
        if table is None:
            return
        rows = (
            [record | {"text": text} for text in record.get("examples", ())]
            if record["kind"] == "written"
            else [record]
        )
        self._rows[table] += [[row.get(column) for column in TABLES[table]] for row in rows]
        del self._rows[table][:-MOST_ROWS]
        self._unseen.add(table)

    def _summarize(self, record: Record, told: WandbUpdate) -> None:
        kind = record["kind"]
        if kind == "evaluate":
            self.retention.add(record)
            if record["after"] != "base" and record["row"]:
                told.matrix, method = True, f"retention/{record['method']}"
                told.summary = {
                    f"{method}/{c}": v for c, v in record["row"].items() if v is not None
                }
                told.summary[f"{method}/after"] = record["after"]
        elif kind == "failure":
            self._failures += record.get("count", 1)
            told.summary["failures"] = self._failures
        elif kind == "done":
            told.summary = {
                f"done/{k}": record[k]
                for k in ("seconds", "status", "reason")
                if record.get(k) is not None
            }
        elif kind == "saved":
            told.memory = record["path"]


def phase_of(record: Record) -> str | None:
    """The phase whose axis a record's numbers stand on; None: it has no curves."""
    kind = record["kind"]
    if kind == "baseline":
        return record["method"] if record["method"] in AXES else None
    if kind in _CONSOLIDATES:
        return "dream" if record.get("sender", 0) < 0 else "consolidate"
    return _PHASES.get(kind)


def _prefix(phase: str, kind: str) -> str:
    """ "wake", "consolidate/seed", "sft": the kind stands where a phase has several."""
    return phase if kind in (phase, "baseline") else f"{phase}/{kind}"


def _numbers(record: Record) -> dict[str, float]:
    """The numbers of a record by name; accuracies by method (or open book) and column."""
    numbers: dict[str, float] = {}
    for name, value in record.items():
        if name in ("row", "forms", "open_book"):
            group = "open book" if name == "open_book" else record["method"]
            numbers |= {
                f"{group}/{column}": v for column, v in (value or {}).items() if v is not None
            }
        elif (
            name not in _NO_CURVE
            and isinstance(value, (int, float))
            and not isinstance(value, bool)
        ):
            numbers[name] = value
    return numbers

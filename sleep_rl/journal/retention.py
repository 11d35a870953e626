"""The retention matrix: the accuracies of a run's evaluations, as rows and cells that console,
report, live page, model card and summary draw.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum

from sleep_rl.config.evaluation import ALL, CLOSED, GOLD, MEMORY_RETRIEVAL, RETRIEVAL
from sleep_rl.journal.schema import Entry, Evaluation, InContext, Night, WakePhase
from sleep_rl.journal.unlearned import Unlearned

KNOWN = "known"
"""Name of the column for what the base model knew before the first day."""

ALL_DAYS = "all days"
"""Key of what is pooled over the questions of every day."""

CORRECTED = "corrected"
"""Key of the old answers that a changed document corrected."""

METHODS = {
    "sleep": "sleep",
    "sft": "plain SFT",
    "sft_self_written": "SFT, self-written",
    "joint": "joint upper bound",
}
"""Method -> its label, in the order of all tables."""

CONTEXT_ROWS = {
    GOLD: "open book",
    RETRIEVAL: "retrieval",
    ALL: "all documents",
    MEMORY_RETRIEVAL: "sleep with retrieval",
}
"""Contexts in the order of every table, with the name that people read."""

BASE = "base"
"""Label `after` of the evaluation before the first night."""


def label_of_method(method: str) -> str:
    """Return the name of a method that people read; that of an unknown one is its own."""
    return METHODS.get(method, method)


class SourceKind(StrEnum):
    """Kinds of answers that tables show in a row."""

    BASE = "base"
    METHOD = "method"
    CONTEXT = "context"


@dataclass(frozen=True)
class AnswerSource:
    """The answers of one row: those of the base model, of a method, or with documents in context.

    `name`: the method, else the name in evaluate.contexts; `label`: what people read.
    """

    kind: SourceKind
    name: str
    label: str


BASE_MODEL = AnswerSource(SourceKind.BASE, CLOSED, "base model")
"""The base model closed book, as it is before the first night."""


@dataclass(frozen=True)
class Cell:
    """One accuracy. `lived`: whether the column's day was before the evaluation."""

    column: str
    value: float | None
    lived: bool = True
    questions: int | None = None

    @property
    def interval(self) -> tuple[float, float] | None:
        """95 % interval (Wilson); None if the value or the number of questions is missing."""
        if self.value is None or not self.questions:
            return None
        return wilson_interval(self.value, self.questions)


@dataclass(frozen=True)
class RetentionRow:
    """The accuracies of one evaluation. `after` is empty where every column has its own."""

    source: AnswerSource
    after: str
    cells: tuple[Cell, ...]
    drift: float | None = None
    probes: dict[str, float | None] = field(default_factory=dict)

    @property
    def mean(self) -> float | None:
        """Mean over the days before the evaluation; for the base model over all days."""
        days = [
            cell.value
            for cell in self.cells
            if cell.column != KNOWN
            and cell.value is not None
            and (cell.lived or self.after == BASE)
        ]
        return sum(days) / len(days) if days else None


@dataclass
class Retention:
    """All evaluations of a run; a newer one of the same method and night replaces the older."""

    evaluations: dict[str, dict[str, Evaluation]] = field(default_factory=dict)
    """Method -> after -> evaluation."""
    columns: list[str] = field(default_factory=list)
    """`known`, then the days in order of appearance."""
    open_book: dict[str, float] = field(default_factory=dict)
    """Column -> first accuracy with the document in context, before the night."""
    contexts: dict[str, InContext] = field(default_factory=dict)
    """Name in evaluate.contexts -> newest answers."""
    night_seconds: float = 0.0
    """Time of wake and sleep so far, without evaluation."""
    unlearned: Unlearned = field(default_factory=Unlearned)

    @classmethod
    def of(cls, entries: Iterable[Entry]) -> Retention:
        """Collect what tables show of `entries`."""
        retention = cls()
        for entry in entries:
            retention.take(entry)
        return retention

    def take(self, entry: Entry) -> None:
        """Add an entry of any kind; most change nothing."""
        self.unlearned.take(entry)
        if isinstance(entry, Evaluation):
            self.add(entry)
        elif isinstance(entry, InContext):
            self.contexts[entry.context] = entry
        elif isinstance(entry, Night | WakePhase):
            self.night_seconds += entry.seconds or 0.0

    def add(self, evaluation: Evaluation) -> None:
        """Add one evaluation; one with an empty row is open book only."""
        if evaluation.row:
            afters = self.evaluations.setdefault(evaluation.method, {})
            afters[evaluation.after] = evaluation
        open_book = evaluation.open_book or {}
        for column in (*evaluation.row, *open_book):
            if column not in self.columns:
                self.columns.insert(0 if column == KNOWN else len(self.columns), column)
        for column, value in open_book.items():
            if value is not None:
                self.open_book.setdefault(column, value)

    @property
    def methods(self) -> list[str]:
        """Methods evaluated after a night, in the order of METHODS, others last."""
        evaluated = [m for m, afters in self.evaluations.items() if set(afters) != {BASE}]
        unknown = [m for m in evaluated if m not in METHODS]
        return [m for m in METHODS if m in evaluated] + unknown

    @property
    def base(self) -> Evaluation | None:
        """The evaluation of the base model, of any method, since all start from the same model."""
        measured = (afters[BASE] for afters in self.evaluations.values() if BASE in afters)
        return next(measured, None)

    def last(self, method: str) -> Evaluation:
        """Return the newest evaluation of a method."""
        return max(self.evaluations[method].values(), key=lambda evaluation: evaluation.t)

    @property
    def probes(self) -> list[str]:
        """Names of the probes, in order of appearance."""
        evaluations = [e for afters in self.evaluations.values() for e in afters.values()]
        return list(dict.fromkeys(name for e in evaluations for name in e.probes or ()))

    def questions(self) -> dict[str, int]:
        """Return column -> number of questions, from the newest evaluations."""
        counts: dict[str, int] = {}
        for evaluation in filter(None, [self.base, *map(self.last, self.methods)]):
            counts |= evaluation.n or {}
        return counts

    def all_days(self, method: str) -> float | None:
        """Return the accuracy over the pooled questions of all days, after the last night; None if
        a day or its number of questions is missing.
        """
        evaluation = self.last(method)
        days = [c for c in self.columns if c != KNOWN]
        counts = evaluation.n or {}
        if not days or any(evaluation.row.get(c) is None or not counts.get(c) for c in days):
            return None
        return sum(evaluation.row[c] * counts[c] for c in days) / sum(counts[c] for c in days)

    def future(self, after: str, column: str) -> bool:
        """Return whether the column's day is after the evaluation `after`."""
        lived = nights_lived(after)
        days = [c for c in self.columns if c != KNOWN]
        return column in days and lived is not None and days.index(column) >= lived

    # ---- rows of tables

    def sources(self) -> list[AnswerSource]:
        """Return what may have a row, in the order of all tables."""
        methods = [AnswerSource(SourceKind.METHOD, m, label_of_method(m)) for m in self.methods]
        contexts = [
            AnswerSource(SourceKind.CONTEXT, name, label) for name, label in CONTEXT_ROWS.items()
        ]
        return [BASE_MODEL, *methods, *contexts]

    def rows(self) -> list[RetentionRow]:
        """Return the newest accuracies of every source that has some, in the order of `sources`."""
        rows = map(self._newest_row, self.sources())
        return [row for row in rows if row is not None]

    def answers(self, source: AnswerSource) -> Evaluation | InContext | None:
        """Return the newest record with kinds, likelihood and cost; None if there is none."""
        if source.kind is SourceKind.METHOD:
            return self.last(source.name)
        return self.contexts.get(source.name)

    def history(self, method: str) -> list[RetentionRow]:
        """Return the rows of the base model and of every night of one method."""
        source = AnswerSource(SourceKind.METHOD, method, label_of_method(method))
        nights = [e for after, e in self.evaluations.get(method, {}).items() if after != BASE]
        rows = [self._row(BASE_MODEL, self.base)] if self.base else []
        return rows + [self._row(source, evaluation) for evaluation in nights]

    def _newest_row(self, source: AnswerSource) -> RetentionRow | None:
        match source.kind:
            case SourceKind.BASE:
                return self._row(source, self.base) if self.base else None
            case SourceKind.METHOD:
                return self._row(source, self.last(source.name))
            case SourceKind.CONTEXT:
                return self._context_row(source)

    def _context_row(self, source: AnswerSource) -> RetentionRow | None:
        """Return the row with documents in context; each day's open book is that before its
        night.
        """
        if source.name == GOLD:
            cells = self._cells(self.open_book, self.questions())
            return RetentionRow(source, "", cells) if self.open_book else None
        answers = self.contexts.get(source.name)
        if answers is None:
            return None
        return RetentionRow(source, answers.after, self._cells(answers.row, answers.n or {}))

    def _cells(
        self, values: Mapping[str, float | None], counts: Mapping[str, float]
    ) -> tuple[Cell, ...]:
        return tuple(Cell(c, values.get(c), questions=counts.get(c)) for c in self.columns)

    def _row(self, source: AnswerSource, evaluation: Evaluation) -> RetentionRow:
        counts = dict(evaluation.n or {})
        values = dict(evaluation.row)
        asked: set[str] = set()
        if evaluation.after == BASE and CLOSED in self.contexts:
            closed = self.contexts[CLOSED]
            asked = set(closed.row)
            values |= closed.row
            counts |= closed.n or {}
        cells = (
            Cell(
                column,
                values.get(column),
                column in asked or not self.future(evaluation.after, column),
                counts.get(column),
            )
            for column in self.columns
        )
        return RetentionRow(
            source,
            evaluation.after,
            tuple(cells),
            evaluation.drift,
            evaluation.probes or {},
        )


def nights_lived(after: str) -> int | None:
    """Return the number of nights of an `after` label: "base" 0, "night 3" 3, others None."""
    number = re.search(r"(\d{1,9})\s*$", after)
    if number:
        return int(number.group(1))
    return 0 if after == BASE else None


def wilson_interval(share: float, count: int, z: float = 1.96) -> tuple[float, float]:
    """Return the interval of a share of `count` yes-or-no answers (Wilson, 1927); 95 % by
    default.
    """
    middle = share + z * z / (2 * count)
    scale = 1 + z * z / count
    reach = z * math.sqrt(max(share * (1 - share), 0) / count + z * z / (4 * count * count))
    return max(0.0, (middle - reach) / scale), min(1.0, (middle + reach) / scale)

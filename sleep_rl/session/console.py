"""The console output of a run: progress bars on a terminal, plain lines elsewhere."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TextIO

from rich import box
from rich.console import Console as RichConsole
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn
from rich.table import Table
from rich.text import Text

from sleep_rl.journal import measures
from sleep_rl.journal.retention import (
    BASE,
    CONTEXT_ROWS,
    Retention,
    SourceKind,
    label_of_method,
)
from sleep_rl.journal.schema import (
    Done,
    Evaluation,
    Failed,
    InContext,
    Night,
    Record,
    RunStart,
    SinkFailed,
    parse,
)
from sleep_rl.journal.text import clock, decimal
from sleep_rl.session.phase_progress import NumbersColumn, PhaseProgress

Tick = Callable[..., None]
"""`tick(n=1, note="")` reports n more finished units; the note, e.g. the loss, is shown, too."""

PRINTED_KINDS = {"run", "night", "evaluate", "context", "failure", "sink_failed", "done"}
TABLE_KINDS = {"evaluate", "context", "night", "wake", "written", "old_answers"}
"""Kinds of which the tables hold something."""


class Console:
    """The journal sink that prints tables and warnings, and the display of progress.

    `live`: whether `stream` is a terminal, None to detect it. `every`: seconds between two progress
    lines where it is not.
    """

    name = "console"
    failed = ""

    def __init__(
        self, stream: TextIO | None = None, live: bool | None = None, every: float = 5.0
    ) -> None:
        stream = stream or sys.stdout
        if "utf" not in (getattr(stream, "encoding", None) or "utf-8").lower() and hasattr(
            stream, "reconfigure"
        ):
            # a day's name may contain letters that LANG=C cannot encode
            stream.reconfigure(errors="replace")
        if live is None:
            live = stream.isatty() and not RichConsole(file=stream).is_dumb_terminal
        # Width: CI logs have none, and a wrapped table is unreadable. no_color: FORCE_COLOR must
        # not put escape codes into a file.
        self._rich = RichConsole(
            file=stream,
            force_terminal=live,
            width=None if live else 160,
            highlight=False,
            no_color=None if live else True,
        )
        self._live = live
        self._every = every
        self._lock = threading.Lock()
        self._progress: Progress | None = None
        self._open_phases: list[str] = []
        self._retention = Retention()

    # ---- progress

    @contextmanager
    def phase(self, name: str, total: int | None = None) -> Iterator[Tick]:
        """Show the progress of the block, and print its duration at the end.

        Yields `tick`, which may be called from any thread. `total`: number of units; None if it is
        unknown. Phases may be nested.
        """
        state = PhaseProgress(name, total)
        task = self._open(state)

        def tick(n: int = 1, note: str = "") -> None:
            with self._lock:
                state.advance(n, note)
                if self._progress is not None:
                    self._progress.update(task, completed=state.done)
                elif state.due(self._every):
                    self.say(f"{name}: {state.numbers()}")

        ended = "stopped"
        try:
            yield tick
            ended = "done"
        finally:
            self._close(task, name)
            amount = [] if total is None and not state.done else [state.count(), *state.rate()]
            summary = ", ".join(
                [
                    f"{name}: {ended} in {clock(state.seconds())}",
                    *amount,
                    *filter(None, [state.note]),
                ]
            )
            self.say(summary, "dim" if ended == "done" else "bold red")

    def current(self) -> str:
        """Return the name of the innermost open phase; empty if there is none."""
        with self._lock:
            return self._open_phases[-1] if self._open_phases else ""

    def say(self, line: str, style: str = "") -> None:
        """Print one line, above any progress bar; markup in it is not interpreted."""
        self._rich.print(Text(line, style=style), soft_wrap=True)

    def _open(self, state: PhaseProgress) -> int:
        with self._lock:
            self._open_phases.append(state.name)
        if not self._live:
            self.say(
                f"{state.name} ..." if state.total is None else f"{state.name}: 0/{state.total:,}"
            )
            return 0
        with self._lock:
            if self._progress is None:
                self._progress = Progress(
                    SpinnerColumn(style="cyan"),
                    TextColumn("{task.description}", markup=False),
                    BarColumn(bar_width=28),
                    NumbersColumn(),
                    console=self._rich,
                    transient=True,
                )
                self._progress.start()
            return self._progress.add_task(state.name, total=state.total, state=state)

    def _close(self, task: int, name: str) -> None:
        with self._lock:
            self._open_phases.remove(name)
            if self._progress is None:
                return
            self._progress.remove_task(task)
            if not self._progress.task_ids:
                self._progress.stop()
                self._progress = None

    # ---- sink

    def log(self, record: Record) -> None:
        """Print a record if it is of PRINTED_KINDS, and keep what tables hold of it."""
        if record["kind"] in TABLE_KINDS:
            self._retention.take(parse(record))
        if record["kind"] not in PRINTED_KINDS:
            return
        match parse(record):
            case RunStart() as run:
                self.say(f"run: task {run.task}, model {run.model}", "bold")
            case Night() as night:
                self.say(_night(night))
            case Evaluation() as evaluation:
                self._evaluate(evaluation)
            case InContext() as answers:
                self._in_context(answers)
            case Failed() as failed:
                count = 1 if failed.count is None else failed.count
                self.say(f"warning: {failed.where}: {failed.reason} ({count} x)", "yellow")
            case SinkFailed() as failed:
                self.say(
                    f"warning: {failed.sink} is off for the rest of this run: {failed.reason}",
                    "yellow",
                )
            case Done() as done:
                self._done(done)

    def recall(self, records: list[Record]) -> None:
        """Reset the tables to those of `records`, the records of a resumed run."""
        kept = [record for record in records if record["kind"] in TABLE_KINDS]
        self._retention = Retention.of(map(parse, kept))

    def close(self) -> None:
        """Remove the progress bars from the terminal."""
        with self._lock:
            if self._progress is not None:
                self._progress.stop()
                self._progress = None

    def table(self, title: str) -> Table:
        """Return the newest accuracies: one row per method and context, a column for the known, per
        day and probe, and for drift.
        """
        retention = self._retention
        rows = retention.rows()
        drifts = any(row.drift is not None for row in rows)
        table = _empty_table(f"{title}: share of correct answers, closed book")
        more = [*(["drift"] if drifts else []), *retention.probes]
        for column in (*retention.columns, *more):
            table.add_column(Text(column), justify="right", no_wrap=True)
        for row in rows:
            after = "" if row.after == BASE else row.after
            cells = [decimal(cell.value if cell.lived else None) for cell in row.cells]
            cells += [decimal(row.drift, ".3f")] if drifts else []
            cells += [decimal(row.probes.get(name)) for name in retention.probes]
            style = "dim" if row.source.kind is SourceKind.CONTEXT else ""
            table.add_row(Text(row.source.label), Text(after), *cells, style=style)
        return table

    def _print_tables(self, title: str) -> None:
        self._rich.print(self.table(title))
        head, rows = measures.table(self._retention)
        if rows:
            table = _empty_table(f"{title}: by kind of question, likelihood and cost of an answer")
            for column in head[2:]:
                table.add_column(Text(column), justify="right", no_wrap=True)
            for row in rows:
                table.add_row(*map(Text, row))
            self._rich.print(table)
        for line in self._retention.unlearned.lines():
            self.say(line)

    def _evaluate(self, evaluation: Evaluation) -> None:
        after = evaluation.after
        row = evaluation.row
        if evaluation.method == "sleep" and after != BASE and row:
            self._print_tables(f"after {after}")
        else:
            self._say_scores(evaluation)
        drift = evaluation.drift
        if drift is not None and not row:
            self.say(f"{after}: drift from the untouched base {drift:.3f} nats per token")
        if evaluation.drift_alarm:
            self.say(
                f"WARNING {after}: drift from the untouched base is {drift:.3f} nats per token, "
                f"evaluate.max_drift is {evaluation.max_drift:g}",
                "bold yellow",
            )

    def _say_scores(self, evaluation: Evaluation) -> None:
        after = evaluation.after
        row = evaluation.row
        scores = row or evaluation.open_book or {}
        if not scores:  # no questions were asked
            return
        scores = {**scores, **(evaluation.probes or {})}
        accuracies = ", ".join(f"{column} {decimal(value)}" for column, value in scores.items())
        if not row:
            self.say(f"open book, {after}: {accuracies}")
        elif after == BASE:
            self.say(f"base model: {accuracies}")
        else:
            method = label_of_method(evaluation.method)
            self.say(f"{method} after {after}: {accuracies}")

    def _in_context(self, answers: InContext) -> None:
        label = CONTEXT_ROWS.get(answers.context)
        if label and answers.row:
            accuracies = ", ".join(f"{c} {decimal(value)}" for c, value in answers.row.items())
            self.say(f"{label}, {answers.after}: {accuracies}")

    def _done(self, done: Done) -> None:
        if self._retention.methods:
            self._print_tables("result")
        duration = clock(done.seconds or 0.0)
        if done.status == "ok":
            self.say(f"done in {duration}", "bold")
        else:
            self.say(f"failed after {duration}: {done.reason}", "bold red")


def _night(night: Night) -> str:
    def number(value: float | None, form: str) -> str:
        return "not finite" if value is None else format(value, form)

    return (
        f"night of {night.day}: {number(night.steps, ',.0f')} steps in "
        f"{clock(night.seconds or 0.0)}, loss {number(night.loss, '.3f')}, "
        f"divergence {number(night.divergence, '.3f')}, "
        f"reward {number(night.reward_mean, '.2f')}, "
        f"{number(night.tokens_sampled, ',.0f')} tokens sampled, "
        f"{number(night.tokens_trained, ',.0f')} trained"
    )


def _empty_table(title: str) -> Table:
    table = Table(title=Text(title), title_justify="left", title_style="bold", box=box.SIMPLE_HEAD)
    table.add_column("method")
    table.add_column("after")
    return table

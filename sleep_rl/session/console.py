"""What a person sees of a run: progress bars on a terminal, plain lines elsewhere. Nothing else
prints.
"""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TextIO

from rich import box
from rich.console import Console as RichConsole
from rich.progress import BarColumn, Progress, ProgressColumn, SpinnerColumn, Task, TextColumn
from rich.table import Table
from rich.text import Text

from sleep_rl.journal.journal import Record
from sleep_rl.journal.retention import METHODS, Retention
from sleep_rl.journal.text import clock

Tick = Callable[..., None]
"""`tick(n=1, note="")`: n more units are done; the note (e.g. the loss) stands beside the bar."""


class Console:
    """A sink of the journal (tables, warnings) and the owner of progress. `live`: whether the
    stream is a terminal.
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
            # a day's name may hold letters that LANG=C cannot print
            stream.reconfigure(errors="replace")
        if live is None:
            live = stream.isatty() and not RichConsole(file=stream).is_dumb_terminal
        # Width: CI logs have none, and a wrapped table is unreadable. FORCE_COLOR must not put
        # codes into a file.
        self._rich = RichConsole(
            file=stream,
            force_terminal=live,
            width=None if live else 160,
            highlight=False,
            no_color=None if live else True,
        )
        self._live, self._every = live, every
        self._lock = threading.Lock()
        self._progress: Progress | None = None
        self._open_phases: list[str] = []
        self._retention = Retention()

    # ---- progress

    @contextmanager
    def phase(self, name: str, total: int | None = None) -> Iterator[Tick]:
        """Shows work in progress; `total=None` for a wait of unknown length. Phases may nest; tick
        from any thread.
        """
        state = _Phase(name, total)
        task = self._open(state)

        def tick(n: int = 1, note: str = "") -> None:
            with self._lock:
                state.done += n
                state.note = note or state.note
                if self._progress is not None:
                    self._progress.update(task, completed=state.done)
                elif time.monotonic() - state.told >= self._every:
                    state.told = time.monotonic()
                    self.say(f"{name}: {state.numbers()}")

        ended = "stopped"
        try:
            yield tick
            ended = "done"
        finally:
            self._close(task, name)
            amount = [] if total is None and not state.done else [state.count(), *state.speed()]
            told = ", ".join(
                [
                    f"{name}: {ended} in {clock(state.seconds())}",
                    *amount,
                    *filter(None, [state.note]),
                ]
            )
            self.say(told, "dim" if ended == "done" else "bold red")

    def current(self) -> str:
        """The innermost open phase; empty outside any."""
        with self._lock:
            return self._open_phases[-1] if self._open_phases else ""

    def say(self, line: str, style: str = "") -> None:
        """Prints one line, above any progress bar. Nothing in the text is interpreted."""
        self._rich.print(Text(line, style=style), soft_wrap=True)

    def _open(self, state: _Phase) -> int:
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
                    _Numbers(),
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
        """Shows the records that a person waits for: run, night, evaluate, done, and everything
        that failed.
        """
        kind = record["kind"]
        if kind == "run":
            self.say(f"run: task {record.get('task')}, model {record.get('model')}", "bold")
        elif kind == "night":
            self.say(_night(record))
        elif kind == "evaluate":
            self._evaluate(record)
        elif kind == "failure":
            self.say(
                f"warning: {record.get('where')}: {record.get('reason')} "
                f"({record.get('count', 1)} x)",
                "yellow",
            )
        elif kind == "sink_failed":
            self.say(
                f"warning: {record['sink']} is off for the rest of this run: {record['reason']}",
                "yellow",
            )
        elif kind == "done":
            if self._retention.methods:
                self._rich.print(self.table("result"))
            ok = record.get("status") == "ok"
            took = clock(record.get("seconds") or 0.0)
            if ok:
                self.say(f"done in {took}", "bold")
            else:
                self.say(f"failed after {took}: {record.get('reason')}", "bold red")

    def recall(self, records: list[Record]) -> None:
        """The table of accuracies goes on where it stood."""
        self._retention = Retention.of(records)

    def close(self) -> None:
        """Takes the bars off the terminal, should a phase still be open."""
        with self._lock:
            if self._progress is not None:
                self._progress.stop()
                self._progress = None

    def table(self, title: str) -> Table:
        """The newest accuracies: one row per method, one column for what was known and per day."""
        retention = self._retention
        table = Table(
            title=Text(f"{title}: share of correct answers, closed book"),
            title_justify="left",
            title_style="bold",
            box=box.SIMPLE_HEAD,
        )
        table.add_column("method")
        table.add_column("after")
        for column in retention.columns:
            table.add_column(Text(column), justify="right", no_wrap=True)
        base = [("base model", retention.base)] if retention.base else []
        for label, record in base + [
            (METHODS.get(m, m), retention.last(m)) for m in retention.methods
        ]:
            row, after = record["row"], record["after"]
            cells = [
                _cell(None if retention.future(after, c) else row.get(c)) for c in retention.columns
            ]
            table.add_row(Text(label), Text("" if after == "base" else after), *cells)
        if retention.open_book:
            table.add_row(
                "open book",
                "",
                *(_cell(retention.open_book.get(c)) for c in retention.columns),
                style="dim",
            )
        return table

    def _evaluate(self, record: Record) -> None:
        self._retention.add(record)
        if record["method"] == "sleep" and record["after"] != "base" and record["row"]:
            self._rich.print(self.table(f"after {record['after']}"))
            return
        scores = record["row"] or record.get("open_book") or {}
        if not scores:  # nobody asks
            return
        row = ", ".join(f"{column} {_cell(value)}" for column, value in scores.items())
        if not record["row"]:
            self.say(f"open book, {record['after']}: {row}")
            return
        method = METHODS.get(record["method"], record["method"])
        self.say(
            f"base model: {row}"
            if record["after"] == "base"
            else f"{method} after {record['after']}: {row}"
        )


@dataclass
class _Phase:
    """Counts of one phase, and how they read."""

    name: str
    total: int | None
    done: int = 0
    note: str = ""
    began: float = field(default_factory=time.monotonic)
    told: float = field(default_factory=time.monotonic)

    def seconds(self) -> float:
        return time.monotonic() - self.began

    def count(self) -> str:
        return f"{self.done:,}" if self.total is None else f"{self.done:,}/{self.total:,}"

    def speed(self) -> list[str]:
        """ "2.4/s", or "3.1 s each"; nothing before the first tick."""
        rate = self.done / max(self.seconds(), 1e-9)
        return [f"{rate:,.1f}/s" if rate >= 1 else f"{1 / rate:.1f} s each"] if self.done else []

    def numbers(self) -> str:
        """ "40/200, 2.4/s, 1:07 min left, loss 0.31"; without a total or a first tick what can be
        said of it.
        """
        parts = [] if self.total is None and not self.done else [self.count(), *self.speed()]
        if self.done and self.total is not None:
            parts.append(
                f"{clock(max(self.total - self.done, 0) * self.seconds() / self.done)} left"
            )
        else:
            parts.append(clock(self.seconds()))
        return ", ".join([*parts, self.note] if self.note else parts)


class _Numbers(ProgressColumn):
    """Count, rate, time left and note of a phase: the same words as in plain lines."""

    def render(self, task: Task) -> Text:
        return Text(task.fields["state"].numbers(), style="dim")


def _night(record: Record) -> str:
    def number(name: str, form: str) -> str:
        return "not finite" if record.get(name) is None else format(record[name], form)

    return (
        f"night of {record.get('day')}: {number('steps', ',.0f')} steps in "
        f"{clock(record.get('seconds') or 0.0)}, "
        f"loss {number('loss', '.3f')}, divergence {number('divergence', '.3f')}, "
        f"reward {number('reward_mean', '.2f')}, {number('tokens_sampled', ',.0f')} tokens "
        "sampled, "
        f"{number('tokens_trained', ',.0f')} trained"
    )


def _cell(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"

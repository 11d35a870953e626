"""The state of a run as `sleep-rl watch` shows it, from its journal and its workers' logs.

Entries are processed one by one into curves and newest texts, in bounded memory.
"""

from __future__ import annotations

import time
from collections import Counter, deque
from collections.abc import Callable
from pathlib import Path
from typing import Any

from sleep_rl.config.tasks import SECTIONS
from sleep_rl.journal.retention import Retention
from sleep_rl.journal.schema import (
    Completion,
    Done,
    DreamResult,
    Entry,
    Evaluation,
    InContext,
    InvalidRecord,
    Night,
    Record,
    RunStart,
    WakePhase,
    Written,
    parse,
)
from sleep_rl.journal.series import Chart, Charts
from sleep_rl.journal.tail import Follower
from sleep_rl.journal.text import clock
from sleep_rl.report import dreams, sections
from sleep_rl.watch.phase import Phase
from sleep_rl.watch.workers import WorkerActivity

QUIET_S = 120.0
"""Seconds without a record after which the status is `quiet`, since the run may hang."""
NEWEST_DREAMS = 8
NEWEST_DAYS = 2


class RunState:
    """The state of a run's folder. `held(folder)`: whether a process holds its lock."""

    def __init__(self, folder: Path, held: Callable[[Path], bool]) -> None:
        self.folder = folder
        self._held = held
        self._follower = Follower(folder / "metrics.jsonl")
        self._resets = 0
        self._clear()

    def _clear(self) -> None:
        self._resets += 1
        self._retention = Retention()
        self._charts = Charts()
        self._workers = WorkerActivity()
        self._phase = Phase()
        self._facts: dict[str, str] = {}
        self._done: Done | None = None
        self._last: float | None = None
        """Time of the newest entry."""
        self._written: dict[str, Any] = {"night": None, "texts": []}
        self._answers: dict[str, list[Completion]] = {}
        """Newest days -> their answers."""
        self._dreams: deque[DreamResult] = deque(maxlen=NEWEST_DREAMS)
        self._failures: sections.Failures = Counter()
        self._left_out = 0

    def update(self) -> dict[str, Any]:
        """Process new records and return the state as JSON data. Raises InputError for a journal
        that cannot be read.
        """
        changed, records = self._follower.more()
        if changed:
            self._clear()
        for record in records:
            self.add(record)
        return self.state()

    def add(self, record: Record) -> None:
        """Process one record; an invalid one is counted and skipped."""
        try:
            entry = parse(record)
            if isinstance(entry, Evaluation | InContext):
                _check_shares(entry)
        except InvalidRecord:
            self._left_out += 1
            return
        self._keep(entry)
        self._charts.add(entry)
        self._phase.add(entry)
        self._workers.add(entry)
        for where, reason, count in sections.failures_of(entry):
            self._failures[where, reason] += count
        self._last = entry.t

    def _keep(self, entry: Entry) -> None:
        match entry:
            case RunStart():
                self._start(entry)
            case Done():
                self._done = entry
            case Evaluation() | InContext() | Night() | WakePhase():
                self._retention.take(entry)
            case Written():
                self._written = {"night": entry.night, "texts": entry.examples or []}
            case Completion():
                self._answers.setdefault(entry.day, []).append(entry)
                while len(self._answers) > NEWEST_DAYS:
                    del self._answers[next(iter(self._answers))]
            case DreamResult():
                self._dreams.append(entry)

    def _start(self, run: RunStart) -> None:
        self._done = None
        self._phase.begin(_nights(run))
        facts = {
            "task": run.task,
            "model": run.model,
            "seed": ", ".join(map(str, run.seeds or ())),
            "commit": (run.commit or "")[:12],
        }
        self._facts = {name: value for name, value in facts.items() if value}

    # ---- the state

    @property
    def curves(self) -> str:
        """Version of the charts; empty without charts."""
        return f"{self._resets}-{self._charts.plotted}" if self._charts.plotted else ""

    def charts(self) -> list[Chart]:
        """Return one chart per panel."""
        return self._charts.charts()

    def state(self) -> dict[str, Any]:
        """Return everything that the page shows as JSON data: plain values, which the page escapes,
        and `parts`, HTML that is escaped here.
        """
        return {
            "name": self.folder.resolve().name,
            "facts": self._facts,
            **self._status(),
            "phase": self._phase.state(),
            "curves": self.curves,
            "workers": self._workers.state(self.folder / "logs"),
            "read": self._follower.offset,
            "size": self._follower.size,
            "left_out": self._follower.torn + self._left_out,
            "written": self._written,
            "dreams": [_dream(dream) for dream in reversed(self._dreams)],
            "parts": self._parts(),
        }

    def _status(self) -> dict[str, Any]:
        """Return `status` (a CSS class), its description `text`, the time `t` of the newest entry,
        and whether a process is `alive`.
        """
        alive = self._held(self.folder)
        if self._done:
            status, text = _ending(self._done)
        elif alive:
            status, text = self._activity()
        elif (self.folder / "run.json").is_file():
            status = "failed"
            text = (
                f"Stopped: no process works in this run; sleep-rl resume {self.folder} continues it"
            )
        else:
            status = "idle"
            text = "No process works in this folder"
        return {"status": status, "text": text, "t": self._last, "alive": alive}

    def _activity(self) -> tuple[str, str]:
        if self._last is None:
            return "alive", "No record yet"
        if time.time() - self._last > QUIET_S:
            return "quiet", f"No record for more than {clock(QUIET_S)}"
        return "alive", "Running"

    def _parts(self) -> dict[str, str]:
        """Return parts of the report as HTML."""
        matrices = sections.heatmaps(self._retention)
        answers = [entry for entries in self._answers.values() for entry in entries]
        return {
            "retention": matrices or sections.headline(self._retention),
            "failures": sections.failures(self._failures),
            "answers": sections.answers(answers),
        }


def _check_shares(evaluation: Evaluation | InContext) -> None:
    """Raise InvalidRecord for an accuracy outside [0, 1]."""
    for name in ("row", "open_book", "kinds", "choice", "as_base"):
        scores = getattr(evaluation, name, None) or {}
        if any(value is not None and not 0 <= value <= 1 for value in scores.values()):
            raise InvalidRecord(name)


def _ending(done: Done) -> tuple[str, str]:
    duration = clock(done.seconds or 0)
    if done.status == "ok":
        return "ok", f"Finished in {duration}"
    return "failed", f"Failed after {duration}: {done.reason}"


def _dream(dream: DreamResult) -> dict[str, Any]:
    return {
        "task": dream.task,
        "text": dream.text,
        "night": str(dream.night),
        "gain": dream.gain,
        "outcome": dream.reason or dreams.state(dream),
    }


def _nights(run: RunStart) -> int | None:
    """Return the number of nights in the run's config, None if it is not there."""
    task = (run.config or {}).get("task")
    if not isinstance(task, dict):
        return None
    section = SECTIONS.get(str(task.get("name")))
    days = task.get("days") or (section.days if section else None)
    return days if isinstance(days, int) else None

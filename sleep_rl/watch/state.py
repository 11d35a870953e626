"""What can be said of a run that goes on, from its journal and its workers' logs alone: the state
of `sleep-rl watch`.

Records are taken in one by one and kept as curves and newest texts of bounded size, however long
the run.
"""

from __future__ import annotations

import time
from collections import Counter, deque
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from sleep_rl.journal.journal import Record
from sleep_rl.journal.retention import METHODS, Retention
from sleep_rl.journal.schema import METRICS, fault
from sleep_rl.journal.series import Course, Trace
from sleep_rl.journal.tail import Follower
from sleep_rl.journal.text import clock
from sleep_rl.report.dreams import state
from sleep_rl.report.page import (
    BLUE,
    COLOURS,
    CYAN,
    MUTED,
    PURPLE,
    completions,
    failures,
    headline,
    heatmaps,
)
from sleep_rl.watch.workers import Crew

QUIET_S = 120.0  # without a record: said, because it may be a hang
SEED = {
    "Seeding loss": ("L_KS", {"loss": ("loss", BLUE)}),
    "Divergence": (
        "nats per token",
        {"divergence": ("new", BLUE), "divergence_replay": ("replay", PURPLE)},
    ),
    "Imitation reward": (
        "0 to 1",
        {
            "reward_mean": ("mixed", BLUE),
            "reward_sem": ("semantic", CYAN),
            "reward_abs": ("edit distance", PURPLE),
        },
    ),
    "Log-probability gap": ("nats per token", {"logprob_gap": ("gap", BLUE)}),
}
"""Title of a panel of the consolidations -> unit, field -> label and colour."""


class RunState:
    """A run's folder as it looks now. `held(folder)` says whether a process lives in it."""

    def __init__(self, folder: Path, held: Callable[[Path], bool]) -> None:
        self.folder, self._held = folder, held
        self.follower = Follower(folder / "metrics.jsonl")
        self._clear()

    def _clear(self) -> None:
        self.retention, self.crew, self.done = Retention(), Crew(), None
        self.seeds = Course(*(name for _, lines in SEED.values() for name in lines))
        self.crossed: dict[str, Course] = {}  # method, or wake -> cross entropy
        self.sampled, self.trained, self.pushed = Trace(), Trace(), {}
        self.facts: dict[str, str] = {}
        self.nights: int | None = None  # of the whole life
        self.phase: dict[str, Any] = {}
        self.pace: deque[tuple[float, int]] = deque(maxlen=50)  # time and step of the current phase
        self.first = self.last = None  # times of records
        self.written: dict[str, Any] = {"night": None, "texts": []}
        self.answers: dict[str, list[Record]] = {}  # of the newest days
        self.dreams: deque[Record] = deque(maxlen=8)
        self.failed: Counter[tuple[str, str]] = Counter()
        self.left_out = 0

    def look(self) -> dict[str, Any]:
        """Takes in what is new and returns the state, as JSON knows it. Raises InputError for an
        unreadable journal.
        """
        anew, records = self.follower.more()
        if anew:
            self._clear()
        for record in records:
            self.add(record)
        return self.state()

    def add(self, record: Record) -> None:
        """Takes one record in. One that its readers cannot use is counted and left out."""
        kind = record["kind"]
        if fault(record):
            self.left_out += 1
            return
        try:
            if kind in KEPT:
                KEPT[kind](self, record)
            if kind in PHASES:
                self._advance(record)
            self.crew.add(record)
        except (TypeError, ValueError, KeyError, AttributeError):
            # a field of another type than METRICS says
            self.left_out += 1
            return
        for name in record.get("nonfinite", ()):
            self.failed[f"{kind}.{name}", "value was not finite (NaN or infinite)"] += 1
        self.first, self.last = self.first or record["t"], record["t"]

    def _advance(self, record: Record) -> None:
        """Where the life stands: the newest thing that was done, and its step of how many."""
        said, steps = PHASES[record["kind"]](record), int(record.get("steps") or 0)
        if record.get("night") and self.nights:
            said = said.replace(
                f"Night {record['night']}", f"Night {record['night']} of {self.nights}", 1
            )
        if said != self.phase.get("said"):
            self.pace.clear()
        self.phase = {"said": said, "t": record["t"]}
        if steps and "step" in record:
            self.pace.append((record["t"], int(record["step"])))
            self.phase |= {"step": int(record["step"]) + 1, "steps": steps}

    # ---- kinds of records

    def _run(self, record: Record) -> None:
        seeds = ", ".join(map(str, record.get("seeds") or ()))
        facts = {
            "task": record.get("task"),
            "model": record.get("model"),
            "seed": seeds,
            "commit": str(record.get("commit") or "")[:12],
        }
        self.nights, self.done = _nights(record), None
        self.facts = {name: str(value) for name, value in facts.items() if value}

    def _done(self, record: Record) -> None:
        took = clock(record.get("seconds") or 0)
        ok = record.get("status") == "ok"
        self.done = (
            {"status": "ok", "said": f"Finished in {took}"}
            if ok
            else {"status": "failed", "said": f"Failed after {took}: {record.get('reason')}"}
        )

    def _seed(self, record: Record) -> None:
        sender, night = record.get("sender") or 0, record["night"]
        label = f"night {night}" + {0: "", -1: ", dreams"}.get(sender, f", level {sender}")
        self.seeds.add((night, sender, record.get("day")), label, record)
        if record.get("tokens_trained") and record.get("seconds"):
            self.trained.add(self._minutes(record), record["tokens_trained"] / record["seconds"])

    def _baseline(self, record: Record) -> None:
        course = self.crossed.setdefault(record["method"], Course("loss"))
        course.add((record.get("day"),), str(record.get("day")), record)

    def _wake(self, record: Record) -> None:
        self.crossed.setdefault("wake", Course("loss")).add(
            (record.get("day"),), str(record.get("day")), record
        )

    def _sample(self, record: Record) -> None:
        self.sampled.add(self._minutes(record), record.get("tokens_per_second"))

    def _push(self, record: Record) -> None:
        if record.get("seconds") is not None:
            self.pushed.setdefault(record["name"], Trace()).add(
                self._minutes(record), record["seconds"]
            )

    def _evaluate(self, record: Record) -> None:
        scores = [*record["row"].values(), *(record.get("open_book") or {}).values()]
        if any(value is not None and not 0 <= value <= 1 for value in scores):
            raise ValueError("a share of correct answers lies between 0 and 1")
        heatmaps(Retention.of([record]))  # raises what the whole table would
        self.retention.add(record)

    def _written(self, record: Record) -> None:
        self.written = {
            "night": record.get("night"),
            "texts": [str(text) for text in record.get("examples") or ()],
        }

    def _completion(self, record: Record) -> None:
        completions([record])  # raises what the whole table would
        self.answers.setdefault(str(record["day"]), []).append(record)
        while len(self.answers) > 2:
            del self.answers[next(iter(self.answers))]

    def _dream(self, record: Record) -> None:
        gain = record["gain"] if record["gain"] is None else float(record["gain"])
        texts = {name: str(record[name]) for name in ("task", "text", "night")}
        self.dreams.append(
            {**texts, "gain": gain, "became": str(record["reason"] or state(record))}
        )

    def _failure(self, record: Record) -> None:
        self.failed[str(record.get("where")), str(record.get("reason"))] += record.get("count") or 1

    def _sink_failed(self, record: Record) -> None:
        self.failed[str(record["sink"]), str(record["reason"])] += 1

    def _minutes(self, record: Record) -> float:
        return (record["t"] - (self.first or record["t"])) / 60

    # ---- the state

    def state(self) -> dict[str, Any]:
        """Everything that the page shows: plain values, which the page escapes, and `parts`, which
        are HTML.
        """
        f = self.follower
        return {
            "name": self.folder.resolve().name,
            "facts": self.facts,
            **self._status(),
            "phase": self._phase(),
            "curves": self.panels(),
            "crew": self.crew.state(self.folder / "logs"),
            "read": f.offset,
            "size": f.size,
            "left_out": f.torn + self.left_out,
            "written": self.written,
            "dreams": list(reversed(self.dreams)),
            "parts": self._parts(),
        }

    def _status(self) -> dict[str, Any]:
        """How the run is: `status` for its colour, `said` in words, `t` of the newest record."""
        alive = self._held(self.folder)
        if self.done:
            how = self.done
        elif alive:
            quiet = self.last is not None and time.time() - self.last > QUIET_S
            said = (
                "Nothing is recorded yet"
                if self.last is None
                else "Quiet for a while"
                if quiet
                else "Goes on"
            )
            how = {"status": "quiet" if quiet else "alive", "said": said}
        elif (self.folder / "run.json").is_file():
            how = {
                "status": "failed",
                "said": "Stopped: no process lives in this run; sleep-rl "
                f"resume {self.folder} goes "
                "on with it",
            }
        else:
            how = {"status": "idle", "said": "No process holds this folder"}
        return {**how, "t": self.last, "alive": alive}

    def _phase(self) -> dict[str, Any]:
        """The phase, and the time that its steps still take at the pace of the last ones."""
        if "steps" not in self.phase:
            return self.phase
        (t0, s0), (t1, s1) = self.pace[0], self.pace[-1]
        pace = (t1 - t0) / (s1 - s0) if s1 > s0 and t1 > t0 else None
        left = {} if pace is None else {"left": clock(max(self.phase["steps"] - s1 - 1, 0) * pace)}
        return {**self.phase, **left}

    def panels(self) -> list[dict[str, Any]]:
        """Every set of curves that has points, in the order of the report."""
        axis, nights = "seeding step, all nights", self.seeds.begins()
        panels = []
        for title, (unit, lines) in SEED.items():
            drawn = [
                (name, *line, points)
                for name, line in lines.items()
                if (points := self.seeds.points(name))
            ]
            meaning = "; ".join(
                (f"{label}: " if len(drawn) > 1 else "") + METRICS["seed"][name][0]
                for name, label, *_ in drawn
            )
            panels.append(_panel(title, unit, axis, meaning, [line for _, *line in drawn], nights))
        cross = [
            (METHODS.get(m, m), COLOURS.get(m, MUTED), c.points("loss"))
            for m, c in self.crossed.items()
        ]
        states = zip(self.pushed, (BLUE, PURPLE, CYAN))
        minutes = "minutes since the start"
        panels += [
            _panel(
                "Baselines and wake",
                "nats per token",
                "step",
                "cross entropy of the baselines and while awake",
                cross,
            ),
            _panel(
                "Throughput",
                "tokens per second",
                minutes,
                "sampled: all rollout workers; trained: all learners",
                [
                    ("sampled", BLUE, self.sampled.points()),
                    ("trained", PURPLE, self.trained.points()),
                ],
                dots=True,
            ),
            _panel(
                "Weight push",
                "seconds",
                minutes,
                METRICS["push"]["seconds"][0],
                [(name, colour, self.pushed[name].points()) for name, colour in states],
                dots=True,
            ),
        ]
        return [panel for panel in panels if panel["series"]]

    def _parts(self) -> dict[str, str]:
        """The parts of the report that a running life has already, as HTML."""
        failed = [
            {"kind": "failure", "where": where, "reason": reason, "count": n}
            for (where, reason), n in self.failed.items()
        ]
        return {
            "retention": heatmaps(self.retention) or headline(self.retention),
            "failures": failures(failed),
            "answers": completions([r for records in self.answers.values() for r in records]),
        }


def _panel(
    title: str,
    unit: str,
    x: str,
    meaning: str,
    series: list,
    nights: Sequence = (),
    dots: bool = False,
) -> dict[str, Any]:
    return {
        "title": title,
        "unit": unit,
        "x": x,
        "meaning": meaning,
        "nights": list(nights),
        "dots": dots,
        "series": [
            {"label": label, "colour": colour, "points": points}
            for label, colour, points in series
            if points
        ],
    }


def _nights(run: Record) -> int | None:
    """How many nights the run's config asks for."""
    task = (run.get("config") or {}).get("task") or {}
    days = (task.get(str(task.get("name"))) or {}).get("days")
    return days if isinstance(days, int) else None


def _night(record: Record) -> str:
    sender = record.get("sender") or 0
    title = f"Night {record.get('night')}"
    return title + {0: "", -1: ", dreams"}.get(sender, f", level {sender} to {sender + 1}")


PHASES: dict[str, Callable[[Record], str]] = {
    "run": lambda r: "Started: workers and base model",
    "wake": lambda r: f"{r.get('day')}: awake, {r.get('step')} documents taken in",
    "written": lambda r: (
        f"{_night(r)}: the teacher wrote {r.get('new'):,} sequences about "
        f"documents, {r.get('replay'):,} "
        "from nothing"
    ),
    "seed": lambda r: f"{_night(r)}: consolidation",
    "night": lambda r: f"{_night(r)}: consolidated",
    "evaluate": lambda r: (
        f"Evaluated: {METHODS.get(r['method'], r['method'])}, "
        f"{'before the first day' if r['after'] == 'base' else 'after ' + str(r['after'])}"
    ),
    "dream": lambda r: f"Night {r.get('night')}: dreaming, round {r.get('round')}",
    "tried": lambda r: (
        f"Night {r.get('night')}: {r.get('dreams')} dreams tried out on {r.get('copies')} copies"
    ),
    "dreamed": lambda r: (
        f"Night {r.get('night')}: {r.get('rewarded')} of {r.get('written')} dreams rewarded"
    ),
    "policy": lambda r: f"Night {r.get('night')}: dreaming policy",
    "baseline": lambda r: f"Baseline: {METHODS.get(r['method'], r['method'])}, {r.get('day')}",
    "rolled_back": lambda r: (
        f"Night {r.get('night')}: rolled back, {r.get('column')} had lost too much"
    ),
    "done": lambda r: "Ended",
}
"""Records that say where a life stands, in words; the others belong to its workers."""

KEPT = {
    "run": RunState._run,
    "done": RunState._done,
    "seed": RunState._seed,
    "baseline": RunState._baseline,
    "wake": RunState._wake,
    "sample": RunState._sample,
    "push": RunState._push,
    "evaluate": RunState._evaluate,
    "written": RunState._written,
    "completion": RunState._completion,
    "dream": RunState._dream,
    "failure": RunState._failure,
    "sink_failed": RunState._sink_failed,
}

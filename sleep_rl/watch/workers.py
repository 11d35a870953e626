"""The workers of a run from its journal and their logs: newest activities, restarts, last lines."""

from __future__ import annotations

import os
import re
from collections import Counter
from pathlib import Path
from typing import Any

from sleep_rl.journal.retention import label_of_method
from sleep_rl.journal.schema import (
    BaselineStep,
    Entry,
    PolicyStep,
    Push,
    Restarted,
    RunStart,
    SamplingCall,
    Scaled,
    SeedStep,
    TrialSummary,
    WakePhase,
)
from sleep_rl.journal.text import end_of_log

ROLES = ("rollout", "learner", "reward", "semantic", "critic", "peer")
"""Roles of workers, in the order of the page; `peer`: models of model.teachers."""
ALL = "all workers"
"""Name of the worker in the record of a restart of the whole crew."""
TAIL_CHARACTERS = 240
MOST_WORKERS = 1000
"""Largest number of workers of one role that are listed."""


class WorkerActivity:
    """The activities of a run's workers: entries give those of a role, logs those of a worker."""

    def __init__(self) -> None:
        self._left: dict[str, bool] = {}
        """Worker -> whether it left."""
        self._restarts: Counter[str] = Counter()
        self._newest: dict[str, dict[str, tuple[str, float]]] = {role: {} for role in ROLES}
        """Role -> kind of work -> text, time."""
        self._tails: dict[str, tuple[tuple[int, int], str]] = {}
        """Log -> (size, time of change), last line."""

    def add(self, entry: Entry) -> None:
        """Process the next entry."""
        match entry:
            case RunStart():
                self._left |= dict.fromkeys(_planned(entry.config or {}), False)
            case Restarted():
                self._restarts[str(entry.worker)] += 1
            case Scaled():
                self._left[entry.worker] = not entry.joined
            case SamplingCall():
                self._note("rollout", "sample", _sampled(entry), entry.t)
            case Push():
                text = f"verified version {entry.version} of the {entry.name}"
                self._note("rollout", "push", text, entry.t)
            case SeedStep() | BaselineStep() | PolicyStep():
                self._note("learner", "step", _step(entry), entry.t)
            case WakePhase():
                self._note("learner", "step", f"wake on {entry.step} documents", entry.t)
            case TrialSummary():
                text = f"trained {entry.copies} copies on {entry.dreams} dreams"
                self._note("critic", "tried", text, entry.t)
        if isinstance(entry, SeedStep) and entry.reward_mean is not None:
            self._note("reward", "score", f"mean reward {entry.reward_mean:.2f}", entry.t)

    def _note(self, role: str, work: str, text: str, t: float) -> None:
        self._newest[role][work] = (text, t)

    def state(self, logs: Path) -> list[dict[str, Any]]:
        """Return one entry per role: its newest activities, and its workers with their restarts
        and the last lines of their logs.
        """
        tails = self._read(logs)
        names = sorted({*self._left, *tails, *self._restarts} - {ALL}, key=_order)
        roles: dict[str, list[dict[str, Any]]] = {}
        for name in names:
            tail = tails.get(name)
            roles.setdefault(_role(name), []).append(
                {
                    "name": name,
                    "restarts": self._restarts[name],
                    "left": self._left.get(name, False),
                    "log": tail and {"line": tail[1], "t": tail[0][1] / 1e9, "bytes": tail[0][0]},
                }
            )
        return [
            {
                "role": role,
                "workers": workers,
                "activities": [
                    {"text": text, "t": t}
                    for text, t in sorted(self._newest.get(role, {}).values(), key=lambda d: -d[1])
                ],
                "restarts": self._restarts[ALL] if role == "learner" else 0,
            }
            for role, workers in roles.items()
        ]

    def _read(self, logs: Path) -> dict[str, tuple[tuple[int, int], str]]:
        """Return name -> ((bytes, time of change in ns), last line) of every log; if it cannot be
        read, the reason in place of the line.
        """
        try:
            files = [
                entry
                for entry in os.scandir(logs)
                if entry.name.endswith(".log") and entry.is_file(follow_symlinks=False)
            ]
        except OSError:  # workers in this process have no logs
            files = []
        tails = {}
        for entry in files:
            name = entry.name.removesuffix(".log")
            stat = entry.stat(follow_symlinks=False)
            version = (stat.st_size, stat.st_mtime_ns)
            known = self._tails.get(name)
            if known and known[0] == version:
                tails[name] = known
            else:
                tails[name] = (version, _end_of_log(entry.path))
        self._tails = tails
        return tails


def _sampled(sample: SamplingCall) -> str:
    text = f"sampled {sample.sequences or 0:,} sequences ({sample.weights or 'model'})"
    if sample.tokens_per_second:
        text += f", {sample.tokens_per_second:,.0f} tokens a second"
    return text


def _step(entry: SeedStep | BaselineStep | PolicyStep) -> str:
    match entry:
        case SeedStep():
            work = "consolidation"
        case PolicyStep():
            work = "dreaming policy"
        case BaselineStep():
            work = label_of_method(entry.method)
    steps = f" of {entry.steps:,}" if entry.steps else ""
    loss = "" if entry.loss is None else f", loss {entry.loss:.3f}"
    return f"{work}, step {(entry.step or 0) + 1:,}{steps}{loss}"


def _end_of_log(path: str) -> str:
    try:
        return end_of_log(path)[:TAIL_CHARACTERS]
    except OSError as error:
        return f"cannot be read: {error.strerror or error}"


def _planned(config: dict[str, Any]) -> list[str]:
    """Return the names of the workers that a run starts with, from its recorded config."""

    def value(section: str, key: str, default: Any = 0) -> Any:
        keys = config.get(section)
        return keys.get(key, default) if isinstance(keys, dict) else default

    def count(section: str, key: str, default: int = 0) -> int:
        number = value(section, key, default)
        return min(number, MOST_WORKERS) if isinstance(number, int) else 0

    rewards = count("reward", "workers", 1) if config else 0
    counts = {
        "rollout": count("rollouts", "workers"),
        "learner": count("learners", "world_size"),
        "reward": rewards,
        "semantic": rewards if value("reward", "semantic", "none") != "none" else 0,
        "critic": count("critics", "workers") if value("dream", "rounds") else 0,
    }
    teachers = value("model", "teachers", ())
    peers = len(teachers) if isinstance(teachers, list) else 0
    names = [f"{role}-{i}" for role, number in counts.items() for i in range(number)]
    return names + [f"peer-{i}" for i in range(1, peers + 1)]


def _role(name: str) -> str:
    role = re.sub(r"-\d+$", "", name)
    return role if role in ROLES else "files"


def _order(name: str) -> tuple:
    role = _role(name)
    number = re.search(r"\d+$", name)
    return (
        ROLES.index(role) if role in ROLES else len(ROLES),
        int(number[0]) if number else 0,
        name,
    )

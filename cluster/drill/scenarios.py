"""The scenarios of a drill: runs, the faults that are injected into them, and how they must end."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path

import psutil

from cluster.drill import faults
from cluster.drill.drilled_run import LIMIT_S, DrilledRun, Outcome
from cluster.drill.two_nodes import TwoNodes
from sleep_rl.config.loader import load
from sleep_rl.config.schema import Config
from sleep_rl.contracts.errors import RunError
from sleep_rl.contracts.records import STUDENT
from sleep_rl.journal.journal import Record
from sleep_rl.plan.actors import actors_of
from sleep_rl.tasks.registry import make_task

PHASES = ("wake", "writing", "seeding", "evaluation")
HANG_S = 45.0  # cluster.call_timeout_s of the run whose workers hang
STALL_S = 2.0  # reward.timeout_s of the run whose reward worker stalls


@dataclass(frozen=True)
class Fault:
    """A fault that is injected once the run is in `phase` of `night`.

    `inject(run folder)` returns the name of the worker that it hit.
    """

    name: str
    phase: str
    night: int
    inject: Callable[[Path], str]


@dataclass(frozen=True)
class DrillRow:
    """The result of one fault. `passed` None: it cannot be tested on this machine."""

    fault: str
    where: str
    result: str
    passed: bool | None

    @property
    def status(self) -> str:
        return {True: "passed", False: "FAILED", None: "skipped"}[self.passed]


Rows = Iterator[DrillRow]
Scenario = Callable[[str, list[str], Path, Outcome], Rows]
"""(path of the config, overrides, the drill's folder, expected outcome) -> a row per fault."""


def scenarios(config: Config) -> list[Scenario]:
    """Return the drill's scenarios: each is a run with one or more faults."""
    days = config.nights or len(make_task(config).days())
    nights = [min(i, days) for i in range(1, len(PHASES) + 1)]
    kills = [
        [
            Fault(f"kill {name}", phase, night, _on_worker(name, faults.kill))
            for phase, night in zip(PHASES, nights, strict=True)
        ]
        for name in ("rollout-0", "reward-0", "learner-0")
    ]
    hangs = [
        Fault(f"hang {name}", "seeding", night, _on_worker(name, faults.freeze))
        for name, night in (("rollout-0", nights[0]), ("learner-0", nights[1]))
    ]
    return [
        *(_recovery(f"kill-{kill[0].name.split()[1]}", kill) for kill in kills),
        _recovery("hang", hangs, f"cluster.call_timeout_s={HANG_S:g}"),
        _stall,
        _flip,
        _disk,
        _cut,
    ]


def _recovery(name: str, faults: list[Fault], *keys: str) -> Scenario:
    """Return the scenario of the run `name` in which `faults` are injected one after another; it
    must recover by itself and end with the expected outcome. `keys`: further overrides.
    """

    def scenario(path: str, overrides: list[str], home: Path, expected: Outcome) -> Rows:
        run = DrilledRun(name, path, [*overrides, *keys], home)
        try:
            reactions = [_inject(run, fault) for fault in faults]
            mismatch = _mismatch(run, expected)
        finally:
            run.end()
        for fault, (hit, reaction) in zip(faults, reactions, strict=True):
            yield DrillRow(
                fault.name,
                f"{fault.phase}, night {fault.night}",
                f"{reaction}; {mismatch or 'same bytes'}",
                hit and not mismatch,
            )

    return scenario


def _inject(run: DrilledRun, fault: Fault) -> tuple[bool, str]:
    """Inject a fault when its phase is reached; return (whether it hit, how the run reacted)."""
    try:
        if not run.until(lambda records: reached(records, fault.phase, fault.night)):
            return False, "the run ended before the fault"
        began = time.time()
        name = fault.inject(run.folder)
        run.until(lambda records: _restart_of(records, began, name) is not None)
    except (RunError, psutil.Error) as error:
        return False, str(error)
    record = _restart_of(run.records(), began, name)
    if record is None:
        return True, "the worker was not used again"
    return True, _description(record, began)


def _description(record: Record, since: float) -> str:
    return f"{record['worker']} restarted after {record['t'] - since:.0f} s"


def _restart_of(records: list[Record], since: float, name: str) -> Record | None:
    """Return the record of the first restart of worker `name` after time `since`."""
    for record in _restarts(records):
        if record["t"] > since and record["worker"] in (name, "all workers"):
            return record
    return None


def _restarts(records: list[Record]) -> list[Record]:
    return [record for record in records if record["kind"] == "restarted"]


def reached(records: list[Record], phase: str, night: int) -> bool:
    """Return whether a journal's records show that a phase of a night has begun."""
    start = 0
    if night > 1:
        before = [
            i for i, r in enumerate(records) if r["kind"] == "night" and r["night"] == night - 1
        ]
        start = before[-1] if before else len(records)
    begins = {
        "wake": lambda r: r["kind"] == "evaluate" and r["method"] == "sleep" and r["row"],
        "writing": lambda r: r["kind"] == "push" and r["name"] == STUDENT,
        "seeding": lambda r: r["kind"] == "seed",
        "evaluation": lambda r: r["kind"] == "night" and r["night"] == night,
    }[phase]
    return any(begins(record) for record in records[start:])


def _mismatch(run: DrilledRun, expected: Outcome) -> str:
    """Wait for the run's end; return how its outcome differs from the expected one, or ""."""
    if (code := run.wait()) != 0:
        return failure(run, code)
    memories, evaluation = run.outcome()
    if memories != expected[0]:
        return "different memory"
    return f"different evaluation: {evaluation}" if evaluation != expected[1] else ""


def failure(run: DrilledRun, code: int | None) -> str:
    """Return how a run failed: its exit code (None: it timed out) and its last line."""
    if code is None:
        return f"did not end within {LIMIT_S:g} s"
    return f"exit {code}: {run.last_line()}"


def _stall(path: str, overrides: list[str], home: Path, expected: Outcome) -> Rows:
    """Freeze a reward worker: its pairs become failures, and it is restarted."""
    fault = Fault("stall reward-0", "seeding", 1, _on_worker("reward-0", faults.freeze))
    run = DrilledRun("stall", path, [*overrides, f"reward.timeout_s={STALL_S:g}"], home)
    try:
        hit, reaction = _inject(run, fault)
        code = run.wait()
    finally:
        run.end()
    failed = sum(
        r["count"] for r in run.records() if r["kind"] == "failure" and r["where"] == "reward"
    )
    yield DrillRow(
        fault.name,
        "seeding, night 1",
        f"{reaction}; {failed} pairs without a reward; exit {code}",
        hit and failed > 0 and code == 0,
    )


def _flip(path: str, overrides: list[str], home: Path, expected: Outcome) -> Rows:
    """Flip a byte of a push: it must be detected, and all workers restarted."""
    run = DrilledRun("flip", path, overrides, home, flipped=True)
    try:
        mismatch = _mismatch(run, expected)
    finally:
        run.end()
    refused = [r for r in _restarts(run.records()) if "damaged" in r["reason"]]
    yield DrillRow(
        "flip a byte",
        f"push {faults.PUSH} of the student",
        f"{'refused and repeated' if refused else 'not detected'}; {mismatch or 'same bytes'}",
        bool(refused) and not mismatch,
    )


def _disk(path: str, overrides: list[str], home: Path, expected: Outcome) -> Rows:
    """Simulate a full disk: the run must exit with one line, and end well after a resume."""
    run = DrilledRun("disk", path, overrides, home)
    try:
        hit = run.until(lambda records: reached(records, "seeding", 1))
        if hit:
            for process in (
                psutil.Process(run.process.pid),
                faults.worker(run.folder, "learner-0"),
            ):
                faults.no_more_disk(process)
        code = run.wait()
        line = run.last_line()
        run.resume()
        mismatch = _mismatch(run, expected)
    finally:
        run.end()
    yield DrillRow(
        "full disk",
        "seeding, night 1",
        f"exit {code}: {line}; resumed: {mismatch or 'same bytes'}",
        hit and code == 1 and line.startswith("sleep-rl: ") and not mismatch,
    )


def _cut(path: str, overrides: list[str], home: Path, expected: Outcome) -> Rows:
    """Freeze a node with a rollout worker on it, and add another node once it is noticed."""
    fault = "cut off a node"
    where = "seeding, night 1"
    config = load(path, overrides)
    config = replace(
        config, rollouts=replace(config.rollouts, workers=max(config.rollouts.workers, 2))
    )
    if any(actor.gpus for actor in actors_of(config)):
        yield DrillRow(fault, where, "two nodes on one machine cannot share its GPUs", None)
        return
    cpus = sum(actor.count * actor.cpus for actor in actors_of(config))
    with ExitStack() as stack:
        nodes = TwoNodes(cpus - config.rollouts.cpus, config.rollouts.cpus)
        stack.callback(nodes.close)
        run = DrilledRun(
            "cut",
            path,
            [
                *overrides,
                f"cluster.address={nodes.address}",
                f"rollouts.workers={config.rollouts.workers}",
            ],
            home,
            environment=nodes.environment,
        )
        stack.callback(run.end)
        hit = run.until(lambda records: reached(records, "seeding", 1))
        began = time.time()
        if hit:
            nodes.cut()
            run.until(lambda records: bool(_restarts(records)))
            nodes.join()
        mismatch = _mismatch(run, expected)
    restarted = _restarts(run.records())
    reaction = _description(restarted[0], began) if restarted else "not detected"
    yield DrillRow(
        fault,
        where,
        f"{reaction}; {mismatch or 'same bytes'}",
        hit and bool(restarted) and not mismatch,
    )


def _on_worker(name: str, fault: Callable) -> Callable[[Path], str]:
    """Return a function that applies `fault` to worker `name` of the run in a folder."""

    def inject(folder: Path) -> str:
        fault(faults.worker(folder, name))
        return name

    return inject

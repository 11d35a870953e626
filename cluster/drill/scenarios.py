"""The runs of a drill: which faults come upon them, and how each of them has to end."""

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
    """One thing that breaks: `do(run folder)` is called once the run is in `phase` of `night`, and
    returns the name of the worker that it hit.
    """

    what: str
    phase: str
    night: int
    do: Callable[[Path], str]


@dataclass(frozen=True)
class Row:
    """What a run did about a fault. `passed` None: it could not be tried here."""

    what: str
    where: str
    happened: str
    passed: bool | None

    @property
    def word(self) -> str:
        return {True: "passed", False: "FAILED", None: "not tried"}[self.passed]


Rows = Iterator[Row]
Scenario = Callable[[str, list[str], Path, Outcome], Rows]
"""(path of the config, overrides, the drill's folder, undisturbed outcome) -> a row per fault."""


def scenarios(config: Config) -> list[Scenario]:
    """Return the drill's runs, each with one or more faults."""
    days = config.nights or len(make_task(config).days())
    nights = [min(i, days) for i in range(1, len(PHASES) + 1)]
    kills = [
        [
            Fault(f"kill {name}", phase, night, _upon(name, faults.kill))
            for phase, night in zip(PHASES, nights, strict=True)
        ]
        for name in ("rollout-0", "reward-0", "learner-0")
    ]
    hangs = [
        Fault(f"hang {name}", "seeding", night, _upon(name, faults.freeze))
        for name, night in (("rollout-0", nights[0]), ("learner-0", nights[1]))
    ]
    return [
        *(_recovers(f"kill-{kill[0].what.split()[1]}", kill) for kill in kills),
        _recovers("hang", hangs, f"cluster.call_timeout_s={HANG_S:g}"),
        _stall,
        _flip,
        _disk,
        _cut,
    ]


def _recovers(name: str, faults: list[Fault], *keys: str) -> Scenario:
    """Return a run upon which `faults` come one after another; it has to go on by itself and end
    like the undisturbed one. `keys`: further overrides.
    """

    def play(path: str, overrides: list[str], home: Path, expected: Outcome) -> Rows:
        run = DrilledRun(name, path, [*overrides, *keys], home)
        try:
            stories = [_strike(run, fault) for fault in faults]
            verdict = _verdict(run, expected)
        finally:
            run.end()
        for fault, (hit, story) in zip(faults, stories, strict=True):
            yield Row(
                fault.what,
                f"{fault.phase}, night {fault.night}",
                f"{story}; {verdict or 'same bytes'}",
                hit and not verdict,
            )

    return play


def _strike(run: DrilledRun, fault: Fault) -> tuple[bool, str]:
    """Bring a fault upon a run; return (whether it hit, what the run did about it)."""
    try:
        if not run.until(lambda records: reached(records, fault.phase, fault.night)):
            return False, "the life was over before"
        began = time.time()
        name = fault.do(run.folder)
        run.until(lambda records: _recovery(records, began, name) is not None)
    except (RunError, psutil.Error) as error:
        return False, str(error)
    record = _recovery(run.records(), began, name)
    if record is None:
        return True, "was not needed any more"
    return True, _description(record, began)


def _description(record: Record, since: float) -> str:
    return f"{record['worker']} noticed after {record['t'] - since:.0f} s and started anew"


def _recovery(records: list[Record], since: float, name: str) -> Record | None:
    """Return the record of the first restart after `since` that replaced worker `name`."""
    for record in _restarts(records):
        if record["t"] > since and record["worker"] in (name, "all workers"):
            return record
    return None


def _restarts(records: list[Record]) -> list[Record]:
    return [record for record in records if record["kind"] == "restarted"]


def reached(records: list[Record], phase: str, night: int) -> bool:
    """Return whether a journal shows that the run is in a phase of a night, or past it."""
    start = 0
    if night > 1:
        before = [
            i for i, r in enumerate(records) if r["kind"] == "night" and r["night"] == night - 1
        ]
        start = before[-1] if before else len(records)
    begun = {
        "wake": lambda r: r["kind"] == "evaluate" and r["method"] == "sleep" and r["row"],
        "writing": lambda r: r["kind"] == "push" and r["name"] == STUDENT,
        "seeding": lambda r: r["kind"] == "seed",
        "evaluation": lambda r: r["kind"] == "night" and r["night"] == night,
    }[phase]
    return any(begun(record) for record in records[start:])


def _verdict(run: DrilledRun, expected: Outcome) -> str:
    """Wait for the run's end; return what is wrong with it, nothing if it ended like the
    undisturbed one.
    """
    if (code := run.wait()) != 0:
        return ending(run, code)
    memories, evaluation = run.outcome()
    if memories != expected[0]:
        return "another memory"
    return f"another evaluation: {evaluation}" if evaluation != expected[1] else ""


def ending(run: DrilledRun, code: int | None) -> str:
    """Return how a run ended that did not end well."""
    if code is None:
        return f"did not end within {LIMIT_S:g} s"
    return f"exit {code}: {run.last_line()}"


def _stall(path: str, overrides: list[str], home: Path, expected: Outcome) -> Rows:
    """Freeze a reward worker: its pairs get failures in place of rewards, and it is restarted."""
    fault = Fault("stall reward-0", "seeding", 1, _upon("reward-0", faults.freeze))
    run = DrilledRun("stall", path, [*overrides, f"reward.timeout_s={STALL_S:g}"], home)
    try:
        hit, story = _strike(run, fault)
        code = run.wait()
    finally:
        run.end()
    failed = sum(
        r["count"] for r in run.records() if r["kind"] == "failure" and r["where"] == "reward"
    )
    yield Row(
        fault.what,
        "seeding, night 1",
        f"{story}; {failed} pairs without a reward; exit {code}",
        hit and failed > 0 and code == 0,
    )


def _flip(path: str, overrides: list[str], home: Path, expected: Outcome) -> Rows:
    """Change a byte of a push on its way: no worker samples from it."""
    run = DrilledRun("flip", path, overrides, home, flipped=True)
    try:
        verdict = _verdict(run, expected)
    finally:
        run.end()
    refused = [r for r in _restarts(run.records()) if "damaged" in r["reason"]]
    yield Row(
        "flip a byte",
        f"push {faults.PUSH} of the student",
        f"{'refused and made anew' if refused else 'not noticed'}; {verdict or 'same bytes'}",
        bool(refused) and not verdict,
    )


def _disk(path: str, overrides: list[str], home: Path, expected: Outcome) -> Rows:
    """Let no file grow any more: the run ends with one line, and goes on when there is room."""
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
        verdict = _verdict(run, expected)
    finally:
        run.end()
    yield Row(
        "full disk",
        "seeding, night 1",
        f"exit {code}: {line}; resumed: {verdict or 'same bytes'}",
        hit and code == 1 and line.startswith("sleep-rl: ") and not verdict,
    )


def _cut(path: str, overrides: list[str], home: Path, expected: Outcome) -> Rows:
    """Cut off a node with a rollout worker on it; later another node takes its place."""
    what = "cut off a node"
    where = "seeding, night 1"
    config = load(path, overrides)
    config = replace(
        config, rollouts=replace(config.rollouts, workers=max(config.rollouts.workers, 2))
    )
    if any(actor.gpus for actor in actors_of(config)):
        yield Row(what, where, "two nodes on one machine cannot share its GPUs", None)
        return
    cpus = sum(actor.count * actor.cpus for actor in actors_of(config))
    with ExitStack() as ending:
        nodes = TwoNodes(cpus - config.rollouts.cpus, config.rollouts.cpus)
        ending.callback(nodes.close)
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
        ending.callback(run.end)
        hit = run.until(lambda records: reached(records, "seeding", 1))
        began = time.time()
        if hit:
            nodes.cut()
            run.until(lambda records: bool(_restarts(records)))
            nodes.join()
        verdict = _verdict(run, expected)
    restarted = _restarts(run.records())
    story = _description(restarted[0], began) if restarted else "not noticed"
    yield Row(
        what, where, f"{story}; {verdict or 'same bytes'}", hit and bool(restarted) and not verdict
    )


def _upon(name: str, harm: Callable) -> Callable[[Path], str]:
    """Return a function that harms worker `name` of the run in a folder."""

    def do(folder: Path) -> str:
        harm(faults.worker(folder, name))
        return name

    return do

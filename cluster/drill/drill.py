"""`sleep-rl drill CONFIG`: what happens to a run when things break, tried on real runs.

Each life is a real `sleep-rl run` of the config, in a process of its own, upon which faults come
from outside while its journal shows that it is in the phase they are meant for. A life must end
with the same bytes of memory and the same last evaluation as the one that nothing happened to, by
itself, or after `sleep-rl resume` where it says that it ended.
"""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path

import psutil

from cluster.drill import faults
from sleep_rl.config.loader import load
from sleep_rl.config.schema import Config
from sleep_rl.contracts.errors import InputError, RunError
from sleep_rl.contracts.records import STUDENT
from sleep_rl.journal.journal import Record, read
from sleep_rl.journal.text import aligned, clock
from sleep_rl.plan.plan import actors_of
from sleep_rl.tasks.registry import make_task

PHASES = ("wake", "writing", "seeding", "evaluation")
HANG_S = 45.0  # cluster.call_timeout_s of the life whose workers hang
STALL_S = 2.0  # reward.timeout_s of the life whose reward worker stalls
LIMIT_S = 1800.0  # of one life


@dataclass(frozen=True)
class Fault:
    """One thing that breaks: `do` is called once the run is in `phase` of `night`, and says whom it
    hit.
    """

    what: str
    phase: str
    night: int
    do: Callable[[Path], str]


@dataclass(frozen=True)
class Row:
    """What happened to a fault. `passed` None: it could not be tried here."""

    what: str
    where: str
    happened: str
    passed: bool | None

    @property
    def word(self) -> str:
        return {True: "passed", False: "FAILED", None: "not tried"}[self.passed]


class Life:
    """One run of the drill: started, watched through its journal, and compared when it is over."""

    def __init__(
        self,
        name: str,
        path: str,
        overrides: list[str],
        home: Path,
        *,
        flipped: bool = False,
        environment: dict[str, str] | None = None,
    ):
        self._environment, self.name, self.folder = environment, name, home / name
        module = "cluster.drill.faults" if flipped else "sleep_rl"
        verb = [] if flipped else ["run"]
        self._arguments = [
            "-m",
            module,
            *verb,
            path,
            *overrides,
            f"run.dir={home}",
            f"run.name={name}",
        ]
        self.printed = home / f"{name}.txt"
        self.process = self._start(self._arguments)

    def _start(self, arguments: list[str]) -> subprocess.Popen:
        process = subprocess.Popen(
            [sys.executable, *arguments],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            env=self._environment,
        )
        self._reader = threading.Thread(target=self._read, args=(process,), daemon=True)
        self._reader.start()
        return process

    def _read(self, process: subprocess.Popen) -> None:
        """Through a pipe: a run whose files cannot grow is still heard."""
        with open(self.printed, "ab") as file:
            while part := process.stdout.read1():
                file.write(part)
                file.flush()

    def records(self) -> list[Record]:
        journal = self.folder / "metrics.jsonl"
        return read(journal) if journal.is_file() else []

    def until(self, there: Callable[[list[Record]], bool]) -> bool:
        """Waits for something in the journal; False when the run ends first. Raises RunError when
        neither happens.
        """
        deadline = time.monotonic() + LIMIT_S
        while not there(self.records()):
            if self.process.poll() is not None:
                return there(self.records())
            if time.monotonic() > deadline:
                self.end()
                raise RunError(
                    f"drill: {self.folder} did not end within {LIMIT_S:g} s; what it "
                    f"printed: {self.printed}"
                )
            time.sleep(0.1)
        return True

    def wait(self) -> int | None:
        """The exit code; None when the run does not end in time, and is ended."""
        try:
            return self.process.wait(LIMIT_S)
        except subprocess.TimeoutExpired:
            self.end()
            return None

    def resume(self) -> None:
        self.process = self._start(["-m", "sleep_rl", "resume", str(self.folder)])

    def end(self) -> None:
        if self.process.poll() is None:
            self.process.terminate()
            try:
                self.process.wait(60)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()

    def last_line(self) -> str:
        self._reader.join(10)
        lines = self.printed.read_text(errors="replace").strip().splitlines()
        return lines[-1] if lines else "nothing printed"

    def outcome(self) -> tuple[dict[str, bytes], dict]:
        """(bytes of each night's memory, last evaluation of sleep)."""
        memories = {
            path.parent.name: path.read_bytes()
            for path in sorted(self.folder.glob("memory/*/memory.safetensors"))
        }
        rows = [
            r["row"]
            for r in self.records()
            if r["kind"] == "evaluate" and r["method"] == "sleep" and r["row"]
        ]
        return memories, rows[-1] if rows else {}


def drill(path: str, overrides: list[str], say: Callable[[str], None] = print) -> str:
    """Runs every life of the drill and returns the table. Raises RunError with the table's failed
    rows, if there are any, and InputError when the config cannot be drilled.
    """
    config = load(path, overrides)
    if config.cluster.backend != "ray":
        raise InputError(
            f"drill: cluster.backend ray, where workers are processes, got {config.cluster.backend}"
        )
    home = _home(config)
    fixed = [
        *overrides,
        "sleep.lag=0",
        f"cluster.restarts={4 * len(PHASES)}",
        "cluster.report_after_s=20",
    ]
    say(f"{home}: what each life printed, and its run folder")
    quiet = Life("undisturbed", path, fixed, home)
    if (code := quiet.wait()) != 0:
        raise RunError(f"drill: already the undisturbed life fails: {_end(quiet, code)}")
    want, rows = quiet.outcome(), []
    say(f"undisturbed: {len(want[0])} nights in {clock(quiet.records()[-1]['seconds'])}")
    for life in lives(config):
        for row in life(path, fixed, home, want):
            rows.append(row)
            say(f"{row.what}, {row.where}: {row.happened}: {row.word}")
    table = aligned(
        [["fault", "where", "what happened", ""]]
        + [[r.what, r.where, r.happened, r.word] for r in rows]
    )
    failed = [row for row in rows if row.passed is False]
    if failed:
        say(table)
        raise RunError(
            f"drill: {len(failed)} of {len(rows)} rows failed: "
            f"{', '.join(f'{r.what} ({r.where})' for r in failed)}"
        )
    return f"{table}\n{sum(row.passed is True for row in rows)} of {len(rows)} passed"


Rows = Iterator[Row]
Play = Callable[[str, list[str], Path, tuple], Rows]


def lives(config: Config) -> list[Play]:
    """The drill's lives, each with one or more faults."""
    days = config.nights or len(make_task(config).days())
    nights = [min(i, days) for i in range(1, len(PHASES) + 1)]
    kills = [
        [
            Fault(f"kill {name}", phase, night, _upon(name, faults.kill))
            for phase, night in zip(PHASES, nights)
        ]
        for name in ("rollout-0", "reward-0", "learner-0")
    ]
    hangs = [
        Fault(f"hang {name}", "seeding", night, _upon(name, faults.freeze))
        for name, night in (("rollout-0", nights[0]), ("learner-0", nights[1]))
    ]
    return [
        *(_same(f"kill-{faults[0].what.split()[1]}", faults) for faults in kills),
        _same("hang", hangs, f"cluster.call_timeout_s={HANG_S:g}"),
        _stall,
        _flip,
        _disk,
        _cut,
    ]


def _same(name: str, faults: list[Fault], *keys: str) -> Play:
    """A life upon which `faults` come one after another; it must go on by itself and end like the
    undisturbed one.
    """

    def play(path: str, fixed: list[str], home: Path, want: tuple) -> Rows:
        life = Life(name, path, [*fixed, *keys], home)
        try:
            stories = [_strike(life, fault) for fault in faults]
            verdict = _verdict(life, want)
        finally:
            life.end()
        for fault, (hit, story) in zip(faults, stories):
            yield Row(
                fault.what,
                f"{fault.phase}, night {fault.night}",
                f"{story}; {verdict or 'same bytes'}",
                hit and not verdict,
            )

    return play


def _strike(life: Life, fault: Fault) -> tuple[bool, str]:
    """(whether it hit, what the run did about it)."""
    try:
        if not life.until(lambda records: reached(records, fault.phase, fault.night)):
            return False, "the life was over before"
        began = time.time()
        name = fault.do(life.folder)
        life.until(lambda records: _recovery(records, began, name) is not None)
    except (RunError, psutil.Error) as error:
        return False, str(error)
    record = _recovery(life.records(), began, name)
    if record is None:
        return True, "was not needed any more"
    return True, _told(record, began)


def _told(record: Record, since: float) -> str:
    return f"{record['worker']} noticed after {record['t'] - since:.0f} s and started anew"


def _recovery(records: list[Record], since: float, name: str) -> Record | None:
    """The record of a restart that made good for `name`."""
    mine = [
        r
        for r in records
        if r["kind"] == "restarted" and r["t"] > since and r["worker"] in (name, "all workers")
    ]
    return mine[0] if mine else None


def reached(records: list[Record], phase: str, night: int) -> bool:
    """Whether a journal shows that the life is in a phase of a night, or past it."""
    before = [i for i, r in enumerate(records) if r["kind"] == "night" and r["night"] == night - 1]
    later = records[before[-1] :] if before else records if night == 1 else []
    return any(
        {
            "wake": lambda r: r["kind"] == "evaluate" and r["method"] == "sleep" and r["row"],
            "writing": lambda r: r["kind"] == "push" and r["name"] == STUDENT,
            "seeding": lambda r: r["kind"] == "seed",
            "evaluation": lambda r: r["kind"] == "night" and r["night"] == night,
        }[phase](r)
        for r in later
    )


def _verdict(life: Life, want: tuple) -> str:
    """Empty when the life ended well and like the undisturbed one; else what is wrong."""
    if (code := life.wait()) != 0:
        return _end(life, code)
    got = life.outcome()
    return (
        ""
        if got == want
        else "another memory"
        if got[0] != want[0]
        else f"another evaluation: {got[1]}"
    )


def _end(life: Life, code: int | None) -> str:
    return (
        f"did not end within {LIMIT_S:g} s" if code is None else f"exit {code}: {life.last_line()}"
    )


def _stall(path: str, fixed: list[str], home: Path, want: tuple) -> Rows:
    """A reward worker that does not answer: its pairs get failures in place of rewards, and it is
    started anew.
    """
    fault = Fault("stall reward-0", "seeding", 1, _upon("reward-0", faults.freeze))
    life = Life("stall", path, [*fixed, f"reward.timeout_s={STALL_S:g}"], home)
    try:
        hit, story = _strike(life, fault)
        code = life.wait()
    finally:
        life.end()
    failed = sum(
        r["count"] for r in life.records() if r["kind"] == "failure" and r["where"] == "reward"
    )
    yield Row(
        fault.what,
        "seeding, night 1",
        f"{story}; {failed} pairs without a reward; exit {code}",
        hit and failed > 0 and code == 0,
    )


def _flip(path: str, fixed: list[str], home: Path, want: tuple) -> Rows:
    """A push whose bytes change on the way: no worker samples from it."""
    life = Life("flip", path, fixed, home, flipped=True)
    try:
        verdict = _verdict(life, want)
    finally:
        life.end()
    refused = [r for r in life.records() if r["kind"] == "restarted" and "damaged" in r["reason"]]
    yield Row(
        "flip a byte",
        f"push {faults.PUSH} of the student",
        f"{'refused and made anew' if refused else 'not noticed'}; {verdict or 'same bytes'}",
        bool(refused) and not verdict,
    )


def _disk(path: str, fixed: list[str], home: Path, want: tuple) -> Rows:
    """No file can grow any more: the run ends with one line, and goes on when there is room
    again.
    """
    life = Life("disk", path, fixed, home)
    try:
        hit = life.until(lambda records: reached(records, "seeding", 1))
        if hit:
            for process in (
                psutil.Process(life.process.pid),
                faults.worker(life.folder, "learner-0"),
            ):
                faults.no_more_disk(process)
        code, line = life.wait(), life.last_line()
        life.resume()
        verdict = _verdict(life, want)
    finally:
        life.end()
    yield Row(
        "full disk",
        "seeding, night 1",
        f"exit {code}: {line}; resumed: {verdict or 'same bytes'}",
        hit and code == 1 and line.startswith("sleep-rl: ") and not verdict,
    )


def _cut(path: str, fixed: list[str], home: Path, want: tuple) -> Rows:
    """A node that the head loses sight of, with a rollout worker on it; later another one takes its
    place.
    """
    what, where = "cut off a node", "seeding, night 1"
    config = load(path, fixed)
    config = replace(
        config, rollouts=replace(config.rollouts, workers=max(config.rollouts.workers, 2))
    )
    if any(actor.gpus for actor in actors_of(config)):
        yield Row(what, where, "two nodes on one machine cannot share its GPUs", None)
        return
    cpus = sum(actor.count * actor.cpus for actor in actors_of(config))
    with ExitStack() as ending:
        nodes = faults.TwoNodes(cpus - config.rollouts.cpus, config.rollouts.cpus)
        ending.callback(nodes.close)
        life = Life(
            "cut",
            path,
            [
                *fixed,
                f"cluster.address={nodes.address}",
                f"rollouts.workers={config.rollouts.workers}",
            ],
            home,
            environment=nodes.environment,
        )
        ending.callback(life.end)
        hit, began = life.until(lambda records: reached(records, "seeding", 1)), time.time()
        if hit:
            nodes.cut()
            life.until(lambda records: any(r["kind"] == "restarted" for r in records))
            nodes.join()
        verdict = _verdict(life, want)
    restarted = [r for r in life.records() if r["kind"] == "restarted"]
    story = _told(restarted[0], began) if restarted else "not noticed"
    yield Row(
        what, where, f"{story}; {verdict or 'same bytes'}", hit and bool(restarted) and not verdict
    )


def _upon(name: str, harm: Callable) -> Callable[[Path], str]:
    def do(folder: Path) -> str:
        harm(faults.worker(folder, name))
        return name

    return do


def _home(config: Config) -> Path:
    """A new folder <run.dir>/<run.name>-drill, or with -2, -3, ... behind it."""
    first = Path(config.run.dir) / f"{config.run.name}-drill"
    names = [first.name, *(f"{first.name}-{i}" for i in range(2, 10_000))]
    home = next(path for name in names if not (path := first.with_name(name)).exists())
    home.mkdir(parents=True)
    return home

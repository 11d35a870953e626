"""What the command line starts: builds the workers a config asks for, runs the driver, and ends
everything.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from cluster import scale
from cluster.crew import CHECKPOINT, WorkerCrew
from cluster.runtime.ray_backend import Backend, LocalBackend, RayBackend, WorkerDied, WorkerLate
from cluster.runtime.restarts import Restarts
from cluster.runtime.watchdog import Watch
from cluster.tracking.sink import WandbSink
from cluster.weights import WeightsDamaged
from sleep_rl.config.loader import dump
from sleep_rl.config.schema import Config
from sleep_rl.config.validation import check
from sleep_rl.contracts.errors import InputError, RunError
from sleep_rl.contracts.roles import Task
from sleep_rl.driver.cycle import live
from sleep_rl.driver.evaluation import evaluate as ask
from sleep_rl.journal.journal import Journal, read
from sleep_rl.model import checkpoints, memory_folder
from sleep_rl.report.page import write_report
from sleep_rl.runs import run_dir
from sleep_rl.runs.git import commit as _commit
from sleep_rl.session.console import Console
from sleep_rl.session.context import RunContext
from sleep_rl.session.prompts import PromptCodec
from sleep_rl.session.rehearsal_index import RehearsalIndex
from sleep_rl.session.resumable import Progress
from sleep_rl.session.stage_files import Checkpoint, newest
from sleep_rl.tasks.documents import ingestion
from sleep_rl.tasks.documents.sources import questions, scan
from sleep_rl.tasks.registry import make_task

METRICS = "metrics.jsonl"
# how a run gets its backend; the drill gives one that does damage
Make = Callable[[Config, Path], Backend]


def backend_of(config: Config, folder: Path) -> Backend:
    """Where workers run: `cluster.backend`."""
    c = config.cluster
    if c.backend == "local":
        return LocalBackend(c.start_timeout_s, c.call_timeout_s)
    return RayBackend(c.address, c.start_timeout_s, c.call_timeout_s, log_dir=str(folder / "logs"))


def run(config: Config, backend: Make = backend_of) -> int:
    """`sleep-rl run`: the whole life, with a report at the end, also of one that failed. Returns
    the exit code.
    """
    if config.task.name == "documents":
        return next_day(config, backend)
    # before a folder is made: data that cannot be read leaves nothing behind
    task = make_task(config)
    folder, console = new_folder(config), Console()
    console.say(f"{folder}: metrics.jsonl, report.html and the memory of every night")
    with run_dir.alone(folder):
        return _live(
            config, task, folder, console, run_dir.write(folder, config, task), False, backend
        )


def next_day(config: Config, backend: Make = backend_of) -> int:
    """`sleep-rl run` on a person's own documents: what is new or changed at their path is the next
    day of the life in <run.dir>/<run.name>, or its first one. Returns the exit code.
    """
    # before a folder is made: documents that cannot be read leave nothing behind
    task = make_task(config)
    folder, console, own = Path(config.run.dir) / config.run.name, Console(), config.task.documents
    begun = os.path.isfile(folder / run_dir.FILE)
    if not begun and os.path.isdir(folder) and os.listdir(folder):
        raise InputError(
            f"run.name: {folder} is there, but holds no life that could go on "
            f"({run_dir.FILE} is missing); choose "
            "another name"
        )
    wandb_id = run_dir.check_same(folder, config) if begun else ""
    found, asked = (
        scan(own.path, "task.documents.path"),
        questions(own.questions, own.path, "task.documents.questions"),
    )
    most, count = _pieces(config, base_checkpoint(config, task, console), task)
    folder.mkdir(parents=True, exist_ok=True)
    run_dir.check_inside(folder)
    with run_dir.alone(folder):
        days = ingestion.read(folder)
        grown = ingestion.next_day(days, found.sources, asked, most, count)
        for name, why in found.left_out.items():
            console.say(f"{own.path}: {name} was left out: {why}", "yellow")
        if grown == days and _ended_well(folder, len(days)):
            console.say(
                f"{folder}: nothing in {own.path} is new since day {len(days)}; nothing to do"
            )
            return 0
        config = run_dir.with_documents(config, days=len(grown), record=str(folder))
        check(config)  # the life is longer now
        console.say(f"{folder}: {ingestion.told(grown)}")
        ingestion.write(folder, grown)
        task = make_task(config)
        return _live(
            config,
            task,
            folder,
            console,
            run_dir.write(folder, config, task, wandb_id),
            begun,
            backend,
        )


def _pieces(config: Config, base: str, task: Task) -> tuple[int, Callable[[str], int]]:
    """(most tokens of a piece of a document, how they are counted)."""
    shape = checkpoints.read_config(base)
    texts = PromptCodec(task, checkpoints.load_tokenizer(base, shape.vocab_size))
    longest = config.rollouts.engine.get("max_model_len") or shape.max_position_embeddings
    room = longest - len(texts.bos) - len(texts.opener) - task.max_new_tokens
    if room < 8:
        raise InputError(
            f"rollouts.engine.max_model_len: at least {longest - room + 8}, a piece "
            "of a document and what is "
            f"written about it, got {longest}"
        )
    return min(task.piece_tokens, room), lambda text: len(texts.ids(task.read_as(text)))


def _ended_well(folder: Path, nights: int) -> bool:
    """Whether a run's journal ends with its end, and that of so many nights."""
    ended = (
        [r for r in read(folder / METRICS) if r["kind"] == "done"]
        if (folder / METRICS).is_file()
        else []
    )
    return (
        bool(ended)
        and ended[-1]["status"] == "ok"
        and (folder / "memory" / f"night-{nights}").is_dir()
    )


def resume(run: str, overrides: Sequence[str], accept: Sequence[str]) -> int:
    """`sleep-rl resume`: goes on with a run where its newest complete checkpoint stands. Returns
    the exit code.
    """
    folder, console = Path(run), Console()
    config, task, wandb_id = run_dir.read(folder, overrides, accept)
    run_dir.check_inside(folder)
    with run_dir.alone(folder):
        if _ended_well(folder, config.nights):
            console.say(f"{folder}: this life has been lived; nothing to do")
            return 0
        checkpoint = newest(folder)
        if checkpoint:
            console.say(f"{folder}: goes on {checkpoint.place}")
        else:
            console.say(f"{folder}: has no complete checkpoint; begins anew")
        return _live(config, task, folder, console, wandb_id, True)


def _live(
    config: Config,
    task: Task,
    folder: Path,
    console: Console,
    wandb_id: str,
    resumed: bool,
    backend: Make = backend_of,
) -> int:
    """A life from its beginning, or (`resumed`) from the newest checkpoint of its folder."""
    sinks = [console] + ([_wandb(config, folder, wandb_id)] if config.wandb.mode != "off" else [])
    checkpoint = newest(folder) if resumed else None
    size = checkpoint.journal if checkpoint else 0
    journal = Journal(folder / METRICS, sinks, keep=size if resumed else None)
    if config.gamma == 0 and config.objective.alpha < 1:
        console.say("WARNING reward.gamma is 0: imitation is rewarded by edit distance alone")
    (folder / scale.FILE).unlink(missing_ok=True)  # a wish is for the process that it was made to
    with _recorded(journal, folder, console):
        base = base_checkpoint(config, task, console)
        if checkpoint is None:
            journal.log(
                "run",
                config=dump(config),
                task=task.name,
                model=base,
                started=time.time(),
                commit=_commit(),
                seeds=[config.run.seed],
            )
        restarts, begun, started = Restarts(config.cluster.restarts, journal), journal.size(), False
        while True:
            try:
                with crew_of(
                    config,
                    base,
                    task,
                    journal,
                    console,
                    folder,
                    restarts=restarts,
                    backend=backend,
                    patient=started,
                ) as life:
                    started = True
                    _continue(life, checkpoint)
                    live(life)
                    life.progress.finish()
                break
            # A learner's group is gone, and with it all since the checkpoint; or weights that only
            # a learner can give are.
            except (WorkerDied, WorkerLate, WeightsDamaged) as error:
                if not started:  # what cannot be started once is not tried again
                    raise
                checkpoint = newest(folder)
                journal.cut(checkpoint.journal if checkpoint else begun)
                restarts.spend("all workers", str(error))
                console.say(
                    f"warning: {error}; going on from the newest "
                    f"checkpoint{': ' + checkpoint.place if checkpoint else ''}",
                    "yellow",
                )
        last = folder / "memory" / f"night-{config.nights}"
        model = checkpoints.expand(str(last), str(folder / "model"), memory_of(config))
        console.say(
            f"{model}: the model after the last night, an ordinary checkpoint for vLLM "
            "and transformers"
        )
    return 0


def _continue(life: RunContext, checkpoint: Checkpoint | None) -> None:
    """Brings workers and driver to where a checkpoint was written, if there is one."""
    if checkpoint is None:
        return
    life.progress.restore(checkpoint)
    life.index.restore(checkpoint.index)
    life.crew.resume(checkpoint.learner, checkpoint.version)


@contextmanager
def _recorded(journal: Journal, folder: Path, console: Console) -> Iterator[None]:
    """Ends the journal and writes the report however the block ends; the block's own error is the
    one that is raised.
    """
    started = time.time()
    _exit_on_sigterm()
    try:
        yield
    except BaseException as error:
        # a full disk has ended the run already; it cannot be recorded on the same disk
        with suppress(RunError):
            journal.log(
                "done", seconds=time.time() - started, status="failed", reason=_reason(error)
            )
            journal.close()
            console.say(str(write_report(folder)))
        raise
    journal.log("done", seconds=time.time() - started, status="ok", reason=None)
    journal.close()
    console.say(str(write_report(folder)))


def _exit_on_sigterm() -> None:
    """Lets SIGTERM end the run as Ctrl-C does, with a record and a report: how a job server stops a
    job.
    """
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, lambda number, _: sys.exit(number))


def _reason(error: BaseException) -> str:
    if isinstance(error, KeyboardInterrupt):
        return "interrupted"
    if isinstance(error, SystemExit):
        return "ended by SIGTERM" if error.code == signal.SIGTERM else f"exit {error.code}"
    return str(error) or type(error).__name__


def evaluate(checkpoint: str, config: Config) -> int:
    """`sleep-rl eval`: asks a checkpoint (or a memory folder) about the known and every day,
    without documents.
    """
    # before a folder is made: a mistyped name leaves nothing behind
    checkpoints.check_exists(checkpoint)
    task = make_task(config)
    folder, console = new_folder(config, suffix="-eval"), Console()
    journal = Journal(folder / METRICS, [console])
    try:
        with crew_of(config, checkpoint, task, journal, console, folder, learners=False) as life:
            days = len(task.days())
            ask(life, after=f"night {days}", lived=days, weights=CHECKPOINT)
    finally:
        journal.close()
    return 0


def pretrain(config: Config) -> int:
    """`sleep-rl pretrain`: the task's own small base, trained on first use."""
    console = Console()
    console.say(make_base(config, make_task(config), console))
    return 0


@contextmanager
def crew_of(
    config: Config,
    base: str,
    task: Task,
    journal: Journal,
    console: Console,
    folder: Path,
    learners: bool = True,
    restarts: Restarts | None = None,
    backend: Make = backend_of,
    patient: bool = False,
) -> Iterator[RunContext]:
    """The workers of a run, ready; all of them end with the block. `patient`: see WorkerCrew."""
    checkpoint = checkpoints.expand(
        base, str(folder / "checkpoint"), memory_of(config), config.run.seed
    )
    tokenizer = checkpoints.load_tokenizer(
        checkpoint, checkpoints.read_config(checkpoint).vocab_size
    )
    teachers = (
        [
            checkpoints.as_teacher(path, str(folder / f"teacher-{k}"), checkpoint, tokenizer)
            for k, path in enumerate(config.model.teachers, start=1)
        ]
        if learners
        else []
    )
    texts = PromptCodec(task, tokenizer)
    if learners:
        documents = [d for day in task.days() for d in day.documents]
        texts.check_fits(documents, config.rollouts.engine["max_model_len"])
    known = task.known()
    probe = texts.context(None) + texts.question(known[0]) if known else texts.opener
    with console.phase("starting the workers"):
        there = backend(config, folder)
    _exit_on_sigterm()  # Ray has a handler of its own, which prints stacks
    there.watch = Watch(
        console.say, console.current, str(folder / "logs"), config.cluster.report_after_s
    )
    with there:
        with console.phase(
            f"loading {config.rollouts.workers} rollout engines and "
            f"{config.learners.world_size} learners"
        ):
            crew = WorkerCrew(
                there,
                config,
                journal,
                checkpoint=checkpoint,
                base=memory_folder.root(base),
                probe_T=probe,
                learners=learners,
                restarts=restarts,
                wanted=lambda: scale.wanted(folder),
                teachers=teachers,
                patient=patient,
            )
        yield RunContext(
            crew,
            task,
            texts,
            config,
            journal,
            console,
            str(folder),
            RehearsalIndex(config.rehearsal.priority == "divergence"),
            Progress(str(folder) if learners else None),
        )
        crew.close()


def memory_of(config: Config) -> list[dict]:
    """The memory levels that the config asks for, fastest first, as a checkpoint's config holds
    them.
    """
    m = config.model
    return [{"experts": m.experts, "d_low": m.d_low, "top_k": m.top_k} for _ in range(m.levels)]


def base_checkpoint(config: Config, task: Task, console: Console) -> str:
    """The configured base, or the task's own small one."""
    return config.model.base or make_base(config, task, console)


def make_base(config: Config, task: Task, console: Console) -> str:
    """Trains the task's small base into run.cache, or finds it there."""
    with ExitStack() as shown:
        tick, done = None, 0

        def progress(step: int, steps: int, loss: float) -> None:
            nonlocal tick, done
            if tick is None:  # only what is trained has a bar; the cache answers at once
                tick = shown.enter_context(
                    console.phase(f"training the base model of {task.name}, once", total=steps)
                )
            tick(step - done, f"loss {loss:.3f}")
            done = step

        return task.base_checkpoint(config.run.cache, config.run.seed, progress)


def new_folder(config: Config, suffix: str = "") -> Path:
    """<run.dir>/<run.name>, or with -2, -3, ... behind it: an earlier run is never written over."""
    first = Path(config.run.dir) / f"{config.run.name}{suffix}"
    candidates = [first] + [first.with_name(f"{first.name}-{i}") for i in range(2, 10_000)]
    for folder in candidates:
        try:
            folder.mkdir(parents=True)
            return folder
        except FileExistsError:
            continue
        except OSError as error:
            raise RunError(f"run.dir: {folder} cannot be made: {error.strerror}") from error
    raise RunError(f"run.dir: {first} and its numbered names are all taken")


def _wandb(config: Config, folder: Path, run_id: str) -> WandbSink:
    return WandbSink(
        config.wandb.project,
        config.wandb.mode,
        dir=folder,
        config=dump(config),
        name=folder.name,
        group=config.wandb.group,
        run_id=run_id,
        commit=_commit(),
        artifacts=config.wandb.artifacts,
    )

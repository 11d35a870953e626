"""Start the workers of a run from its config: base model, checkpoint, backend, crew."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from cluster import scale
from cluster.crew import start_crew
from cluster.run_record import exit_on_sigterm
from cluster.runtime.backend import Backend
from cluster.runtime.local_backend import LocalBackend
from cluster.runtime.ray_backend import RayBackend
from cluster.runtime.restarts import Restarts
from cluster.runtime.watchdog import Watchdog
from cluster.worker_specs import CrewSpec
from sleep_rl.config.schema import Config
from sleep_rl.contracts.roles import Task
from sleep_rl.driver.measures import probes
from sleep_rl.journal.journal import Journal
from sleep_rl.model import checkpoints, memory_folder, packaged_base
from sleep_rl.model.memory_shape import memory_of
from sleep_rl.session.console import Console
from sleep_rl.session.context import RunContext
from sleep_rl.session.rehearsal_index import RehearsalIndex
from sleep_rl.session.resumable import Progress
from sleep_rl.text.codec import PromptCodec
from sleep_rl.text.loading import load_codec

# (config, run folder) -> backend; the drill passes one that corrupts a push
MakeBackend = Callable[[Config, Path], Backend]


def make_backend(config: Config, folder: Path) -> Backend:
    """Return the backend of cluster.backend; the workers' logs go to <folder>/logs."""
    cluster = config.cluster
    if cluster.backend == "local":
        return LocalBackend(cluster.start_timeout_s, cluster.call_timeout_s)
    return RayBackend(
        cluster.address,
        cluster.start_timeout_s,
        cluster.call_timeout_s,
        log_dir=str(folder / "logs"),
    )


@dataclass(frozen=True)
class RunSetup:
    """Input of a command: a config, its task, and the folder of all output."""

    config: Config
    task: Task
    folder: Path
    console: Console
    make_backend: MakeBackend = make_backend


@contextmanager
def run_workers(
    setup: RunSetup,
    base: str,
    journal: Journal,
    *,
    learners: bool = True,
    restarts: Restarts | None = None,
    is_restart: bool = False,
) -> Iterator[RunContext]:
    """Yield the context of a run whose workers are ready; end them with the block.

    `base`: a model, a checkpoint or a memory folder; `learners`: False for an evaluation;
    `restarts`, `is_restart`: see start_crew.
    """
    config = setup.config
    console = setup.console
    spec, texts, context_tokens = _prepare(setup, base, learners)
    with console.phase("starting the workers"):
        backend = setup.make_backend(config, setup.folder)
    exit_on_sigterm()  # again: Ray installed its own handler, which prints stacks
    backend.report_to(Watchdog(console.say, console.current, str(setup.folder / "logs")))
    with backend:
        with console.phase(
            f"loading {config.rollouts.workers} rollout engines and "
            f"{config.learners.world_size} learners"
        ):
            crew = start_crew(
                backend,
                spec,
                journal,
                restarts,
                requested_rollouts=lambda: scale.requested(setup.folder),
                is_restart=is_restart,
            )
        yield RunContext(
            crew,
            setup.task,
            texts,
            config,
            journal,
            console,
            str(setup.folder),
            context_tokens,
            RehearsalIndex(by_divergence=config.rehearsal.priority == "divergence"),
            Progress(str(setup.folder) if learners else None),
        )
        crew.close()


def _prepare(setup: RunSetup, base: str, learners: bool) -> tuple[CrewSpec, PromptCodec, int]:
    """Write the checkpoints that the workers load, and check that the task's documents fit into the
    engine's max_model_len. Return (the crew's specification, the task's codec, tokens of the
    engine's context).
    """
    config = setup.config
    checkpoint = checkpoints.expand(
        base, str(setup.folder / "checkpoint"), memory_of(config), config.run.seed
    )
    shape = checkpoints.read_config(checkpoint)
    texts = load_codec(setup.task, base, config)
    probes.check(config.evaluate.probes, texts.natural)
    longest = config.rollouts.engine.get("max_model_len") or shape.max_position_embeddings
    teachers = []
    if learners:
        for k, name in enumerate(config.model.teachers, start=1):
            path = packaged_base.resolve(name, config.run.cache, setup.console.phase)
            out = str(setup.folder / f"teacher-{k}")
            teachers.append(checkpoints.as_teacher(path, out, texts.tokenizer))
        documents = [document for day in setup.task.days() for document in day.documents]
        texts.check_fits(documents, longest)
    known = setup.task.known()
    probe_T = texts.context(None) + texts.question(known[0]) if known else texts.bare
    sizes = [shape.vocab_size, *(checkpoints.read_config(path).vocab_size for path in teachers)]
    spec = CrewSpec(
        config,
        checkpoint,
        memory_folder.root(base),
        probe_T,
        tuple(teachers),
        learners,
        shared_ids=min(sizes),
    )
    return spec, texts, longest


def base_checkpoint(config: Config, task: Task, console: Console) -> str:
    """Return the path of the base model: of model.base, or without one of the task's small base
    model.

    A packaged base and the task's own one are made in run.cache on first use.
    """
    if config.own_base:
        return make_base(config, task, console)
    return packaged_base.resolve(config.model.base, config.run.cache, console.phase)


def make_base(config: Config, task: Task, console: Console) -> str:
    """Return the path of the task's small base model in run.cache; train it there if needed."""
    with ExitStack() as phase:
        tick = None
        done = 0

        def progress(step: int, steps: int, loss: float) -> None:
            nonlocal tick, done
            if tick is None:  # the progress bar begins with the training: a cached model has none
                title = f"training the base model of {task.name}, once"
                tick = phase.enter_context(console.phase(title, total=steps))
            tick(step - done, f"loss {loss:.3f}")
            done = step

        return task.base_checkpoint(config.run.cache, config.run.seed, progress)

"""One life in a run folder: from its beginning or its newest checkpoint to its last night."""

from __future__ import annotations

import time

from cluster import scale
from cluster.run_record import JOURNAL, recorded, wandb_sink
from cluster.run_workers import RunSetup, base_checkpoint, memory_of, run_workers
from cluster.runtime.handle import WorkerDied, WorkerLate
from cluster.runtime.restarts import Restarts
from cluster.weights import WeightsDamaged
from sleep_rl.config.loader import dump
from sleep_rl.driver.cycle import live
from sleep_rl.journal.journal import Journal
from sleep_rl.model import checkpoints
from sleep_rl.runs.git import commit
from sleep_rl.session.context import RunContext
from sleep_rl.session.stage_files import Checkpoint, newest


def live_in_folder(setup: RunSetup, wandb_id: str, resumed: bool) -> int:
    """Live to the last night and write the model after it; return the exit code, 0.

    `resumed`: begin at the newest checkpoint of the folder, if there is one. The journal and the
    report are written also for a life that fails.
    """
    config = setup.config
    folder = setup.folder
    console = setup.console
    checkpoint = newest(folder) if resumed else None
    journal = _open_journal(setup, wandb_id, resumed, checkpoint)
    if config.gamma == 0 and config.objective.alpha < 1:
        console.say("WARNING reward.gamma is 0: imitation is rewarded by edit distance alone")
    # a request to scale is for the process that it was made to
    (folder / scale.FILE).unlink(missing_ok=True)
    with recorded(journal, folder, console):
        base = base_checkpoint(config, setup.task, console)
        if checkpoint is None:
            journal.log(
                "run",
                config=dump(config),
                task=setup.task.name,
                model=base,
                started=time.time(),
                commit=commit(),
                seeds=[config.run.seed],
            )
        _live_with_restarts(setup, base, journal, checkpoint)
        last = folder / "memory" / f"night-{len(setup.task.days())}"
        model = checkpoints.expand(str(last), str(folder / "model"), memory_of(config))
        console.say(
            f"{model}: the model after the last night, an ordinary checkpoint for vLLM "
            "and transformers"
        )
    return 0


def _open_journal(
    setup: RunSetup, wandb_id: str, resumed: bool, checkpoint: Checkpoint | None
) -> Journal:
    """Return the run's journal, cut to its length at the checkpoint, with its sinks."""
    keep = None
    if resumed:
        keep = checkpoint.journal if checkpoint else 0
    sinks = [setup.console]
    if setup.config.wandb.mode != "off":
        sinks.append(wandb_sink(setup.config, setup.folder, wandb_id))
    return Journal(setup.folder / JOURNAL, sinks, keep=keep)


def _live_with_restarts(
    setup: RunSetup, base: str, journal: Journal, checkpoint: Checkpoint | None
) -> None:
    """Live to the end; restart all workers from the newest checkpoint where a single one cannot be
    restarted: the learner group died, or the weight store is damaged.
    """
    restarts = Restarts(setup.config.cluster.restarts, journal)
    first_size = journal.size()
    started = False
    while True:
        try:
            with run_workers(setup, base, journal, restarts=restarts, patient=started) as run:
                started = True
                _restore(run, checkpoint)
                live(run)
                run.progress.finish()
            return
        except (WorkerDied, WorkerLate, WeightsDamaged) as error:
            if not started:  # workers that cannot be started once are not started again
                raise
            checkpoint = newest(setup.folder)
            journal.cut(checkpoint.journal if checkpoint else first_size)
            restarts.consume("all workers", str(error))
            place = f": {checkpoint.place}" if checkpoint else ""
            setup.console.say(
                f"warning: {error}; going on from the newest checkpoint{place}", "yellow"
            )


def _restore(run: RunContext, checkpoint: Checkpoint | None) -> None:
    """Bring workers and driver to where a checkpoint was written, if there is one."""
    if checkpoint is None:
        return
    run.progress.restore(checkpoint)
    run.index.restore(checkpoint.index)
    run.crew.resume(checkpoint.learner, checkpoint.version)

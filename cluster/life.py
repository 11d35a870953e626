"""Run a life in its run folder, from the start or from its newest checkpoint, with restarts."""

from __future__ import annotations

import time

from cluster import scale
from cluster.run_record import JOURNAL, recorded, wandb_sink
from cluster.run_workers import RunSetup, base_checkpoint, run_workers
from cluster.runtime.handle import WorkerDied, WorkerTimeout
from cluster.runtime.restarts import Restarts
from cluster.weights import WeightsDamaged
from sleep_rl.config.loader import dump
from sleep_rl.driver.cycle import live
from sleep_rl.journal.journal import Journal
from sleep_rl.model import checkpoints
from sleep_rl.model.memory_shape import memory_of
from sleep_rl.runs.git import commit
from sleep_rl.session.context import RunContext
from sleep_rl.session.stage_files import Checkpoint, newest


def live_in_folder(setup: RunSetup, wandb_id: str, resumed: bool) -> int:
    """Run all nights and write the model after the last one; return the exit code, 0.

    `wandb_id`: W&B's id of the run; `resumed`: start from the newest checkpoint of the folder, if
    there is one. A run that fails also gets its last journal record and its report.
    """
    config = setup.config
    folder = setup.folder
    console = setup.console
    checkpoint = newest(folder) if resumed else None
    journal = _open_journal(setup, wandb_id, resumed, checkpoint)
    if config.gamma == 0 and config.objective.alpha < 1:
        console.say("WARNING reward.gamma is 0: imitation is rewarded by edit distance alone")
    # a scaling request is meant for the process that ran when it was made
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
        console.say(f"sleep-rl chat {folder}: ask it, beside the model without its memory")
    return 0


def _open_journal(
    setup: RunSetup, wandb_id: str, resumed: bool, checkpoint: Checkpoint | None
) -> Journal:
    """Return the run's journal with its sinks; of a resumed run truncated to the checkpoint."""
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
    """Run all nights. Restart all workers from the newest checkpoint when restarting one does not
    help: the learner group died, or the weight store is damaged.
    """
    restarts = Restarts(setup.config.cluster.restarts, journal)
    first_size = journal.size()
    started = False
    while True:
        try:
            with run_workers(setup, base, journal, restarts=restarts, is_restart=started) as run:
                started = True
                _restore(run, checkpoint)
                live(run)
                run.progress.finish(run.config)
            return
        except (WorkerDied, WorkerTimeout, WeightsDamaged) as error:
            if not started:  # the first start failed, so would the next
                raise
            checkpoint = newest(setup.folder)
            journal.cut(checkpoint.journal if checkpoint else first_size)
            restarts.count("all workers", str(error))
            place = f": {checkpoint.place}" if checkpoint else ""
            setup.console.say(
                f"warning: {error}; restarting from the newest checkpoint{place}", "yellow"
            )


def _restore(run: RunContext, checkpoint: Checkpoint | None) -> None:
    """Restore driver and workers from a checkpoint, if there is one."""
    if checkpoint is None:
        return
    run.progress.restore(checkpoint)
    run.index.restore(checkpoint.index)
    run.crew.resume(checkpoint.learner, checkpoint.version)

"""The commands that start workers: run, resume, eval; and pretrain."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from cluster.documents_run import next_day
from cluster.life import live_in_folder
from cluster.run_record import JOURNAL, is_complete
from cluster.run_workers import (
    MakeBackend,
    RunSetup,
    base_checkpoint,
    make_backend,
    make_base,
    run_workers,
)
from sleep_rl.config.schema import Config
from sleep_rl.contracts.records import CHECKPOINT
from sleep_rl.driver import evaluation
from sleep_rl.journal.journal import Journal
from sleep_rl.model import checkpoints, packaged_base
from sleep_rl.runs import run_dir
from sleep_rl.session.console import Console
from sleep_rl.session.stage_files import newest
from sleep_rl.tasks.registry import make_task


def run(config: Config, backend: MakeBackend = make_backend) -> int:
    """Run all nights and write a report, also when the run fails (`sleep-rl run`). Return the exit
    code.
    """
    if config.task.name == "documents":
        return next_day(config, backend)
    # before the folder is created, so that unreadable data leaves none behind
    task = make_task(config)
    setup = RunSetup(config, task, run_dir.new_folder(config), Console(), backend)
    folder = setup.folder
    setup.console.say(f"{folder}: metrics.jsonl, report.html and the memory of every night")
    with run_dir.alone(folder):
        wandb_id = run_dir.write(folder, config, task)
        return live_in_folder(setup, wandb_id, resumed=False)


def resume(run: str, overrides: Sequence[str], accept: Sequence[str]) -> int:
    """Resume the run in the folder `run` from its newest complete checkpoint (`sleep-rl resume`).

    `accept`: keys that may have changed, see run_dir.read. Return the exit code.
    """
    folder = Path(run)
    console = Console()
    config, task, wandb_id = run_dir.read(folder, overrides, accept)
    run_dir.check_inside(folder)
    with run_dir.alone(folder):
        if is_complete(folder, len(task.days())):
            console.say(f"{folder}: this run is complete; nothing to do")
            return 0
        checkpoint = newest(folder)
        if checkpoint:
            console.say(f"{folder}: resumes {checkpoint.place}")
        else:
            console.say(f"{folder}: has no complete checkpoint; starts from the beginning")
        setup = RunSetup(config, task, folder, console)
        return live_in_folder(setup, wandb_id, resumed=True)


def evaluate(checkpoint: str, config: Config) -> int:
    """Evaluate a checkpoint (or a memory folder) on the known and on every day, without documents
    (`sleep-rl eval`). Return the exit code.
    """
    # before the folder is created, so that a mistyped name leaves none behind
    checkpoints.check_exists(checkpoint)
    task = make_task(config)
    console = Console()
    checkpoint = packaged_base.resolve(checkpoint, config.run.cache, console.phase)
    folder = run_dir.new_folder(config, suffix="-eval")
    setup = RunSetup(config, task, folder, console)
    journal = Journal(folder / JOURNAL, [setup.console])
    try:
        with run_workers(setup, checkpoint, journal, learners=False) as context:
            days = len(task.days())
            evaluation.evaluate(context, after=f"night {days}", lived=days, weights=CHECKPOINT)
    finally:
        journal.close()
    return 0


def pretrain(config: Config) -> int:
    """Make the base model in run.cache, unless it is there (`sleep-rl pretrain`): dequantise a
    packaged model.base, else train the task's small base model. Print its path; return the exit
    code.
    """
    console = Console()
    task = make_task(config)
    packaged = not config.own_base and packaged_base.is_packaged(config.model.base)
    make = base_checkpoint if packaged else make_base
    console.say(make(config, task, console))
    return 0

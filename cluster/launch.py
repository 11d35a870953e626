"""What the command line starts on workers: run, resume, evaluate, pretrain."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from cluster.documents_run import next_day
from cluster.life import live_in_folder
from cluster.run_record import JOURNAL, ended_well
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
    """`sleep-rl run`: live all nights, and write a report, also of a run that fails. Return the
    exit code.
    """
    if config.task.name == "documents":
        return next_day(config, backend)
    # before a folder is made: data that cannot be read leaves nothing behind
    task = make_task(config)
    setup = RunSetup(config, task, run_dir.new_folder(config), Console(), backend)
    folder = setup.folder
    setup.console.say(f"{folder}: metrics.jsonl, report.html and the memory of every night")
    with run_dir.alone(folder):
        wandb_id = run_dir.write(folder, config, task)
        return live_in_folder(setup, wandb_id, resumed=False)


def resume(run: str, overrides: Sequence[str], accept: Sequence[str]) -> int:
    """`sleep-rl resume`: go on with the run in a folder from its newest complete checkpoint.

    `accept`: changed keys that are allowed, see run_dir.read. Return the exit code.
    """
    folder = Path(run)
    console = Console()
    config, task, wandb_id = run_dir.read(folder, overrides, accept)
    run_dir.check_inside(folder)
    with run_dir.alone(folder):
        if ended_well(folder, len(task.days())):
            console.say(f"{folder}: this life has been lived; nothing to do")
            return 0
        checkpoint = newest(folder)
        if checkpoint:
            console.say(f"{folder}: goes on {checkpoint.place}")
        else:
            console.say(f"{folder}: has no complete checkpoint; begins anew")
        setup = RunSetup(config, task, folder, console)
        return live_in_folder(setup, wandb_id, resumed=True)


def evaluate(checkpoint: str, config: Config) -> int:
    """`sleep-rl eval`: ask a checkpoint (or a memory folder) about the known and every day, without
    documents. Return the exit code.
    """
    # before a folder is made: a mistyped name leaves nothing behind
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
    """`sleep-rl pretrain`: make the base in the cache, unless it holds it: dequantise model.base
    where that is packaged, else train the task's own small base. Print its path; return the exit
    code.
    """
    console = Console()
    task = make_task(config)
    packaged = config.model.base is not None and packaged_base.is_packaged(config.model.base)
    make = base_checkpoint if packaged else make_base
    console.say(make(config, task, console))
    return 0

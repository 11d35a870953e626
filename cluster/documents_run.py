"""`sleep-rl run` on a person's own documents: each call lives the next day of one life."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from cluster.life import live_in_folder
from cluster.run_record import ended_well
from cluster.run_workers import MakeBackend, RunSetup, base_checkpoint, make_backend
from sleep_rl.config.schema import Config
from sleep_rl.config.validation import check_experts
from sleep_rl.contracts.errors import InputError
from sleep_rl.contracts.roles import Task
from sleep_rl.model import checkpoints
from sleep_rl.runs import run_dir
from sleep_rl.session.console import Console
from sleep_rl.session.prompts import PromptCodec
from sleep_rl.tasks.documents import ingestion
from sleep_rl.tasks.documents.sources import questions, scan
from sleep_rl.tasks.registry import make_task

LEAST_PIECE_TOKENS = 8


def next_day(config: Config, backend: MakeBackend = make_backend) -> int:
    """Live the next day of the life in <run.dir>/<run.name>, or its first one, with what is new or
    changed at task.documents.path. Return the exit code.
    """
    # before a folder is made: documents that cannot be read leave nothing behind
    task = make_task(config)
    folder = Path(config.run.dir) / config.run.name
    console = Console()
    documents = config.task.documents
    begun = os.path.isfile(folder / run_dir.FILE)
    if not begun and os.path.isdir(folder) and os.listdir(folder):
        raise InputError(
            f"run.name: {folder} is there, but holds no life that could go on "
            f"({run_dir.FILE} is missing); choose another name"
        )
    wandb_id = run_dir.check_same(folder, config) if begun else ""
    scanned = scan(documents.path, "task.documents.path")
    asked = questions(documents.questions, documents.path, "task.documents.questions")
    most, count = _piece_size(config, base_checkpoint(config, task, console), task)
    folder.mkdir(parents=True, exist_ok=True)
    run_dir.check_inside(folder)
    with run_dir.alone(folder):
        days = ingestion.read(folder)
        grown = ingestion.next_day(days, scanned.sources, asked, most, count)
        for name, why in scanned.left_out.items():
            console.say(f"{documents.path}: {name} was left out: {why}", "yellow")
        if grown == days and ended_well(folder, len(days)):
            console.say(
                f"{folder}: nothing in {documents.path} is new since day {len(days)}; nothing to do"
            )
            return 0
        check_experts(config, len(grown))  # the life is longer now
        console.say(f"{folder}: {ingestion.summary_line(grown)}")
        ingestion.write(folder, grown)
        setup = RunSetup(config, make_task(config, str(folder)), folder, console, backend)
        return live_in_folder(setup, run_dir.write(folder, config, setup.task, wandb_id), begun)


def _piece_size(config: Config, base: str, task: Task) -> tuple[int, Callable[[str], int]]:
    """Return (most tokens of a piece of a document, a function that counts them in a text)."""
    shape = checkpoints.read_config(base)
    texts = PromptCodec(task, checkpoints.load_tokenizer(base, shape.vocab_size))
    longest = config.rollouts.engine.get("max_model_len") or shape.max_position_embeddings
    room = longest - len(texts.bos) - len(texts.opener) - task.max_new_tokens
    if room < LEAST_PIECE_TOKENS:
        raise InputError(
            f"rollouts.engine.max_model_len: at least {longest - room + LEAST_PIECE_TOKENS}, a "
            f"piece of a document and what is written about it, got {longest}"
        )
    return min(task.piece_tokens, room), lambda text: len(texts.ids(task.read_as(text)))

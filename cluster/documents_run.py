"""`sleep-rl run` with task documents: each call adds one day to the same life. `sleep-rl forget`
adds one that unlearns a document.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from cluster.life import live_in_folder
from cluster.run_record import is_complete
from cluster.run_workers import MakeBackend, RunSetup, base_checkpoint, make_backend
from sleep_rl.config.schema import Config
from sleep_rl.config.validation import check_experts
from sleep_rl.contracts.errors import InputError
from sleep_rl.contracts.roles import Task
from sleep_rl.model import checkpoints
from sleep_rl.runs import run_dir
from sleep_rl.session.console import Console
from sleep_rl.tasks.documents import ingestion
from sleep_rl.tasks.documents.questions import questions
from sleep_rl.tasks.documents.sources import scan
from sleep_rl.tasks.registry import make_task
from sleep_rl.text.loading import load_codec

MIN_PIECE_TOKENS = 8
HEADER_TOKENS = 32  # of a piece: title and number


def next_day(config: Config, backend: MakeBackend = make_backend) -> int:
    """Run the next day of the life in <run.dir>/<run.name> (or its first day) on the documents of
    task.documents.path that are new, changed or deleted. Return the exit code.

    Raises InputError for documents that cannot be read, and for a folder that holds no run.
    """
    # before the folder is created, so that unreadable documents leave none behind
    task = make_task(config)
    folder = Path(config.run.dir) / config.run.name
    console = Console()
    documents = config.task.documents
    exists = os.path.isfile(folder / run_dir.FILE)
    if not exists and os.path.isdir(folder) and os.listdir(folder):
        raise InputError(
            f"run.name: {folder} exists, but is not the folder of a run ({run_dir.FILE} is "
            "missing); choose another name"
        )
    wandb_id = run_dir.check_same(folder, config) if exists else ""
    scanned = scan(documents.path, "task.documents.path")
    user_questions = questions(documents.questions, documents.path, "task.documents.questions")
    max_tokens, count = _piece_size(config, base_checkpoint(config, task, console), task)
    folder.mkdir(parents=True, exist_ok=True)
    run_dir.check_inside(folder)
    with run_dir.alone(folder):
        days = ingestion.read(folder)
        extended = ingestion.next_day(
            days,
            scanned.sources,
            user_questions,
            max_tokens,
            count,
            left_out=scanned.left_out,
            deleted=ingestion.missing(days, scanned),
        )
        for name, why in scanned.left_out.items():
            console.say(f"{documents.path}: {name} was left out: {why}", "yellow")
        if extended == days and is_complete(folder, len(days)):
            console.say(
                f"{folder}: nothing in {documents.path} is new since day {len(days)}; nothing to do"
            )
            return 0
        return _live(config, folder, extended, console, wandb_id, exists, backend)


def forget(run: str, document: str, backend: MakeBackend = make_backend) -> int:
    """Run a day of the life in the folder `run` that unlearns `document` (`sleep-rl forget`).
    Return the exit code.

    Raises InputError if there is no such run or document, and for a task without documents or with
    a small model of its own, whose prompts are not known by document.
    """
    folder = Path(run)
    console = Console()
    config, _, wandb_id = run_dir.read(folder, (), ())
    if config.task.name != "documents" or config.own_base:
        raise InputError(
            f"{folder}: forget needs a run of task documents with a language model as model.base, "
            f"got task {config.task.name}, model.base {config.model.base}"
        )
    run_dir.check_inside(folder)
    with run_dir.alone(folder):
        days = ingestion.read(folder)
        extended = ingestion.forget(days, document)
        if extended == days and is_complete(folder, len(days)):
            console.say(f"{folder}: {document} was forgotten before; nothing to do")
            return 0
        return _live(config, folder, extended, console, wandb_id, True, backend)


def _live(
    config: Config,
    folder: Path,
    days: tuple[ingestion.IngestedDay, ...],
    console: Console,
    wandb_id: str,
    resumed: bool,
    backend: MakeBackend,
) -> int:
    """Record `days`, and run those that the life in `folder` has not lived; return the exit
    code.
    """
    check_experts(config, len(days))  # each day is a night more
    console.say(f"{folder}: {ingestion.summary_line(days)}")
    ingestion.write(folder, days)
    setup = RunSetup(config, make_task(config, str(folder)), folder, console, backend)
    return live_in_folder(setup, run_dir.write(folder, config, setup.task, wandb_id), resumed)


def _piece_size(config: Config, base: str, task: Task) -> tuple[int, Callable[[str], int]]:
    """Return (most tokens of a piece of a document, function that counts the tokens of a text).

    A piece, the opener and a generated sequence must fit into the engine's max_model_len; raises
    InputError when less than MIN_PIECE_TOKENS are left for a piece.
    """
    shape = checkpoints.read_config(base)
    texts = load_codec(task, base, config)
    longest = config.rollouts.engine.get("max_model_len") or shape.max_position_embeddings
    free_tokens = texts.room(longest) - (HEADER_TOKENS if texts.natural else 0)
    if free_tokens < MIN_PIECE_TOKENS:
        least = longest - free_tokens + MIN_PIECE_TOKENS
        raise InputError(
            f"rollouts.engine.max_model_len: at least {least}, for a piece of a document and a "
            f"sequence about it, got {longest}"
        )

    def count(text: str) -> int:
        return len(texts.ids(task.read_as(text)))

    return min(task.piece_tokens, free_tokens), count

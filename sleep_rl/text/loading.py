"""The codec of a task for a checkpoint on disk or on the hub, and where its answers end."""

from __future__ import annotations

import json
from contextlib import suppress
from pathlib import Path
from typing import Any

from transformers import GenerationConfig

from sleep_rl.config.schema import Config
from sleep_rl.contracts.errors import InputError
from sleep_rl.contracts.records import Ids
from sleep_rl.contracts.roles import Task
from sleep_rl.model import checkpoints
from sleep_rl.model.memory_folder import root
from sleep_rl.model.shape import read_json
from sleep_rl.text.answer_style import load_style
from sleep_rl.text.codec import PromptCodec
from sleep_rl.text.forms import ChatForm
from sleep_rl.text.probe import check_round_trip
from sleep_rl.text.tokens import TextTokenizer

GENERATION = "generation_config.json"


def load_codec(task: Task, checkpoint: str, config: Config) -> PromptCodec:
    """Return the codec for a base model, a sleep checkpoint, or a memory folder.

    Raises InputError, also if probe texts do not round-trip in the form that model.format names.
    """
    vocab_size = checkpoints.read_config(root(checkpoint)).vocab_size
    tokenizer = checkpoints.load_tokenizer(checkpoint, vocab_size)
    return codec_of(task, checkpoint, tokenizer, config)


def codec_of(task: Task, checkpoint: str, tokenizer: Any, config: Config) -> PromptCodec:
    """Return the codec for a checkpoint whose tokenizer is loaded. Raises as `load_codec`."""
    codec = PromptCodec(
        task,
        tokenizer,
        config.model.format,
        end_tokens(checkpoint),
        tuple(config.task.stop),
        load_style(config.generation.answers),
    )
    if codec.natural:
        check_round_trip(codec)
    return codec


def end_tokens(checkpoint: str) -> Ids:
    """Return the end tokens of the checkpoint's generation_config, or of its config. Raises
    InputError when they are no token ids.
    """
    source = root(checkpoint)
    ends = checkpoints.read_config(source).eos_token_id
    file = Path(source) / GENERATION
    if file.is_file():
        ends = read_json(file).get("eos_token_id", ends)
    elif not Path(source).is_dir():
        with suppress(OSError):  # a hub checkpoint need not have a generation_config.json
            ends = GenerationConfig.from_pretrained(source).eos_token_id
    tokens = ends if isinstance(ends, list) else [ends]
    if ends is None:
        return ()
    if not all(isinstance(token, int) and token >= 0 for token in tokens):
        raise InputError(f"{file}: eos_token_id is a token id or a list of them, got {ends!r:.60}")
    return tuple(tokens)


def serving_ends(checkpoint: str, tokenizer: Any) -> Ids:
    """Return the tokens at which answers of a served checkpoint end: those of `end_tokens`, the
    tokenizer's, and the end of turn of its chat template, with which trained answers end.
    """
    ends = list(end_tokens(checkpoint))
    if tokenizer.eos_token_id is not None:
        ends.append(tokenizer.eos_token_id)
    if tokenizer.chat_template:
        with suppress(InputError):  # a template that no run could use
            ends.append(ChatForm(TextTokenizer(tokenizer)).end)
    return tuple(dict.fromkeys(ends))


def write_serving_ends(folder: str, tokenizer: Any) -> None:
    """Add missing `serving_ends` to the generation_config.json of a checkpoint, where servers look
    for them; a link is replaced by a file.
    """
    file = Path(folder) / GENERATION
    ends = serving_ends(folder, tokenizer)
    if set(ends) <= {*end_tokens(folder), tokenizer.eos_token_id}:
        return
    fields = read_json(file) if file.is_file() else {}
    file.unlink(missing_ok=True)
    file.write_text(json.dumps({**fields, "eos_token_id": list(ends)}, indent=2), encoding="utf-8")

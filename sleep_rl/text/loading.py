"""The codec of a task for a checkpoint on disk or on the hub."""

from __future__ import annotations

from transformers import GenerationConfig

from sleep_rl.contracts.records import Ids
from sleep_rl.contracts.roles import Task
from sleep_rl.model import checkpoints
from sleep_rl.model.memory_folder import root
from sleep_rl.text.codec import PromptCodec
from sleep_rl.text.probe import check_round_trip


def load_codec(task: Task, checkpoint: str, format: str) -> PromptCodec:
    """Return the codec for a base model, a sleep checkpoint, or a memory folder.

    `format`: model.format. Raises InputError, also if probe texts do not round-trip in that form.
    """
    vocab_size = checkpoints.read_config(root(checkpoint)).vocab_size
    tokenizer = checkpoints.load_tokenizer(checkpoint, vocab_size)
    codec = PromptCodec(task, tokenizer, format, end_tokens(checkpoint))
    if codec.natural:
        check_round_trip(codec)
    return codec


def end_tokens(checkpoint: str) -> Ids:
    """Return the tokens that end a completion, from the checkpoint's generation_config (or
    config).
    """
    try:
        ends = GenerationConfig.from_pretrained(root(checkpoint)).eos_token_id
    except OSError:  # many checkpoints have no generation_config.json
        ends = checkpoints.read_config(root(checkpoint)).eos_token_id
    if ends is None:
        return ()
    return tuple(ends) if isinstance(ends, list) else (ends,)

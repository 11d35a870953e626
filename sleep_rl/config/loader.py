"""Load YAML files and command-line overrides into a frozen Config; an error is one line.

    # presets, relative to this file: later ones win, and this file wins over all of them
    include: [gkd_mixed.yaml, debug.yaml]
    sleep: {steps: 50}

`rollouts.engine` is merged key by key like every section; null leaves an option to vLLM.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import MISSING, Field, fields, is_dataclass
from difflib import SequenceMatcher, get_close_matches
from functools import cache
from pathlib import Path
from types import NoneType
from typing import Any, get_args, get_type_hints

from sleep_rl.config.engine_options import engine_fault
from sleep_rl.config.processor import fast_dtype
from sleep_rl.config.schema import Config
from sleep_rl.config.tasks import DOCUMENTS_BASE, TaskConfig
from sleep_rl.config.validation import check
from sleep_rl.config.yaml_reader import parse
from sleep_rl.contracts.errors import InputError
from sleep_rl.files import CONFIG_BYTES, content

COMMAND_LINE = "command line"
MOST_FILES = 100  # of a config, with all includes
MOST_INTEGER = 2**53  # up to which every integer is a float as well, since plans multiply them
WORDS = re.compile(r"[._]")
RUN_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")


def load(path: str, overrides: Sequence[str] = ()) -> Config:
    """Load a file with its includes, then `section.key=value` overrides; the last value wins.

    Each layer is validated by itself, so that an error names its file. Raises InputError.
    """
    return _config(_layers(Path(path), (), []), overrides, path)


def reload(tree: dict, where: str, overrides: Sequence[str] = ()) -> Config:
    """Load a dumped config with overrides. Raises InputError, which names its origin `where`."""
    return _config([(where, tree)], overrides, where)


def _config(layers: Iterable[tuple[str, dict]], overrides: Sequence[str], path: str) -> Config:
    tree = every_key(Config())
    for where, layer in (*layers, *((COMMAND_LINE, _override(text)) for text in overrides)):
        _merge(tree, _validated(Config, layer, "", where))
    _resolve(tree)
    config = _built(Config, tree)
    try:
        check(config)
    except InputError as error:
        raise _refusal(path, str(error)) from None
    return config


def _resolve(tree: dict[str, Any]) -> None:
    """Replace values that depend on the machine, so that a dumped config has what was used."""
    model = tree["model"]
    gpus = sum(tree[section]["gpus"] for section in ("rollouts", "learners", "critics"))
    if tree["task"]["name"] == "documents" and model["base"] is None and not gpus:
        model["base"] = DOCUMENTS_BASE
    if model["dtype"] == "auto":
        model["dtype"] = fast_dtype(gpus)


def dump(config: Config) -> dict[str, Any]:
    """Return a Config as a plain nested dict that `load` reads back as an equal Config.

    Of the tasks' sections it has the chosen task's, and another's only where a key of it is set.
    """
    tree = every_key(config)
    for name, default in every_key(TaskConfig()).items():
        is_section = isinstance(default, dict)
        if is_section and name != config.task.name and tree["task"][name] == default:
            del tree["task"][name]
    return tree


def every_key(config: Any) -> dict[str, Any]:
    """Return a Config, or a section, with all its keys as a plain nested dict."""

    def plain(value: Any) -> Any:
        if is_dataclass(value):
            return every_key(value)
        return {k: plain(v) for k, v in value.items()} if isinstance(value, dict) else value

    return {f.name: plain(getattr(config, f.name)) for f in fields(config)}


def describe() -> str:
    """Return the text of `sleep-rl config`: each key with default, meaning and allowed values."""
    lines = []
    for name, field, kinds in _leaves():
        default = field.default if field.default is not MISSING else field.default_factory()
        lines += [
            f"{name} = {_show(default, 200)}",
            f"    {field.metadata['doc']} Allowed: {_allowed(field, kinds)}.",
        ]
    return "\n".join(lines)


def keys() -> tuple[str, ...]:
    """Return the dotted names of all keys, in the order of the schema."""
    return tuple(name for name, _, _ in _leaves())


# ---- layers


def _layers(path: Path, parents: tuple[Path, ...], read: list[int]) -> Iterator[tuple[str, dict]]:
    """Yield (where, mapping) of the included files, then of `path` itself.

    `parents`: the files that include it. `read`: the bytes of each file so far; grows.
    """
    by = f"{parents[-1]}: include: " if parents else ""
    try:
        text = content(path, CONFIG_BYTES - sum(read)).decode("utf-8-sig")
    except OSError as error:
        raise _refusal("", f"{by}cannot read {path}: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise _refusal(
            str(path), f"expected UTF-8 text, got another encoding at byte {error.start}"
        ) from None
    except ValueError as error:  # a NUL in the name
        raise _refusal("", f"{by}cannot read {path}: {error}") from None
    if os.path.realpath(path) in map(os.path.realpath, parents):
        raise _refusal("", f"{by}{' -> '.join(map(str, (*parents, path)))} is a cycle")
    read.append(len(text.encode()))
    if len(read) > MOST_FILES:
        raise _refusal("", f"{by}at most {MOST_FILES} files make a config, {path} is one more")
    data = parse(text, str(path))
    if not isinstance(data, dict):
        got = "an empty file" if data is None else _show(data)
        raise _refusal(str(path), f"expected a mapping of sections to keys, got {got}")
    includes = data.pop("include", [])
    if not isinstance(includes, list) or not all(isinstance(name, str) for name in includes):
        raise _refusal(str(path), f"include: expected a list of file names, got {_show(includes)}")
    for name in includes:
        yield from _layers(path.parent / name, (*parents, path), read)
    yield str(path), data


def _override(text: str) -> dict:
    """Parse `a.b=value` into {"a": {"b": value}}; the value is YAML."""
    name, equals, value = text.partition("=")
    parts = name.strip().split(".")
    if not equals or not all(parts):
        raise _refusal(COMMAND_LINE, f"expected section.key=value, got {_show(text)}")
    tree: Any = parse(value, f"{COMMAND_LINE}: {name}")
    for part in reversed(parts):
        tree = {part: tree}
    return tree


def _merge(into: dict, layer: dict) -> None:
    for name, value in layer.items():
        if isinstance(value, dict) and isinstance(into.get(name), dict):
            _merge(into[name], value)
        else:
            into[name] = value


def _built(cls: type, tree: dict) -> Any:
    kinds = _kinds(cls)
    return cls(
        **{k: _built(kinds[k][0], v) if is_dataclass(kinds[k][0]) else v for k, v in tree.items()}
    )


# ---- checks


def _validated(cls: type, layer: Any, prefix: str, where: str) -> dict:
    """Return `layer`, in which every key is known and every value of its type and range."""
    if not isinstance(layer, dict):
        raise _refusal(
            where, f"{prefix.rstrip('.')}: expected a mapping of keys, got {_show(layer)}"
        )
    known = {field.name: field for field in fields(cls)}
    kinds = _kinds(cls)
    out = {}
    for name, value in layer.items():
        if name not in known:
            raise _refusal(
                where, f"unknown key {prefix}{name}; did you mean {_nearest(prefix, str(name))}?"
            )
        dotted = prefix + name
        kind = kinds[name][0]
        if is_dataclass(kind):
            out[name] = _validated(kind, value, f"{dotted}.", where)
        else:
            out[name] = _value(known[name], kinds[name], value, dotted, where)
    return out


def _value(field: Field, kinds: tuple[type, ...], value: Any, dotted: str, where: str) -> Any:
    """Return the value; an integer becomes a float where the key is a number."""
    meta = field.metadata
    wanted = _refusal(where, f"{dotted}: expected {_allowed(field, kinds)}, got {_show(value)}")
    if type(value) is int and float in kinds and abs(value) < 2**1000:
        value = float(value)
    if type(value) not in kinds:
        raise wanted
    if isinstance(value, float) and not math.isfinite(value):
        raise wanted
    if isinstance(value, str) and (not value.strip() or "\0" in value):
        raise wanted
    # a key of either text or an integer has choices for the text, and limits for the integer
    is_number = str in kinds and type(value) is int
    if meta["choices"] is not None and value not in meta["choices"] and not is_number:
        raise wanted
    if isinstance(value, (int, float)) and _is_outside(value, meta):
        raise wanted
    if type(value) is int and abs(value) > MOST_INTEGER:
        raise _refusal(where, f"{dotted}: an integer up to {MOST_INTEGER}, got {_show(value)}")
    # a folder of this name is made inside run.dir
    if dotted == "run.name" and not RUN_NAME.fullmatch(value):
        raise _refusal(
            where,
            "run.name: expected at most 100 letters, digits, '.', '_', '-', a letter or digit "
            f"first, got {_show(value)}",
        )
    if dotted in ("rollouts.engine", "critics.engine"):
        _check_engine(value, dotted, where)
    return value


def _check_engine(options: Any, dotted: str, where: str) -> None:
    """Raise InputError for the first wrong option of vLLM."""
    fault = engine_fault(options)
    if fault:
        option, wrong, what = fault
        raise _refusal(where, f"{dotted}.{option}: {what} got {_show(wrong)}")


def _is_outside(value: float, meta: Mapping[str, Any]) -> bool:
    """Return whether a number is outside the limits of its key."""
    return (
        (meta["low"] is not None and value < meta["low"])
        or (meta["high"] is not None and value > meta["high"])
        or (meta["above"] is not None and value <= meta["above"])
    )


# ---- wording


def _allowed(field: Field, kinds: tuple[type, ...]) -> str:
    """Return a description of allowed values: "an integer >= 1 or null"."""
    meta = field.metadata
    if meta["choices"] is not None and int in kinds and str in kinds:
        text = f"{', '.join(meta['choices'])} or an integer >= {meta['low']}"
    elif meta["choices"] is not None:
        text = f"one of {', '.join(map(str, meta['choices']))}"
    else:
        text = {
            int: "an integer",
            float: "a number",
            bool: "true or false",
            str: "text",
            dict: "a mapping",
            list: "a list",
        }[kinds[0]]
        low, high, above = (meta[limit] for limit in ("low", "high", "above"))
        if low is not None and high is not None:
            text += f" from {low} to {high}"
        else:
            limits = ((">=", low), ("<=", high), (">", above))
            text += " and".join(f" {sign} {limit}" for sign, limit in limits if limit is not None)
    return f"{text} or null" if NoneType in kinds else text


def _nearest(prefix: str, name: str) -> str:
    """Return the key that was probably meant: one of the same words elsewhere (replay_share and
    replay.share), else a sibling of a similar name, else a key of such a name elsewhere, else the
    most similar sibling.
    """
    name = name[:80]
    everything = [*keys(), *(f.name for f in fields(Config))]
    for known in everything:
        if "_" in name and sorted(WORDS.split(known)) == sorted(WORDS.split(name)):
            return known
    siblings = [k for k in everything if k.startswith(prefix) and "." not in k[len(prefix) :]]
    for pool in (siblings, everything):
        by_last = {k.rpartition(".")[2]: k for k in reversed(pool)}
        match = get_close_matches(name, by_last, n=1, cutoff=0.7)
        if match:
            return by_last[match[0]]
    return max(
        siblings or everything, key=lambda k: SequenceMatcher(None, prefix + name, k).ratio()
    )


def _refusal(where: str, what: str) -> InputError:
    """Return the error as one line, also if a value or file name has line breaks."""
    return InputError(" ".join(f"{where}: {what}".split() if where else what.split()))


def _show(value: Any, limit: int = 60) -> str:
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    try:
        text = repr(value)
    except RecursionError:
        text = f"a {type(value).__name__} of a {type(value).__name__} of a ..."
    return text if len(text) <= limit else text[: limit - 3] + "..."


# ---- schema


@cache
def _kinds(cls: type) -> dict[str, tuple[type, ...]]:
    """Return field name -> allowed types, e.g. (int, NoneType) for `int | None`."""
    return {name: get_args(hint) or (hint,) for name, hint in get_type_hints(cls).items()}


@cache
def _leaves(
    cls: type = Config, prefix: str = ""
) -> tuple[tuple[str, Field, tuple[type, ...]], ...]:
    """Return (dotted name, field, allowed types) of every key below a section."""
    out: list[tuple[str, Field, tuple[type, ...]]] = []
    for field in fields(cls):
        kinds = _kinds(cls)[field.name]
        if is_dataclass(kinds[0]):
            out += _leaves(kinds[0], f"{prefix}{field.name}.")
        else:
            out.append((prefix + field.name, field, kinds))
    return tuple(out)

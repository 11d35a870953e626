"""`sleep-rl export`: a self-contained checkpoint that needs neither the run nor this package."""

from __future__ import annotations

import os
import shutil
import tempfile
from fnmatch import fnmatch
from pathlib import Path

from safetensors import SafetensorError, safe_open

from sleep_rl.contracts.errors import InputError, one_line
from sleep_rl.contracts.records import STUDENT, TEACHER
from sleep_rl.model import checkpoints, families, memory, memory_folder, modeling
from sleep_rl.runs.model_card import card
from sleep_rl.runs.resolve import ResolvedModel, resolve_model
from sleep_rl.text.loading import write_serving_ends

CODE = "modeling_sleep.py"  # named by `auto_map`; transformers also copies its relative imports
BASE_FILES = ("generation_config.json", "LICENSE*", "NOTICE*", "USE_POLICY*")
"""Files of the base that are copied in addition to weights and tokenizer."""


def export(checkpoint: str, out: str) -> str:
    """Export a run's newest night, a memory folder or a full checkpoint to the new folder `out`,
    and return `out`. It has no links and no pointers; weights are safetensors.

    Raises InputError if `checkpoint` cannot be read or `out` exists, RunError if it cannot be
    written.
    """
    resolved = resolve_model(checkpoint)
    if os.path.lexists(out):
        raise InputError(f"export: a new folder, {out} exists")
    levels = checkpoints.levels_of(resolved.path)
    with tempfile.TemporaryDirectory(prefix="sleep_rl-export-") as temporary:
        expanded = checkpoints.expand(resolved.path, os.path.join(temporary, "model"), levels)
        full = checkpoints.local(expanded)
        config = checkpoints.read_config(str(full))
        tokenizer = checkpoints.load_tokenizer(str(full), config.vocab_size)
        card_text = card(resolved, _base(resolved), config, Path(out).absolute().name)
        files = _weights(full) + [
            file
            for file in os.listdir(full)
            if any(fnmatch(file, pattern) for pattern in BASE_FILES)
        ]
        with memory_folder.atomic_checkpoint(out, replace=False) as folder:
            for file in files:
                # follows links, and does not copy permissions
                shutil.copyfile(full / file, Path(folder, file))
            tokenizer.save_pretrained(folder)
            for name, code in _code().items():
                Path(folder, name).write_text(code, encoding="utf-8")
            config.auto_map = _auto_map(config.model_type)
            config.save_pretrained(folder)
            write_serving_ends(folder, tokenizer)
            Path(folder, "README.md").write_text(card_text, encoding="utf-8")
    return out


def _auto_map(model_type: str) -> dict[str, str]:
    """Return auto class -> class in CODE, for transformers."""
    module = CODE.removesuffix(".py")
    prefix = families.FAMILIES[model_type.removeprefix("sleep_")]
    return {
        "AutoConfig": f"{module}.Sleep{prefix}Config",
        "AutoModelForCausalLM": f"{module}.Sleep{prefix}ForCausalLM",
    }


def _weights(folder: Path) -> list[str]:
    """Return the weight files of a checkpoint, and their index if there is one.

    Raises InputError if one is damaged.
    """
    files: dict[str, set[str]] = {}
    for key, file in checkpoints.weight_map(folder).items():
        files.setdefault(file, set()).add(key)
    for file, keys in files.items():
        try:
            if Path(file).name != file or not file.endswith(".safetensors"):
                raise ValueError("expected the name of a safetensors file in the index's folder")
            with safe_open(folder / file, "pt") as opened:
                missing = sorted(keys - set(opened.keys()))
            if missing:
                raise ValueError(f"it lacks {missing[0]}, which the index lists")
        except (OSError, ValueError, SafetensorError) as error:
            raise InputError(f"model {folder / file}: {one_line(error)}") from error
    index = [checkpoints.INDEX] if (folder / checkpoints.INDEX).is_file() else []
    return [*files, *index]


def _code() -> dict[str, str]:
    """Return file name -> source of the model's code, without imports of this package."""
    classes = Path(modeling.__file__).read_text(encoding="utf-8")
    levels = Path(memory.__file__).read_text(encoding="utf-8")
    return {
        CODE: classes.replace("from sleep_rl.model.memory import", "from .memory import").replace(
            "from sleep_rl.model.families import FAMILIES\n",
            f"FAMILIES = {families.FAMILIES!r}\n",
        ),
        "memory.py": levels.replace(
            "from sleep_rl.contracts.records import STUDENT, TEACHER\n",
            f"STUDENT, TEACHER = {STUDENT!r}, {TEACHER!r}\n",
        ),
    }


def _base(resolved: ResolvedModel) -> str:
    """Return the base of a memory folder; empty for a full checkpoint, which contains its base."""
    if not memory_folder.is_memory_folder(resolved.path):
        return ""
    return memory_folder.root(resolved.path)

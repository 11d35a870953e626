"""The data D of finished nights as files, <run>/sequences/night-<n>.json, for baselines that train
on it.
"""

from __future__ import annotations

import json
from pathlib import Path

from sleep_rl.contracts.errors import RunError, one_line
from sleep_rl.files import parsed, write_atomically
from sleep_rl.night.progress import DATA
from sleep_rl.night.sequences import NightData, pack, unpack


def save_data(folder: str, night: int, data: NightData) -> None:
    """Write D of a night, atomically. Raises RunError if it cannot be written."""
    path = _path(folder, night)
    plain = {name: pack(getattr(data, name)) for name in DATA}
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, json.dumps(plain).encode())
    except OSError as error:
        raise RunError(f"{path}: cannot be written ({error.strerror or error})") from error


def load_data(folder: str, night: int) -> NightData:
    """Return what `save_data` wrote. Raises RunError if it cannot be read."""
    path = _path(folder, night)
    try:
        plain = parsed(path)
        return NightData(**{name: unpack(plain[name]) for name in DATA})
    except (OSError, KeyError, TypeError, ValueError, IndexError) as error:
        raise RunError(
            f"{path}: the sequences of night {night} cannot be read ({one_line(error)}); a "
            "baseline that trains on them must be in baselines.run from the first night on"
        ) from error


def _path(folder: str, night: int) -> Path:
    return Path(folder) / "sequences" / f"night-{night}.json"

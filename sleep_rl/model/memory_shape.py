"""The entry `memory_levels` of a checkpoint's config: sizes of each memory level, and the lowest
layer that has memory.

It is a list of one mapping per level, fastest first, with experts, d_low and top_k, and with
first_layer where the layers below have no memory. Imports no torch.
"""

from __future__ import annotations

import json
from typing import Any

from sleep_rl.config.schema import Config
from sleep_rl.contracts.errors import InputError

SIZES = {"experts", "d_low", "top_k"}
FIRST_LAYER = "first_layer"


def memory_of(config: Config) -> list[dict]:
    """Return the entry `memory_levels` for this config."""
    model = config.model
    level = {"experts": model.experts, "d_low": model.d_low, "top_k": model.top_k}
    if model.first_layer:
        level[FIRST_LAYER] = model.first_layer
    return [dict(level) for _ in range(model.levels)]


def check_levels(levels: Any, where: str, layers: int | None = None) -> tuple[dict, ...] | None:
    """Return the memory levels in a checkpoint's config, None without any; `layers`: of its base,
    where they are known. Raises InputError for an invalid value.
    """
    if levels is None:
        return None
    if not isinstance(levels, list) or not all(_is_level(level) for level in levels):
        raise InputError(
            f"{where}: memory_levels: expected a list of mappings with "
            f"{', '.join(sorted(SIZES))}, each an integer >= 1, got {json.dumps(levels)[:60]}"
        )
    first = {level.get(FIRST_LAYER, 0) for level in levels}
    if len(first) > 1 or (layers is not None and max(first, default=0) >= layers):
        below = "" if layers is None else f" below the base's {layers} layers"
        raise InputError(
            f"{where}: memory_levels: expected the same first_layer in each level{below}, got "
            f"{', '.join(map(str, sorted(first)))}"
        )
    return tuple(levels)


def _is_level(level: Any) -> bool:
    return (
        isinstance(level, dict)
        and SIZES <= set(level) <= SIZES | {FIRST_LAYER}
        and all(type(n) is int and 0 < n < 1 << 20 for n in level.values())
    )


def check_first_layer(first_layer: int, layers: int) -> None:
    """Raise InputError if the lowest layer with memory is not one of the base's `layers`."""
    if first_layer >= layers:
        raise InputError(
            f"model.memory_layers: all, or at most {layers - 1}, the last layer of the base model, "
            f"got {first_layer}"
        )

"""Configs for tests: configs/toy.yaml with changed keys."""

from __future__ import annotations

from dataclasses import fields, is_dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from sleep_rl.config.loader import load
from sleep_rl.config.schema import Config
from sleep_rl.contracts.errors import InputError

TOY = Path(__file__).parents[2] / "configs" / "toy.yaml"
PRESETS = sorted(TOY.parent.glob("*.yaml"))


@cache
def _toy() -> Config:
    return load(str(TOY))


def toy(**sections: dict[str, Any]) -> Config:
    """Return configs/toy.yaml with changed keys: `toy(sleep={"steps": 2}, run={"name": "x"})`."""
    return changed(_toy(), **sections)


def changed(config: Any, **values: Any) -> Any:
    """Return a copy of a config (or section) with changed values; a dict changes keys of a section.

    Values are not validated, so that tests can pass invalid configs to `check`.
    """
    sections = {
        name: changed(getattr(config, name), **value)
        if is_dataclass(getattr(config, name)) and isinstance(value, dict)
        else value
        for name, value in values.items()
    }
    return replace(config, **sections)


def flat(config: Any, prefix: str = "") -> dict[str, Any]:
    """Return dotted key -> value of every key of a config."""
    values: dict[str, Any] = {}
    for field in fields(config):
        value = getattr(config, field.name)
        if is_dataclass(value):
            values |= flat(value, f"{prefix}{field.name}.")
        else:
            values[prefix + field.name] = value
    return values


def refusal(path: str, *overrides: str) -> str:
    """Return the one line that refuses a config."""
    with pytest.raises(InputError) as caught:
        load(path, overrides)
    assert len(str(caught.value).splitlines()) == 1
    return str(caught.value)

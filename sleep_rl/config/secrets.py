"""Secrets (keys and passwords), recognised by their names or by values of the environment: they are
refused in configs and masked in output.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from functools import cache
from typing import Any

NAMES = {
    "key",
    "keys",
    "apikey",
    "token",
    "authtoken",
    "password",
    "passwd",
    "secret",
    "secrets",
    "credentials",
}
PLACES = {"path", "file", "dir"}  # HF_TOKEN_PATH is the location of a secret, not a secret
SHORTEST = 8  # characters of a secret value: a shorter one would match ordinary text
HIDDEN = "***"
LOGIN = re.compile(r"(?<=://)(?!\*\*\*@)[^/\s@\"']*@")
QUERY = re.compile(r"(?<=[?&;])([\w.-]+)=([^&;\s\"']+)")


@cache
def is_secret(name: str) -> bool:
    """Return whether a name is that of a secret: `api_key`, `hfToken`; not `max_tokens`."""
    words = re.split(r"[^a-z0-9]+", re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", name).lower())
    return not NAMES.isdisjoint(words)


def without_secrets(config: Any) -> Any:
    """Return a copy of a configuration without entries whose key is the name of a secret."""
    if isinstance(config, Mapping):
        return {
            key: without_secrets(value) for key, value in config.items() if not is_secret(str(key))
        }
    if isinstance(config, (list, tuple)):
        return [without_secrets(value) for value in config]
    return config


def masked(text: str) -> str:
    """Return the text with *** in place of logins and keys in addresses, and of secret values of
    the environment.
    """
    text = LOGIN.sub(f"{HIDDEN}@", text)
    text = QUERY.sub(
        lambda found: f"{found[1]}={HIDDEN}" if is_secret(found[1]) else found[0], text
    )
    for _, value in _environment():
        text = text.replace(value, HIDDEN)
    return text


def found_in(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    """Yield (dotted key, kind of secret) for every secret in a configuration."""
    for key, value in tree.items():
        dotted = f"{prefix}{key}"
        if is_secret(str(key)):
            yield dotted, "one by its name"
        elif isinstance(value, Mapping):
            yield from found_in(value, f"{dotted}.")
        elif isinstance(value, (list, tuple)):
            yield from found_in({str(i): each for i, each in enumerate(value)}, f"{dotted}.")
        elif isinstance(value, str):
            names = [name for name, secret in _environment() if secret in value]
            if names:
                yield dotted, f"the value of {names[0]}"
            elif masked(value) != value:
                yield dotted, f"a login or a key in an address ({masked(value)[:80]})"


def _environment() -> list[tuple[str, str]]:
    """Return (name, value) of the environment's secrets, longest value first, since one may be a
    prefix of another.
    """
    found = [
        (name, value)
        for name, value in os.environ.items()
        if len(value) >= SHORTEST
        and is_secret(name)
        and name.lower().rsplit("_", 1)[-1] not in PLACES
    ]
    return sorted(found, key=lambda pair: -len(pair[1]))

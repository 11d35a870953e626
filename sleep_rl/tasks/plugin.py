"""Code of the user's own, named by an explicit import path; nothing else of the user's is ever
imported.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
import sys
import traceback
from pathlib import Path
from typing import Any

from sleep_rl.contracts.errors import InputError, one_line


def found(target: str, where: str) -> type:
    """The class that `module:Class` or `path/to/file.py:Class` names. Raises InputError; `where` is
    the key that names it.
    """
    place, colon, name = target.rpartition(":")
    if not (colon and place and name.isidentifier()):
        raise InputError(f"{where}: module:Class or path/to/file.py:Class, got {target}")
    try:
        module = _file(Path(place)) if place.endswith(".py") else importlib.import_module(place)
    except Exception as error:  # whatever the user's module raises is about the module
        raise InputError(f"{where}: {place} cannot be imported: {_told(error)}") from error
    cls = getattr(module, name, None)
    if not isinstance(cls, type):
        raise InputError(
            f"{where}: a class {name} in {place}, got "
            f"{'none' if cls is None else type(cls).__name__}"
        )
    return cls


def made(target: str, options: dict[str, Any], where: str, needed: tuple[str, ...]) -> Any:
    """An object of that class, made with `options`. Raises InputError where it cannot be made, or
    lacks what is `needed`.
    """
    cls = found(target, where)
    try:
        out = cls(**options)
    except InputError:
        raise
    except Exception as error:
        raise InputError(
            f"{where}: {target} cannot be made with {options}: {_told(error)}"
        ) from error
    lacks = [name for name in needed if not hasattr(out, name)]
    if lacks:
        raise InputError(
            f"{where}: a class with {', '.join(needed)}, got {target} without {', '.join(lacks)}"
        )
    return out


def _file(path: Path) -> Any:
    """The module in a file, under a name of its own: what it is called elsewhere is left alone."""
    name = f"sleep_rl_custom_{path.stem}"
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or not os.path.isfile(path):
        raise FileNotFoundError("no such file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses and pickle look there
    spec.loader.exec_module(module)
    return module


def _told(error: Exception) -> str:
    """The error in one line, with the line of code that raised it."""
    last = traceback.extract_tb(error.__traceback__)[-1]
    what = one_line(error)
    return f"{type(error).__name__}: {what} ({Path(last.filename).name} line {last.lineno})"

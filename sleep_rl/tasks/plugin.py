"""Load a user's class by its import path; no other user code is imported."""

from __future__ import annotations

import importlib
import importlib.util
import os
import sys
import traceback
from collections.abc import Iterable
from pathlib import Path
from types import ModuleType
from typing import Any

from sleep_rl.contracts.errors import InputError, one_line
from sleep_rl.files import spelled


def load_class(target: str, config_key: str) -> type:
    """Return the class that `module:Class` or `path/to/file.py:Class` names.

    `config_key` holds `target` and is named in errors. Raises InputError when the module cannot be
    imported or has no such class.
    """
    module_name, colon, class_name = target.rpartition(":")
    if not (colon and module_name and class_name.isidentifier()):
        raise InputError(f"{config_key}: module:Class or path/to/file.py:Class, got {target}")
    try:
        if module_name.endswith(".py"):
            module = _load_file(Path(spelled(module_name)))
        else:
            module = importlib.import_module(module_name)
    except Exception as error:
        # Boundary: the user's module may raise anything.
        raise InputError(
            f"{config_key}: {module_name} cannot be imported: {format_error(error)}"
        ) from error
    cls = getattr(module, class_name, None)
    if not isinstance(cls, type):
        got = "none" if cls is None else type(cls).__name__
        raise InputError(f"{config_key}: a class {class_name} in {module_name}, got {got}")
    return cls


def instantiate(
    target: str, options: dict[str, Any], config_key: str, required: Iterable[str]
) -> Any:
    """Return an object of the class that `target` names, created with `options`.

    Raises InputError when the class cannot be loaded or created, or lacks a `required` member.
    """
    cls = load_class(target, config_key)
    try:
        instance = cls(**options)
    except InputError:
        raise
    except Exception as error:
        # Boundary: the user's class may raise anything.
        raise InputError(
            f"{config_key}: {target} cannot be created with {options}: {format_error(error)}"
        ) from error
    required = tuple(required)
    missing = [name for name in required if not hasattr(instance, name)]
    if missing:
        raise InputError(
            f"{config_key}: a class with {', '.join(required)}, "
            f"got {target} without {', '.join(missing)}"
        )
    return instance


def _load_file(path: Path) -> ModuleType:
    """Import a file under a name that collides with no other module."""
    name = f"sleep_rl_custom_{path.stem}"
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None or not os.path.isfile(path):
        raise FileNotFoundError("no such file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses and pickle look there
    spec.loader.exec_module(module)
    return module


def format_error(error: Exception) -> str:
    """Return the error in one line, with the line of code that raised it."""
    last = traceback.extract_tb(error.__traceback__)[-1]
    location = f"{Path(last.filename).name} line {last.lineno}"
    return f"{type(error).__name__}: {one_line(error)} ({location})"

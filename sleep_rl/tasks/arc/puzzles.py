"""Puzzles of ARC, from its two json files, and their text form."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sleep_rl.contracts.errors import InputError, one_line
from sleep_rl.files import parsed, spelled
from sleep_rl.tasks.arc.grids import Example, Grid, render

OPENER = "Input:\n"
MARKER = "\nOutput:\n"
CHALLENGES = "challenges"
SOLUTIONS = "solutions"


@dataclass(frozen=True)
class Puzzle:
    """A puzzle: examples of its rule, and tests with their solutions."""

    id: str
    train: tuple[Example, ...]
    test: tuple[Example, ...]


def read_puzzles(path: str) -> list[Puzzle]:
    """Read the puzzles of ARC's two json files that have a solution; `path`: task.arc.path.

    Raises InputError for anything that cannot be read.
    """
    challenges, solutions = _files(spelled(path))
    try:
        puzzles = parsed(challenges)
        solved = parsed(solutions)
        if not isinstance(puzzles, dict) or not isinstance(solved, dict):
            raise ValueError("expected objects with a puzzle under each name")
        return [
            _puzzle(name, puzzle, solved[name])
            for name, puzzle in puzzles.items()
            if name in solved
        ]
    except Exception as error:
        # Boundary: unreadable files, invalid json, other forms; all concern this input.
        raise InputError(
            f"task.arc.path: ARC's challenges and solutions as json, got {challenges} and "
            f"{solutions}: {one_line(error)}"
        ) from error


def _files(path: str) -> tuple[str, str]:
    """Return the files of challenges and of solutions: the one pair in a folder, or a file of
    challenges and that beside it. Raises InputError where they are missing or not unique.
    """
    if os.path.isdir(path):
        path = os.path.join(path, _only_challenges(path))
    folder, name = os.path.split(path)
    if not os.path.exists(path):
        raise _refusal(path, "no such file or folder")
    if CHALLENGES not in name:
        raise _refusal(path, f"its name lacks {CHALLENGES}")
    solutions = os.path.join(folder, _solutions_of(name))
    if not os.path.exists(solutions):
        raise _refusal(path, f"{solutions} is missing")
    return path, solutions


def _only_challenges(folder: str) -> str:
    """Return the name of the one file of challenges with solutions in a folder."""
    try:
        names = set(os.listdir(folder))
    except OSError as error:
        raise _refusal(folder, error.strerror) from error
    found = [name for name in names if name.endswith(f"{CHALLENGES}.json")]
    pairs = sorted(name for name in found if _solutions_of(name) in names)
    if len(pairs) == 1:
        return pairs[0]
    held = f"it holds {' and '.join(pairs)}" if pairs else "it holds no such pair"
    raise _refusal(folder, one_line(held))


def _solutions_of(name: str) -> str:
    """Return the name of the file of solutions that belongs to a file of challenges."""
    return SOLUTIONS.join(name.rsplit(CHALLENGES, 1))


def _refusal(path: str, reason: str) -> InputError:
    return InputError(
        f"task.arc.path: a folder with one pair of files ...{CHALLENGES}.json and "
        f"...{SOLUTIONS}.json, or such a file of {CHALLENGES} beside its {SOLUTIONS}, got {path}: "
        f"{reason}"
    )


def _puzzle(name: str, puzzle: Any, solved: Any) -> Puzzle:
    where = f"puzzle {name[:40]}"
    parts = [puzzle.get(part) if isinstance(puzzle, dict) else None for part in ("train", "test")]
    if not all(isinstance(part, list) and all(isinstance(e, dict) for e in part) for part in parts):
        raise ValueError(f"{where}: expected train and test, lists of objects")
    train, test = parts
    if not isinstance(solved, list) or len(solved) != len(test):
        raise ValueError(f"{where}: expected {len(test)} solutions, one per test")
    try:
        return Puzzle(
            name,
            tuple((_grid(e.get("input")), _grid(e.get("output"))) for e in train),
            tuple(
                (_grid(e.get("input")), _grid(output))
                for e, output in zip(test, solved, strict=True)
            ),
        )
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from None


def _grid(rows: Any) -> Grid:
    error = ValueError("a grid is a rectangle of colours 0 to 9")
    if not isinstance(rows, list) or not all(isinstance(row, list) for row in rows):
        raise error
    if not rows or not rows[0] or any(len(row) != len(rows[0]) for row in rows):
        raise error
    if not all(type(cell) is int and 0 <= cell <= 9 for row in rows for cell in row):
        raise error
    return tuple(tuple(row) for row in rows)


def examples_text(examples: Sequence[Example]) -> str:
    """Return examples as text, each followed by an empty line."""
    return "".join(f"{OPENER}{render(a)}{MARKER}{render(b)}\n\n" for a, b in examples)


def puzzle_prompt(examples: Sequence[Example], question: Grid) -> str:
    """Return examples followed by an input grid; the model continues with its output."""
    return f"{examples_text(examples)}{OPENER}{render(question)}{MARKER}"

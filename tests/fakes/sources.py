"""The syntax trees of the repository's files, which several tests of its rules look at."""

from __future__ import annotations

import ast
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parents[2]


@cache
def nodes(file: Path) -> tuple[ast.AST, ...]:
    """Return all nodes of a file's syntax tree; `file` is relative to the root."""
    return tuple(ast.walk(tree(file)))


def tree(file: Path) -> ast.Module:
    return ast.parse((ROOT / file).read_text(encoding="utf-8"))


def nodes_below(*folders: str) -> list[ast.AST]:
    """Return the nodes of all Python files in folders of the root."""
    files = [file for folder in folders for file in sorted((ROOT / folder).rglob("*.py"))]
    return [node for file in files for node in nodes(file.relative_to(ROOT))]

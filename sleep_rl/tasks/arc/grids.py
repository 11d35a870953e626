"""Grids of ARC: as text, and the transformations that make more examples of a puzzle (SEAL's
augmenters).
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass

Grid = tuple[tuple[int, ...], ...]
Example = tuple[Grid, Grid]  # input and output
LARGEST = 30  # cells a side


def render(grid: Grid) -> str:
    """One line a row, digits apart."""
    return "\n".join(" ".join(map(str, row)) for row in grid)


def parse(text: str) -> Grid | None:
    """The grid that a text begins with, up to an empty line; None when there is none."""
    rows = []
    for line in text.strip().split("\n"):
        if not line.strip():
            break
        cells = line.split()
        if not all(len(cell) == 1 and cell in "0123456789" for cell in cells) or (
            rows and len(cells) != len(rows[0])
        ):
            return None
        rows.append(tuple(map(int, cells)))
    return tuple(rows) if rows else None


def rotate(grid: Grid) -> Grid:
    """By 90 degrees, clockwise."""
    return tuple(zip(*grid[::-1]))


def transpose(grid: Grid) -> Grid:
    return tuple(zip(*grid))


def flip(grid: Grid) -> Grid:
    """Top and bottom change places."""
    return grid[::-1]


def mirror(grid: Grid) -> Grid:
    """Left and right change places."""
    return tuple(row[::-1] for row in grid)


def _chain(*steps: Callable[[Grid], Grid]) -> Callable[[Grid], Grid]:
    def apply(grid: Grid) -> Grid:
        for step in steps:
            grid = step(grid)
        return grid

    return apply


def _reflect(across: str, first: bool) -> Callable[[Grid], Grid]:
    """The grid beside its mirror image, which stands `first` or last, side by side or one above the
    other.
    """

    def apply(grid: Grid) -> Grid:
        image = mirror(grid) if across == "x" else flip(grid)
        a, b = (image, grid) if first else (grid, image)
        return tuple(p + q for p, q in zip(a, b)) if across == "x" else a + b

    return apply


def _larger(high: int, wide: int) -> Callable[[Grid], Grid]:
    """Every cell becomes high x wide cells."""
    return lambda grid: tuple(
        tuple(cell for cell in row for _ in range(wide)) for row in grid for _ in range(high)
    )


def _repeat(high: int, wide: int) -> Callable[[Grid], Grid]:
    """The whole grid high x wide times."""
    return lambda grid: tuple(row * wide for row in grid) * high


def _shift(down: int, right: int) -> Callable[[Grid], Grid]:
    """Cells move and come in again on the other side."""

    def apply(grid: Grid) -> Grid:
        d, r = down % len(grid), right % len(grid[0])
        moved = grid[-d:] + grid[:-d] if d else grid
        return tuple(row[-r:] + row[:-r] if r else row for row in moved)

    return apply


TURNS = {
    "rotate 90": rotate,
    "rotate 180": _chain(rotate, rotate),
    "rotate 270": _chain(rotate, rotate, rotate),
    "flip": flip,
    "mirror": mirror,
    "transpose": transpose,
}


def families(rng: random.Random) -> dict[str, dict[str, Callable[[Grid], Grid]]]:
    """The augmentations that a recipe switches on by family: 11 basic, 3 of size, 6 chained, 3
    repeats.
    """
    reflections = {
        f"reflect {across} {'first' if first else 'last'}": _reflect(across, first)
        for across in "xy"
        for first in (True, False)
    }
    return {
        "basic": {**TURNS, **reflections, "shift": _shift(rng.randint(1, 3), rng.randint(1, 3))},
        "size": {"both": _larger(2, 2), "height": _larger(2, 1), "width": _larger(1, 2)},
        "chain": {f"{name}, both": _chain(turn, _larger(2, 2)) for name, turn in TURNS.items()},
        "repeat": {"down": _repeat(2, 1), "across": _repeat(1, 2), "both": _repeat(2, 2)},
    }


@dataclass(frozen=True)
class View:
    """A puzzle seen in another way, which can be taken back: a turn, other colours, the examples in
    another order.
    """

    turn: str  # of TURNS, or "" for none
    colours: tuple[int, ...]  # colour c is shown as colours[c]
    order: tuple[int, ...]

    def show(self, grid: Grid) -> Grid:
        turned = TURNS[self.turn](grid) if self.turn else grid
        return tuple(tuple(self.colours[cell] for cell in row) for row in turned)

    def back(self, grid: Grid) -> Grid:
        """The inverse of `show`."""
        inverse = {"rotate 90": "rotate 270", "rotate 270": "rotate 90"}.get(self.turn, self.turn)
        cells = tuple(tuple(self.colours.index(cell) for cell in row) for row in grid)
        return TURNS[inverse](cells) if inverse else cells


def random_view(examples: int, rng: random.Random, turn: str = "") -> View:
    """Colours but 0, the background, and examples in random order."""
    return View(
        turn, (0, *rng.sample(range(1, 10), 9)), tuple(rng.sample(range(examples), examples))
    )


def fits(examples: Sequence[Example]) -> bool:
    """No grid is larger than ARC allows."""
    return all(
        0 < len(g) <= LARGEST and 0 < len(g[0]) <= LARGEST for pair in examples for g in pair
    )

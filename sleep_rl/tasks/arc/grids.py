"""Grids of ARC as text, and transformations that augment a puzzle (SEAL's augmenters)."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass

Grid = tuple[tuple[int, ...], ...]
Example = tuple[Grid, Grid]  # input and output
LARGEST = 30  # cells a side


def render(grid: Grid) -> str:
    """Return a grid as text: one line per row, digits separated by spaces."""
    return "\n".join(" ".join(map(str, row)) for row in grid)


def parse(text: str) -> Grid | None:
    """Return the grid that a text begins with, up to an empty line; None if there is none."""
    rows = []
    for line in text.strip().split("\n"):
        if not line.strip():
            break
        cells = line.split()
        if not all(len(cell) == 1 and cell in "0123456789" for cell in cells):
            return None
        if rows and len(cells) != len(rows[0]):
            return None
        rows.append(tuple(map(int, cells)))
    return tuple(rows) if rows else None


def rotate(grid: Grid) -> Grid:
    """Rotate by 90 degrees, clockwise."""
    return tuple(zip(*grid[::-1], strict=True))


def transpose(grid: Grid) -> Grid:
    """Transpose rows and columns."""
    return tuple(zip(*grid, strict=True))


def flip(grid: Grid) -> Grid:
    """Flip vertically."""
    return grid[::-1]


def mirror(grid: Grid) -> Grid:
    """Flip horizontally."""
    return tuple(row[::-1] for row in grid)


def _chain(*steps: Callable[[Grid], Grid]) -> Callable[[Grid], Grid]:
    def apply(grid: Grid) -> Grid:
        for step in steps:
            grid = step(grid)
        return grid

    return apply


def _reflect(across: str, first: bool) -> Callable[[Grid], Grid]:
    """Return the transformation that joins a grid with its mirror image, which is `first` or last;
    `across` "x": horizontally, "y": vertically.
    """

    def apply(grid: Grid) -> Grid:
        image = mirror(grid) if across == "x" else flip(grid)
        a, b = (image, grid) if first else (grid, image)
        if across == "y":
            return a + b
        return tuple(p + q for p, q in zip(a, b, strict=True))

    return apply


def _enlarge(high: int, wide: int) -> Callable[[Grid], Grid]:
    """Return the transformation of every cell to high x wide cells."""
    return lambda grid: tuple(
        tuple(cell for cell in row for _ in range(wide)) for row in grid for _ in range(high)
    )


def _repeat(high: int, wide: int) -> Callable[[Grid], Grid]:
    """Return the transformation to high x wide copies of the grid."""
    return lambda grid: tuple(row * wide for row in grid) * high


def _shift(down: int, right: int) -> Callable[[Grid], Grid]:
    """Return the cyclic shift of a grid."""

    def apply(grid: Grid) -> Grid:
        height = len(grid)
        width = len(grid[0])
        d = height - down % height
        r = width - right % width
        return tuple(row[r:] + row[:r] for row in grid[d:] + grid[:d])

    return apply


TURNS = {
    "rotate 90": rotate,
    "rotate 180": _chain(rotate, rotate),
    "rotate 270": _chain(rotate, rotate, rotate),
    "flip": flip,
    "mirror": mirror,
    "transpose": transpose,
}


def augmentations(rng: random.Random) -> dict[str, dict[str, Callable[[Grid], Grid]]]:
    """Return family -> name -> augmentation: 11 basic, 3 of size, 6 chained, 3 repeats. A recipe
    enables families.
    """
    reflections = {
        f"reflect {across} {'first' if first else 'last'}": _reflect(across, first)
        for across in "xy"
        for first in (True, False)
    }
    return {
        "basic": {**TURNS, **reflections, "shift": _shift(rng.randint(1, 3), rng.randint(1, 3))},
        "size": {"both": _enlarge(2, 2), "height": _enlarge(2, 1), "width": _enlarge(1, 2)},
        "chain": {f"{name}, both": _chain(turn, _enlarge(2, 2)) for name, turn in TURNS.items()},
        "repeat": {"down": _repeat(2, 1), "across": _repeat(1, 2), "both": _repeat(2, 2)},
    }


@dataclass(frozen=True)
class View:
    """An invertible view of a puzzle: a turn, a permutation of colours, an order of examples."""

    turn: str  # of TURNS, or "" for none
    colours: tuple[int, ...]  # colour c becomes colours[c]
    order: tuple[int, ...]  # positions of the examples

    def show(self, grid: Grid) -> Grid:
        """Apply the turn and the permutation of colours."""
        turned = TURNS[self.turn](grid) if self.turn else grid
        return tuple(tuple(self.colours[cell] for cell in row) for row in turned)

    def back(self, grid: Grid) -> Grid:
        """Invert `show`."""
        inverse = {"rotate 90": "rotate 270", "rotate 270": "rotate 90"}.get(self.turn, self.turn)
        cells = tuple(tuple(self.colours.index(cell) for cell in row) for row in grid)
        return TURNS[inverse](cells) if inverse else cells


def random_view(examples: int, rng: random.Random, turn: str = "") -> View:
    """Draw a permutation of the colours except 0, the background, and of the examples."""
    return View(
        turn, (0, *rng.sample(range(1, 10), 9)), tuple(rng.sample(range(examples), examples))
    )


def fits(examples: Sequence[Example]) -> bool:
    """Return whether every grid has a size that ARC allows."""
    grids = [grid for example in examples for grid in example]
    return all(0 < len(grid) <= LARGEST and 0 < len(grid[0]) <= LARGEST for grid in grids)

"""ARC, few-shot, in SEAL's protocol: a dream is a training recipe for one puzzle, as JSON.

An isolated copy is trained as the recipe says, on sub-puzzles that leave one or two of the examples
out, seen in many ways; then it answers the puzzle's tests in several views, whose answers vote. tau
is 1 where every test grid is right in one of two attempts; the score over (puzzle, recipe) pairs is
the mean tau of the dreams tried out.
"""

from __future__ import annotations

import itertools
import json
import random
from collections import Counter
from dataclasses import dataclass
from typing import Any

from sleep_rl.contracts.errors import Failure, InputError, one_line
from sleep_rl.contracts.records import Day, Document, DreamTask, Lesson, Question, TrainingText
from sleep_rl.files import parsed
from sleep_rl.tasks.arc.grids import (
    TURNS,
    Example,
    Grid,
    View,
    families,
    fits,
    parse,
    random_view,
    render,
)
from sleep_rl.tasks.small_base import Progress

WHERE = "task.arc"
OPENER, MARKER = "Input:\n", "\nOutput:\n"
DREAM = "\nA training recipe for this puzzle, as JSON:\n"
SWITCHES = {
    "use_basic_augmentations": "basic",
    "use_size_augmentations": "size",
    "use_chain_augmentations": "chain",
    "use_repeat_augmentations": "repeat",
}
LOSSES = {"train_using_all_tokens": True, "train_using_output_tokens": False}
FORM = (
    '{"use_basic_augmentations": true or false, "use_size_augmentations": ..., '
    '"use_chain_augmentations": ..., '
    '"use_repeat_augmentations": ..., "strategy": "train_using_all_tokens" or '
    '"train_using_output_tokens", '
    '"learning_rate": 1e-4, "num_train_epochs": 2}'
)
MOST_TEXTS, MOST_STEPS = 250, 375  # as SEAL: more examples are not used, longer training is refused
ATTEMPTS = 2


@dataclass(frozen=True)
class Puzzle:
    id: str
    train: tuple[Example, ...]
    test: tuple[Example, ...]


@dataclass(frozen=True)
class Recipe:
    """What a dream says. Raises ValueError, with what is wrong, for text that says something
    else.
    """

    kinds: tuple[str, ...]
    all_tokens: bool
    lr: float
    epochs: int

    @staticmethod
    def of(dream: str) -> Recipe:
        start, end = dream.find("{"), dream.find("}")
        try:
            found = json.loads(dream[start : end + 1]) if 0 <= start < end else None
        except ValueError:
            found = None
        if not isinstance(found, dict):
            raise ValueError("it is no JSON object")
        wanted = {*SWITCHES, "strategy", "learning_rate", "num_train_epochs"}
        if missing := sorted(wanted - found.keys()):
            raise ValueError(f"its JSON lacks {missing[0]}")
        if wrong := [key for key in SWITCHES if not isinstance(found[key], bool)]:
            raise ValueError(f"{wrong[0]} is neither true nor false")
        lr, epochs = found["learning_rate"], found["num_train_epochs"]
        if not isinstance(found["strategy"], str) or found["strategy"] not in LOSSES:
            raise ValueError(f"strategy is not one of {', '.join(LOSSES)}")
        if isinstance(lr, bool) or not isinstance(lr, (int, float)) or not 0 < lr <= 1:
            raise ValueError("learning_rate is no number above 0 and up to 1")
        if isinstance(epochs, bool) or not isinstance(epochs, int) or epochs < 1:
            raise ValueError("num_train_epochs is no whole number from 1 on")
        return Recipe(
            tuple(kind for key, kind in SWITCHES.items() if found[key]),
            LOSSES[found["strategy"]],
            float(lr),
            epochs,
        )


def read_puzzles(challenges: str, solutions: str) -> list[Puzzle]:
    """Puzzles of ARC's two json files that have a solution. Raises InputError with one line."""
    try:
        asked, solved = (parsed(path) for path in (challenges, solutions))
        if not isinstance(asked, dict) or not isinstance(solved, dict):
            raise ValueError("expected objects with a puzzle under each name")
        return [
            _puzzle(name, puzzle, solved[name]) for name, puzzle in asked.items() if name in solved
        ]
    except Exception as error:
        # unreadable files, other json, other shapes: all of it is about this input
        what = one_line(error)
        raise InputError(
            f"{WHERE}: ARC's challenges and solutions as json, got {challenges} and "
            f"{solutions}: {what}"
        ) from error


def _puzzle(name: str, puzzle: Any, solved: Any) -> Puzzle:
    parts = [puzzle.get(part) if isinstance(puzzle, dict) else None for part in ("train", "test")]
    if not all(isinstance(part, list) and all(isinstance(e, dict) for e in part) for part in parts):
        raise ValueError(f"puzzle {name[:40]}: expected train and test, lists of objects")
    train, test = parts
    if not isinstance(solved, list) or len(solved) != len(test):
        raise ValueError(f"puzzle {name[:40]}: expected {len(test)} solutions, one per test")
    try:
        return Puzzle(
            name,
            tuple((_grid(e.get("input")), _grid(e.get("output"))) for e in train),
            tuple((_grid(e.get("input")), _grid(out)) for e, out in zip(test, solved)),
        )
    except ValueError as error:
        raise ValueError(f"puzzle {name[:40]}: {error}") from None


def _grid(rows: Any) -> Grid:
    whole = isinstance(rows, list) and all(isinstance(row, list) for row in rows)
    grid = tuple(tuple(row) for row in rows) if whole else ()
    if (
        not grid
        or not grid[0]
        or any(
            len(r) != len(grid[0]) or not all(type(c) is int and 0 <= c <= 9 for c in r)
            for r in grid
        )
    ):
        raise ValueError("a grid is a rectangle of colours 0 to 9")
    return grid


def shown(examples: list[Example], question: Grid) -> str:
    """Examples, and a question to be continued by its output."""
    told = "".join(f"{OPENER}{render(a)}{MARKER}{render(b)}\n\n" for a, b in examples)
    return f"{told}{OPENER}{render(question)}{MARKER}"


class Arc:
    """The Task of this file (see contracts.Task and dream_contracts.Dreamer). `views`: in how many
    ways a test is asked, beside as it stands; their answers vote.
    """

    name = "arc"
    opener, marker, dream_opener = OPENER, MARKER, DREAM
    max_new_tokens, max_answer_tokens = 1024, 1024

    def __init__(
        self,
        challenges: str,
        solutions: str,
        days: int = 1,
        puzzles_per_day: int = 11,
        views: int = 2,
        max_dream_tokens: int = 128,
    ):
        self.max_dream_tokens, self._views = max_dream_tokens, views
        puzzles = [
            p
            for p in read_puzzles(challenges, solutions)
            if len(p.train) > 1 and fits([*p.train, *p.test])
        ]
        if days * puzzles_per_day > len(puzzles):
            raise InputError(
                f"{WHERE}: days * puzzles_per_day is at most {len(puzzles)}, the "
                "puzzles with solutions in "
                f"{challenges}, got {days * puzzles_per_day}"
            )
        self._of_day = {
            f"day{i + 1}": puzzles[i * puzzles_per_day : (i + 1) * puzzles_per_day]
            for i in range(days)
        }
        self._puzzles = {p.id: p for mine in self._of_day.values() for p in mine}
        self._days = tuple(
            Day(name, tuple(_document(p) for p in mine), tuple(q for p in mine for q in _asked(p)))
            for name, mine in self._of_day.items()
        )

    def days(self) -> tuple[Day, ...]:
        return self._days

    def known(self) -> tuple[Question, ...]:
        return ()

    def grade(self, question: Question, text: str) -> float:
        """1 where the text begins with the right grid."""
        grid = parse(text)
        return float(grid is not None and render(grid) == question.answer)

    def sft_texts(self, day: Day) -> tuple[TrainingText, ...]:
        """Each puzzle's examples, one of them asked."""
        return tuple(
            TrainingText(shown([*p.train[:i], *p.train[i + 1 :]], a), render(b))
            for p in self._of_day[day.name]
            for i, (a, b) in enumerate(p.train)
        )

    def joint_texts(self) -> tuple[TrainingText, ...]:
        return tuple(text for day in self._days for text in self.sft_texts(day))

    def dream_tasks(self, day: Day) -> tuple[DreamTask, ...]:
        """One task per puzzle: C is its examples; asked are its tests in every view."""
        return tuple(
            DreamTask(p.id, day.name, _document(p), tuple(self._view_questions(p)))
            for p in self._of_day[day.name]
        )

    def _view_questions(self, puzzle: Puzzle) -> list[Question]:
        """Test by test: one question per view."""
        return [
            Question(
                f"{puzzle.id}/{i}/{v}",
                shown(
                    [(view.show(a), view.show(b)) for a, b in _ordered(puzzle, view)],
                    view.show(question),
                ),
                render(view.show(answer)),
                puzzle.id,
            )
            for i, (question, answer) in enumerate(puzzle.test)
            for v, view in enumerate(self._views_of(puzzle))
        ]

    def _views_of(self, puzzle: Puzzle) -> list[View]:
        rng = random.Random(f"views {puzzle.id}")
        count = len(puzzle.train)
        plain = View("", tuple(range(10)), tuple(range(count)))
        return [
            plain,
            *(random_view(count, rng, rng.choice(sorted(TURNS))) for _ in range(self._views)),
        ]

    def tau(self, task: DreamTask, answers: list[str]) -> float:
        """1 where each test's right grid is among the two that most views answer, turned back; else
        0.
        """
        puzzle = self._puzzles[task.id]
        views, solved = self._views_of(puzzle), True
        for i, (_, right) in enumerate(puzzle.test):
            mine = answers[i * len(views) : (i + 1) * len(views)]
            votes = Counter(
                view.back(grid)
                for view, text in zip(views, mine, strict=True)
                if (grid := parse(text))
            )
            solved &= right in [grid for grid, _ in votes.most_common(ATTEMPTS)]
        return float(solved)

    def lesson(self, task: DreamTask, dream: str) -> Lesson | Failure:
        """The recipe's training texts. Fails for what is no recipe, or one of too many steps."""
        try:
            recipe = Recipe.of(dream)
        except ValueError as error:
            return Failure(str(error), "dream")
        texts = sub_puzzles(self._puzzles[task.id], recipe)
        if len(texts) * recipe.epochs > MOST_STEPS:
            return Failure(
                f"it takes {len(texts) * recipe.epochs} steps, more than {MOST_STEPS}", "dream"
            )
        return Lesson(texts, recipe.lr, recipe.epochs)

    def deeper(self, day: Day) -> dict[str, tuple[Question, ...]]:
        return {}

    def base_checkpoint(self, cache: str, seed: int, progress: Progress | None) -> str:
        raise InputError(
            "model.base: a language model is needed for task arc, which has no small base, got null"
        )


def sub_puzzles(puzzle: Puzzle, recipe: Recipe) -> tuple[TrainingText, ...]:
    """Puzzles that leave one or two examples out and ask for one of them: as they stand, and in
    every augmentation of the recipe, each once more in other colours and another order; at most
    MOST_TEXTS, always the same.
    """
    rng = random.Random(f"sub-puzzles {puzzle.id}")
    count, subs = len(puzzle.train), []
    for out in itertools.chain(
        *(itertools.combinations(range(count), n) for n in (1, 2) if count > n)
    ):
        rest = [puzzle.train[i] for i in range(count) if i not in out]
        subs += [(rest, puzzle.train[i]) for i in out]
    augments = {
        name: change
        for kind, mine in families(rng).items()
        if kind in recipe.kinds
        for name, change in mine.items()
    }
    seen = [(rest, asked) for rest, asked in subs]
    for change in augments.values():
        seen += [
            ([(change(a), change(b)) for a, b in rest], (change(q), change(a)))
            for rest, (q, a) in subs
        ]
    varied = list(seen)
    for rest, (q, a) in seen:
        view = random_view(len(rest), rng)
        varied.append(
            (
                [(view.show(rest[i][0]), view.show(rest[i][1])) for i in view.order],
                (view.show(q), view.show(a)),
            )
        )
    sound = [(rest, asked) for rest, asked in varied if fits([*rest, asked])]
    chosen = (
        sound
        if len(sound) <= MOST_TEXTS
        else [sound[i] for i in sorted(rng.sample(range(len(sound)), MOST_TEXTS))]
    )
    texts = [TrainingText(shown(rest, q), render(a)) for rest, (q, a) in chosen]
    whole = (
        [TrainingText("", t.prompt + t.completion) for t in texts] if recipe.all_tokens else texts
    )
    return tuple(dict.fromkeys(whole))


def _ordered(puzzle: Puzzle, view: View) -> list[Example]:
    return [puzzle.train[i] for i in view.order]


def _document(puzzle: Puzzle) -> Document:
    """C: the examples, and the form of a recipe."""
    told = "".join(f"{OPENER}{render(a)}{MARKER}{render(b)}\n\n" for a, b in puzzle.train)
    return Document(puzzle.id, f"{told}A recipe has this form: {FORM}")


def _asked(puzzle: Puzzle) -> tuple[Question, ...]:
    return tuple(
        Question(f"{puzzle.id}/{i}", shown(list(puzzle.train), question), render(answer), puzzle.id)
        for i, (question, answer) in enumerate(puzzle.test)
    )

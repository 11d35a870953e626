"""Task arc: few-shot ARC in SEAL's protocol, in which a dream is a training recipe for one puzzle.

An isolated copy is fine-tuned by the recipe on sub-puzzles that leave out one or two examples, with
augmentations. Then it answers the puzzle's tests in several views, and the answers vote. tau is 1
if every test grid is correct in one of two attempts; the score over (puzzle, recipe) pairs is the
mean tau of the dreams with trials.
"""

from __future__ import annotations

import random
from collections import Counter

from sleep_rl.config.tasks import ArcConfig
from sleep_rl.contracts.errors import Failure, InputError
from sleep_rl.contracts.records import Day, Document, DreamTask, Lesson, Question, TrainingText
from sleep_rl.tasks.arc.grids import TURNS, View, fits, parse, random_view, render
from sleep_rl.tasks.arc.puzzles import (
    MARKER,
    OPENER,
    Puzzle,
    examples_text,
    puzzle_prompt,
    read_puzzles,
)
from sleep_rl.tasks.arc.recipe import FORM, FineTuningRecipe, sub_puzzles
from sleep_rl.tasks.small_base import Progress

WHERE = "task.arc"
DREAM = "\nA training recipe for this puzzle, as JSON:\n"
MOST_STEPS = 375  # as SEAL; a recipe with more is a Failure
ATTEMPTS = 2
# of a test, in addition to the identity: three answers vote for two attempts
RANDOM_VIEWS = 2


class Arc:
    """Implements `Task` and `Dreamer`. Raises InputError on unreadable data or impossible
    counts.
    """

    name = "arc"
    opener = OPENER
    marker = MARKER
    dream_opener = DREAM
    max_new_tokens = 1024
    max_answer_tokens = 1024

    def __init__(
        self,
        path: str,
        days: int = ArcConfig.days,
        puzzles_per_day: int = 11,
        max_dream_tokens: int = ArcConfig.dream_tokens,
    ):
        self.max_dream_tokens = max_dream_tokens
        puzzles = [
            puzzle
            for puzzle in read_puzzles(path)
            if len(puzzle.train) > 1 and fits([*puzzle.train, *puzzle.test])
        ]
        count = days * puzzles_per_day
        if count > len(puzzles):
            raise InputError(
                f"task.days * {WHERE}.puzzles_per_day is at most {len(puzzles)}, the puzzles with "
                f"solutions in {path}, got {count}"
            )
        self._of_day = {
            f"day{i + 1}": puzzles[i * puzzles_per_day : (i + 1) * puzzles_per_day]
            for i in range(days)
        }
        self._puzzles = {puzzle.id: puzzle for puzzle in puzzles[:count]}
        self._days = tuple(_day(name, puzzles) for name, puzzles in self._of_day.items())

    def days(self) -> tuple[Day, ...]:
        return self._days

    def known(self) -> tuple[Question, ...]:
        return ()

    def grade(self, question: Question, text: str) -> float:
        """Return 1 if the text begins with the correct grid, else 0."""
        grid = parse(text)
        return float(grid is not None and render(grid) == question.answer)

    def sft_texts(self, day: Day) -> tuple[TrainingText, ...]:
        """Return each puzzle's examples, with each of them once as the one that is asked."""
        texts = []
        for puzzle in self._of_day[day.name]:
            for i, (question, answer) in enumerate(puzzle.train):
                rest = [*puzzle.train[:i], *puzzle.train[i + 1 :]]
                texts.append(TrainingText(puzzle_prompt(rest, question), render(answer)))
        return tuple(texts)

    def joint_texts(self) -> tuple[TrainingText, ...]:
        return tuple(text for day in self._days for text in self.sft_texts(day))

    def dream_tasks(self, day: Day) -> tuple[DreamTask, ...]:
        """Return one task per puzzle: C is its examples, the questions its tests in each view."""
        return tuple(
            DreamTask(puzzle.id, day.name, _document(puzzle), self._view_questions(puzzle))
            for puzzle in self._of_day[day.name]
        )

    def _view_questions(self, puzzle: Puzzle) -> tuple[Question, ...]:
        """Return each test in each view, test by test."""
        questions = []
        for i, (question, answer) in enumerate(puzzle.test):
            for v, view in enumerate(self._views(puzzle)):
                examples = [puzzle.train[k] for k in view.order]
                shown = [(view.show(a), view.show(b)) for a, b in examples]
                prompt = puzzle_prompt(shown, view.show(question))
                questions.append(
                    Question(f"{puzzle.id}/{i}/{v}", prompt, render(view.show(answer)), puzzle.id)
                )
        return tuple(questions)

    def _views(self, puzzle: Puzzle) -> list[View]:
        """Return the identity and the random views, deterministic in the puzzle."""
        rng = random.Random(f"views {puzzle.id}")
        count = len(puzzle.train)
        views = [View("", tuple(range(10)), tuple(range(count)))]
        for _ in range(RANDOM_VIEWS):
            views.append(random_view(count, rng, rng.choice(sorted(TURNS))))
        return views

    def tau(self, task: DreamTask, answers: list[str]) -> float:
        """Return 1 if the correct grid of each test is one of the two most frequent answers over
        the views (after inverting the view), else 0.
        """
        puzzle = self._puzzles[task.id]
        views = self._views(puzzle)
        solved = True
        for i, (_, correct) in enumerate(puzzle.test):
            texts = answers[i * len(views) : (i + 1) * len(views)]
            votes = Counter(
                view.back(grid)
                for view, text in zip(views, texts, strict=True)
                if (grid := parse(text))
            )
            solved &= correct in [grid for grid, _ in votes.most_common(ATTEMPTS)]
        return float(solved)

    def lesson(self, task: DreamTask, dream: str) -> Lesson | Failure:
        """Return the recipe's training texts; a Failure for an invalid recipe or too many steps."""
        try:
            recipe = FineTuningRecipe.parse(dream)
        except ValueError as error:
            return Failure(str(error), "dream")
        texts = sub_puzzles(self._puzzles[task.id], recipe)
        steps = len(texts) * recipe.epochs
        if steps > MOST_STEPS:
            return Failure(f"{steps} steps, more than {MOST_STEPS}", "dream")
        return Lesson(texts, recipe.lr, recipe.epochs)

    def deeper(self, day: Day) -> dict[str, tuple[Question, ...]]:
        return {}

    def base_checkpoint(self, cache: str, seed: int, progress: Progress | None) -> str:
        raise InputError(
            "model.base: a language model is needed for task arc, which has no small base, got null"
        )


def _day(name: str, puzzles: list[Puzzle]) -> Day:
    documents = tuple(_document(puzzle) for puzzle in puzzles)
    questions = [question for puzzle in puzzles for question in _questions(puzzle)]
    return Day(name, documents, tuple(questions))


def _document(puzzle: Puzzle) -> Document:
    """Return C: the examples, and the form of a recipe."""
    return Document(puzzle.id, f"{examples_text(puzzle.train)}A recipe has this form: {FORM}")


def _questions(puzzle: Puzzle) -> list[Question]:
    return [
        Question(
            f"{puzzle.id}/{i}", puzzle_prompt(puzzle.train, question), render(answer), puzzle.id
        )
        for i, (question, answer) in enumerate(puzzle.test)
    ]

"""Dreams of task arc: fine-tuning recipes for one puzzle, and the training texts that they give."""

from __future__ import annotations

import itertools
import json
import random
from dataclasses import dataclass
from typing import Any

from sleep_rl.contracts.records import TrainingText
from sleep_rl.tasks.arc.grids import Example, augmentations, fits, random_view, render
from sleep_rl.tasks.arc.puzzles import Puzzle, puzzle_prompt

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
MOST_TEXTS = 250  # as SEAL

SubPuzzle = tuple[list[Example], Example]  # examples in the prompt, and the one that is asked


@dataclass(frozen=True)
class FineTuningRecipe:
    """Hyperparameters of fine-tuning on one puzzle, as stated by a dream.

    `families`: of augmentations. `all_tokens`: the loss covers the prompt as well.
    """

    families: tuple[str, ...]
    all_tokens: bool
    lr: float
    epochs: int

    @staticmethod
    def parse(dream: str) -> FineTuningRecipe:
        """Parse the first JSON object of a dream. Raises ValueError with the reason."""
        fields = _first_object(dream)
        required = {*SWITCHES, "strategy", "learning_rate", "num_train_epochs"}
        if missing := sorted(required - fields.keys()):
            raise ValueError(f"its JSON lacks {missing[0]}")
        if wrong := [key for key in SWITCHES if not isinstance(fields[key], bool)]:
            raise ValueError(f"{wrong[0]} is neither true nor false")
        strategy = fields["strategy"]
        lr = fields["learning_rate"]
        epochs = fields["num_train_epochs"]
        if not isinstance(strategy, str) or strategy not in LOSSES:
            raise ValueError(f"strategy is not one of {', '.join(LOSSES)}")
        if isinstance(lr, bool) or not isinstance(lr, (int, float)) or not 0 < lr <= 1:
            raise ValueError("learning_rate is not a number above 0 and at most 1")
        if isinstance(epochs, bool) or not isinstance(epochs, int) or epochs < 1:
            raise ValueError("num_train_epochs is not an integer >= 1")
        families = tuple(family for key, family in SWITCHES.items() if fields[key])
        return FineTuningRecipe(families, LOSSES[strategy], float(lr), epochs)


def _first_object(text: str) -> dict[str, Any]:
    start = text.find("{")
    end = text.find("}")
    try:
        fields = json.loads(text[start : end + 1]) if 0 <= start < end else None
    except ValueError:
        fields = None
    if not isinstance(fields, dict):
        raise ValueError("not a JSON object")
    return fields


def sub_puzzles(puzzle: Puzzle, recipe: FineTuningRecipe) -> tuple[TrainingText, ...]:
    """Return training texts that leave out one or two examples of a puzzle and ask for one of them.

    Each sub-puzzle occurs unchanged and in every augmentation of the recipe, and each of these a
    second time with permuted colours and examples. At most MOST_TEXTS, deterministic in the puzzle.
    """
    rng = random.Random(f"sub-puzzles {puzzle.id}")
    left_out = _leave_out(puzzle)
    changes: dict[str, Any] = {}
    for family, named in augmentations(rng).items():
        if family in recipe.families:
            # "both" is in size and repeat: if both are enabled, that of repeat replaces the other.
            changes |= named
    variants = list(left_out)
    for change in changes.values():
        for rest, (question, answer) in left_out:
            examples = [(change(a), change(b)) for a, b in rest]
            variants.append((examples, (change(question), change(answer))))
    for rest, (question, answer) in list(variants):
        view = random_view(len(rest), rng)
        examples = [(view.show(rest[i][0]), view.show(rest[i][1])) for i in view.order]
        variants.append((examples, (view.show(question), view.show(answer))))
    chosen = [(rest, asked) for rest, asked in variants if fits([*rest, asked])]
    if len(chosen) > MOST_TEXTS:
        chosen = [chosen[i] for i in sorted(rng.sample(range(len(chosen)), MOST_TEXTS))]
    texts = [
        TrainingText(puzzle_prompt(rest, question), render(answer))
        for rest, (question, answer) in chosen
    ]
    if recipe.all_tokens:
        texts = [TrainingText("", text.prompt + text.completion) for text in texts]
    return tuple(dict.fromkeys(texts))


def _leave_out(puzzle: Puzzle) -> list[SubPuzzle]:
    """Return all sub-puzzles without one or two examples, at least one left, asking for one."""
    count = len(puzzle.train)
    subs: list[SubPuzzle] = []
    for size in (1, 2):
        if count <= size:
            continue
        for out in itertools.combinations(range(count), size):
            rest = [puzzle.train[i] for i in range(count) if i not in out]
            subs += [(rest, puzzle.train[i]) for i in out]
    return subs

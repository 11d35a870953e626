"""The small base model of task classify: its tokenizer and training data.

A row of training data is (token ids, weight of each token in the loss).
"""

from __future__ import annotations

import random
from collections.abc import Iterable
from dataclasses import dataclass

from tokenizers import pre_tokenizers
from torch import Tensor
from transformers import PreTrainedTokenizerFast, Qwen3Config

from sleep_rl.tasks.classify.dataset import MARKER, OPENER, Examples
from sleep_rl.tasks.small_base import byte_tokenizer, padded_batch, qwen3_config

CONTEXT = 512  # positions of the base model


@dataclass(frozen=True)
class Recipe:
    """Hyperparameters of the base's training, part of its checkpoint's fingerprint.

    Shares are in [0, 1]. Copying from a page is trained first, on lines of random tokens (`drill`):
    on real text the model hardly copied after a million tokens (measured), while 77 % of the labels
    without a page were correct.
    """

    steps: int = 2200
    lr: float = 4e-3
    vocabulary: int = 2048
    hidden: int = 128
    layers: int = 3
    drill: float = 0.36  # share of training on repeated random lines
    # share of the drill on one line of fixed length: the last copy is at a constant distance
    fixed: float = 0.18
    # share of the drill until which there is one line, of any length; then the number increases
    single: float = 0.42
    growing: float = 0.25  # share of training, after the drill, in which pages grow to full length
    pages: int = 12  # per step, of full length; more while they are shorter
    bare: int = 64  # sequences without a page, per step
    with_page: float = 0.65  # share of steps on pages
    longest_page: int = 7  # examples
    lines_behind: int = 4  # lines after one page, to save time; in sleep there is one
    # share of these that repeat an example of the page; the loss of the others is on the label only
    repeated: float = 0.85
    # share of pages of random tokens, so that copying does not depend on the text
    nonsense: float = 0.2
    # share of pages with other labels than the true ones, which must be read from the page
    renamed: float = 0.75
    # largest number of tokens of a random label: classes with longer labels were not learned at all
    # (measured)
    longest_name: int = 8
    page_weight: float = 0.1  # loss weights: 1 is that of an utterance after a page
    page_label_weight: float = 0.5  # of the true labels on a page
    # of labels after a page, which are harder to predict than the next word of an utterance
    label_weight: float = 4.0
    bare_weight: float = 0.5  # of an utterance without a page; its label has 1


def train_tokenizer(texts: Iterable[str], size: int) -> PreTrainedTokenizerFast:
    """Train the tokenizer. Opener and marker are single tokens that split the text, and every part
    between them starts with a space, so that parts can be tokenized separately.
    """
    split = pre_tokenizers.ByteLevel(add_prefix_space=True)
    return byte_tokenizer(texts, size, split, single_tokens=(OPENER, MARKER))


Row = tuple[list[int], list[float]]


class BaseText:
    """Training data: pages of labelled examples followed by labelled lines, and single lines."""

    def __init__(
        self, examples: Examples, tokenizer: PreTrainedTokenizerFast, recipe: Recipe, seed: int
    ):
        def ids(texts: list[str]) -> list[list[int]]:
            return tokenizer(texts, add_special_tokens=False)["input_ids"]

        self.recipe = recipe
        self.seed = seed
        self.labels = list(examples)
        self.utterances = {label: ids(utterances) for label, utterances in examples.items()}
        self.named = dict(zip(self.labels, ids(self.labels), strict=True))
        self.bos = tokenizer.bos_token_id
        self.eos = tokenizer.eos_token_id
        (self.opener,), (self.marker,) = ids([OPENER, MARKER])
        reserved = {tokenizer.pad_token_id, self.bos, self.eos, self.opener, self.marker}
        utterances = [ids for of_label in self.utterances.values() for ids in of_label]
        # a random choice has the token frequencies of the text
        self.common = [token for utterance in utterances for token in utterance]
        self.tokens = [token for token in range(len(tokenizer)) if token not in reserved]

    def batches(self, step: int) -> tuple[Tensor, Tensor]:
        """Return the token ids and loss weights [B, T] of a step, for `train_base`."""
        recipe = self.recipe
        rng = random.Random(f"{self.seed}/{step}")
        done = step / recipe.steps - recipe.drill
        if done < 0:
            rows = [self._drill(rng, 1 + done / recipe.drill) for _ in range(2 * recipe.pages)]
        elif rng.random() < recipe.with_page:
            growth = min(done / recipe.growing, 1)
            # about the same number of tokens in every step
            count = round(recipe.pages * 2 / (1 + growth))
            longest = round(3 + growth * (recipe.longest_page - 3))
            rows = [self._page(rng, longest) for _ in range(count)]
        else:
            # sequences of similar length, to reduce padding
            rows = [self._bare(rng) for _ in range(6 * recipe.bare)]
            rows.sort(key=lambda row: len(row[0]))
            start = recipe.bare * rng.randrange(6)
            rows = rows[start : start + recipe.bare]
        return padded_batch(rows)

    def _bare(self, rng: random.Random) -> Row:
        """Draw a labelled line without a page."""
        label = rng.choice(self.labels)
        utterance = rng.choice(self.utterances[label])
        name = self.named[label]
        ids = [self.bos, self.opener, *utterance, self.marker, *name, self.eos]
        utterance_weights = [self.recipe.bare_weight] * len(utterance)
        return ids, [0.0, 0.0, *utterance_weights, *[1.0] * (len(name) + 2)]

    def _drill(self, rng: random.Random, done: float) -> Row:
        """Draw lines of random tokens, each repeated; the loss covers the repetitions only.

        `done`: finished share of the drill.
        """
        recipe = self.recipe
        growth = max(done - recipe.single, 0) / (1 - recipe.single)
        distinct = 1 if done < recipe.single else rng.randint(2, 2 + round(3 * growth))
        lines = []
        for _ in range(distinct):
            if done < recipe.fixed:
                lines.append((self._random(rng, 4, 4), self._random(rng, 1, 1)))
            else:
                utterance = self._random(rng, 2, 8)
                lines.append((utterance, self._random(rng, 1, recipe.longest_name)))
        ids: list[int] = [self.bos]
        weights = [0.0]
        for line in lines:
            self._append(ids, weights, *line, 0.0, 0.0)
        for line in rng.choices(lines, k=3 + distinct // 2):
            self._append(ids, weights, *line, 1.0, recipe.label_weight)
        return ids, weights

    def _append(
        self,
        ids: list[int],
        weights: list[float],
        utterance: list[int],
        name: list[int],
        weight: float,
        label_weight: float,
    ) -> None:
        """Append a line: opener, utterance, marker and label.

        The opener has weight 0, since its position cannot be predicted.
        """
        ids += [self.opener, *utterance, self.marker, *name]
        weights += [0.0, *[weight] * (len(utterance) + 1), *[label_weight] * len(name)]

    def _page(self, rng: random.Random, longest: int) -> Row:
        """Draw a page of up to `longest` labelled examples, followed by repeated or new lines."""
        recipe = self.recipe
        labels = rng.sample(self.labels, min(rng.randint(2, 15), len(self.labels)))
        true_names = rng.random() >= recipe.renamed
        named = {
            label: self.named[label] if true_names else self._other_name(rng) for label in labels
        }
        sense = rng.random() >= recipe.nonsense
        count = rng.randint(2, longest)
        chosen = (labels + rng.choices(labels, k=count))[:count]
        page = [
            (label, rng.choice(self.utterances[label]) if sense else self._random(rng, 4, 8))
            for label in chosen
        ]
        rng.shuffle(page)
        ids: list[int] = [self.bos]
        weights = [0.0]
        page_weight = recipe.page_weight * sense
        name_weight = (recipe.page_label_weight if true_names else recipe.page_weight) * sense
        for label, utterance in page:
            self._append(ids, weights, utterance, named[label], page_weight, name_weight)
        del ids[1], weights[1]  # a document starts without the opener
        for label, utterance in rng.sample(page, min(recipe.lines_behind, count)):
            if sense and rng.random() >= recipe.repeated:
                # The loss of a new line is on the label only, since the model should generate lines
                # of the page.
                label = rng.choice(chosen)
                utterance = rng.choice(self.utterances[label])
                self._append(ids, weights, utterance, named[label], 0.0, recipe.label_weight)
            else:
                self._append(ids, weights, utterance, named[label], 1.0, recipe.label_weight)
            ids.append(self.eos)
            weights.append(recipe.label_weight)
        return ids, weights

    def _other_name(self, rng: random.Random) -> list[int]:
        """Draw the label of any class, or random tokens."""
        if rng.random() < 0.5:
            return self.named[rng.choice(self.labels)]
        return self._random(rng, 1, self.recipe.longest_name)

    def _random(self, rng: random.Random, low: int, high: int) -> list[int]:
        """Draw `low` to `high` tokens: with probability 1/2 with the frequencies of the text, else
        uniformly, to train on rare ones as well.
        """
        candidates = self.common if rng.random() < 0.5 else self.tokens
        return rng.choices(candidates, k=rng.randint(low, high))


def model_config(recipe: Recipe, tokenizer: PreTrainedTokenizerFast) -> Qwen3Config:
    """Return the config of the base."""
    return qwen3_config(tokenizer, recipe.hidden, recipe.layers, CONTEXT)

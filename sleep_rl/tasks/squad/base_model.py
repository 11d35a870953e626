"""The small base model of task squad: its tokenizer and training data."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from tokenizers import pre_tokenizers
from torch import Tensor
from transformers import PreTrainedTokenizerFast, Qwen3Config

from sleep_rl.tasks.small_base import Batches, byte_tokenizer, padded_batch, qwen3_config
from sleep_rl.tasks.squad.dataset import DREAM, MARKER, OPENER, Passage

CONTEXT = 1024  # positions; the longest of SEAL's passages with a dream has about 900 tokens
MOST_DREAM_TOKENS = 300

Piece = tuple[list[int], float]  # token ids, and the loss weight of predicting each of them


@dataclass(frozen=True)
class Recipe:
    """Hyperparameters of the base's training, part of its checkpoint's fingerprint.

    A model of this size learns little; it serves to run the protocol end to end on real text.
    """

    steps: int = 600
    lr: float = 3e-3
    vocabulary: int = 2048
    hidden: int = 128
    layers: int = 3
    batch: int = 6
    # share of sequences without the passage: its title, a question, the answer
    closed: float = 0.25
    # share of passages that are followed by a question, the others by a dream
    behind: float = 0.5


def train_tokenizer(texts: Iterable[str], size: int) -> PreTrainedTokenizerFast:
    """Train the tokenizer. It splits at line breaks, so that the parts of a sequence can be
    tokenized separately.
    """
    lines = pre_tokenizers.Split("\n", "isolated")
    split = pre_tokenizers.Sequence([lines, pre_tokenizers.ByteLevel(add_prefix_space=False)])
    return byte_tokenizer(texts, size, split)


def base_batches(
    passages: Sequence[Passage], tokenizer: PreTrainedTokenizerFast, recipe: Recipe, seed: int
) -> Batches:
    """Return the function from a step to its token ids and loss weights [B, T] for `train_base`."""

    def ids(text: str) -> list[int]:
        return tokenizer(text, add_special_tokens=False)["input_ids"]

    def batches(step: int) -> tuple[Tensor, Tensor]:
        rng = random.Random(f"{seed}/{step}")
        return padded_batch(
            _sequence(rng, passages, ids, (tokenizer.bos_token_id, tokenizer.eos_token_id), recipe)
            for _ in range(recipe.batch)
        )

    return batches


def _sequence(
    rng: random.Random,
    passages: Sequence[Passage],
    ids: Callable[[str], list[int]],
    bos_eos: tuple[int, int],
    recipe: Recipe,
) -> tuple[list[int], list[float]]:
    """Draw (token ids, loss weights): a passage, or only its title, followed by a question with its
    answer or by a dream.
    """
    bos, eos = bos_eos
    passage = rng.choice(passages)
    question, answer = rng.choice(passage.asked)
    pieces: list[Piece] = [([bos], 0.0)]
    closed = rng.random() < recipe.closed
    pieces.append((ids(f"Topic: {passage.title}"), 0.0) if closed else (ids(passage.text), 0.3))
    if passage.dreams and not closed and rng.random() > recipe.behind:
        dream = ids(" " + rng.choice(passage.dreams).strip())[:MOST_DREAM_TOKENS]
        pieces.append((ids(DREAM), 0.0))
        pieces.append(([*dream, eos], 1.0))
    else:
        pieces.append((ids(OPENER), 0.0))
        pieces.append((ids(f" {question}{MARKER}"), 0.5))
        pieces.append(([*ids(f" {answer}"), eos], 3.0))
    tokens = [token for piece, _ in pieces for token in piece]
    weights = [weight for piece, weight in pieces for _ in piece]
    return tokens[:CONTEXT], weights[:CONTEXT]


def model_config(recipe: Recipe, tokenizer: PreTrainedTokenizerFast) -> Qwen3Config:
    """Return the config of the base."""
    return qwen3_config(tokenizer, recipe.hidden, recipe.layers, CONTEXT)

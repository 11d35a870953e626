"""The small base model of `tasks/squad.py`: its shape, its tokenizer and what it is trained on."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast, Qwen3Config

from sleep_rl.tasks.small_base import BOS, EOS, PAD, Batches

if TYPE_CHECKING:
    from sleep_rl.tasks.squad.task import Passage

# positions; the longest of SEAL's passages with a dream behind it has about 900 tokens
CONTEXT = 1024


@dataclass(frozen=True)
class Recipe:
    """How the base is trained: part of its checkpoint's fingerprint. So small a model reads little;
    it shows that the protocol runs end to end on real text.
    """

    steps: int = 600
    lr: float = 3e-3
    vocabulary: int = 2048
    hidden: int = 128
    layers: int = 3
    batch: int = 6
    # share of sequences without the passage: its title, a question, the answer
    closed: float = 0.25
    # share of passages with a question behind them; the others have a dream there
    behind: float = 0.5


def train_tokenizer(texts: list[str], size: int) -> PreTrainedTokenizerFast:
    """Byte-level BPE: any later text can be written with it. A line break ends a piece, so that
    pieces of a text give the same ids alone as within the whole.
    """
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split("\n", "isolated"), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    backend.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    backend.train_from_iterator(
        texts,
        trainers.BpeTrainer(
            vocab_size=size,
            special_tokens=[PAD, BOS, EOS],
            initial_alphabet=alphabet,
            show_progress=False,
        ),
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        pad_token=PAD,
        bos_token=BOS,
        eos_token=EOS,
        clean_up_tokenization_spaces=False,
    )


def base_batches(
    passages: Sequence[Passage],
    tokenizer: PreTrainedTokenizerFast,
    recipe: Recipe,
    marks: tuple[str, str, str],
    seed: int,
) -> Batches:
    """What `pretrain.train_base` asks for: passages with a question and its answer, or a dream,
    behind them.
    """
    opener, marker, dream = marks

    def ids(text: str) -> list[int]:
        return tokenizer(text, add_special_tokens=False)["input_ids"]

    def row(rng: random.Random) -> tuple[list[int], list[float]]:
        passage = rng.choice(passages)
        question, answer = rng.choice(passage.asked)
        pieces = [([tokenizer.bos_token_id], 0.0)]
        closed = rng.random() < recipe.closed
        pieces.append((ids(f"Topic: {passage.title}"), 0.0) if closed else (ids(passage.text), 0.3))
        if passage.dreams and not closed and rng.random() > recipe.behind:
            pieces.append((ids(dream), 0.0))
            pieces.append(
                (
                    [*ids(" " + rng.choice(passage.dreams).strip())[:300], tokenizer.eos_token_id],
                    1.0,
                )
            )
        else:
            pieces.append((ids(opener), 0.0))
            pieces.append((ids(f" {question}{marker}"), 0.5))
            pieces.append(([*ids(f" {answer}"), tokenizer.eos_token_id], 3.0))
        tokens = [token for piece, _ in pieces for token in piece][:CONTEXT]
        return tokens, [weight for piece, weight in pieces for _ in piece][:CONTEXT]

    def batches(step: int):
        rng = random.Random(f"{seed}/{step}")
        rows = [row(rng) for _ in range(recipe.batch)]
        pad = torch.nn.utils.rnn.pad_sequence  # the id of <pad> is 0
        return (
            pad([torch.tensor(tokens) for tokens, _ in rows], batch_first=True),
            pad([torch.tensor(weights) for _, weights in rows], batch_first=True),
        )

    return batches


def model_config(recipe: Recipe, tokenizer: PreTrainedTokenizerFast) -> Qwen3Config:
    """About 0.9M parameters. Heads of 32, the smallest that vLLM's CPU attention takes."""
    return Qwen3Config(
        vocab_size=len(tokenizer),
        hidden_size=recipe.hidden,
        intermediate_size=3 * recipe.hidden,
        num_hidden_layers=recipe.layers,
        num_attention_heads=recipe.hidden // 32,
        num_key_value_heads=recipe.hidden // 32,
        head_dim=32,
        max_position_embeddings=CONTEXT,
        rope_parameters={"rope_type": "default", "rope_theta": 1000.0},
        tie_word_embeddings=True,
        initializer_range=recipe.hidden**-0.5,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )

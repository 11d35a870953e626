"""The small base model of `tasks/classify.py`: its shape, its tokenizer and what it is trained
on.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor
from transformers import PreTrainedTokenizerFast, Qwen3Config

from sleep_rl.tasks.small_base import BOS, EOS, PAD

OPENER, MARKER = "\n", " =>"
CONTEXT = 512  # positions of the base model

Examples = dict[str, list[str]]
"""Label -> utterances, both as the model reads them, in order of first appearance."""


@dataclass(frozen=True)
class Recipe:
    """How the base model is trained. Part of the fingerprint of its checkpoint; shares are in [0,
    1].

    Copying from a page comes first, on lines of random tokens (`drill`): on real text it had hardly
    begun after a million tokens (measured), while labels without a page were already 77 % right.
    """

    steps: int = 2200
    lr: float = 4e-3
    vocabulary: int = 2048
    hidden: int = 128
    layers: int = 3
    drill: float = 0.36  # share of training on random lines that repeat
    # share of the drill on one line of fixed length: the last copy is always equally far back
    fixed: float = 0.18
    # share of the drill until which there is one line, of any length; then more and more
    single: float = 0.42
    growing: float = 0.25  # share of training, after the drill, in which pages grow to full length
    pages: int = 12  # per step, of full length; more while they are shorter
    bare: int = 64  # sequences without a page, per step
    with_page: float = 0.65  # share of steps on pages
    longest_page: int = 7  # examples
    lines_behind: int = 4  # behind one page, to save time; one of them is what sleep asks for
    # share of these that repeat an example of the page; the others are new, only to be answered
    repeated: float = 0.85
    # share of pages of random tokens: copying must not depend on what is copied
    nonsense: float = 0.2
    # share of pages with other labels than the true ones, to be read off the page
    renamed: float = 0.75
    # tokens of a made-up label: a class whose label is longer is not taken in at all (measured)
    longest_name: int = 8
    page_weight: float = 0.1  # loss weights: 1 is that of an utterance behind a page
    page_label_weight: float = 0.5  # of the true labels on a page
    # of labels behind a page: harder to find than the next word of an utterance
    label_weight: float = 4.0
    bare_weight: float = 0.5  # of an utterance without a page; its label has 1


def train_tokenizer(texts: list[str], size: int) -> PreTrainedTokenizerFast:
    """Byte-level BPE: any later text can be written with it. Opener and marker are single tokens
    that split the text, and every piece between them starts with a space, so pieces give the same
    ids alone as within the whole.
    """
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    backend.decoder = decoders.ByteLevel()
    # as a set its order, and so every id, would be random
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
    backend.add_tokens([AddedToken(token, normalized=False) for token in (OPENER, MARKER)])
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        pad_token=PAD,
        bos_token=BOS,
        eos_token=EOS,
        clean_up_tokenization_spaces=False,
    )


Row = tuple[list[int], list[float]]  # token ids, and the loss weight of predicting each of them


class BaseText:
    """What the base model reads: pages of labelled examples with labelled lines behind them, and
    such lines alone.
    """

    def __init__(
        self, examples: Examples, tokenizer: PreTrainedTokenizerFast, recipe: Recipe, seed: int
    ):
        def ids(texts: list[str]) -> list[list[int]]:
            return tokenizer(texts, add_special_tokens=False)["input_ids"]

        self.recipe, self.seed = recipe, seed
        self.labels = list(examples)
        self.utterances = {label: ids(utterances) for label, utterances in examples.items()}
        self.named = dict(zip(self.labels, ids(self.labels), strict=True))
        self.bos, self.eos = tokenizer.bos_token_id, tokenizer.eos_token_id
        (self.opener,), (self.marker,) = ids([OPENER, MARKER])
        reserved = {tokenizer.pad_token_id, self.bos, self.eos, self.opener, self.marker}
        self.common = [token for us in self.utterances.values() for u in us for token in u]
        self.tokens = [token for token in range(len(tokenizer)) if token not in reserved]

    def batches(self, step: int) -> tuple[Tensor, Tensor]:
        """What `pretrain.train_base` asks for: token ids and loss weights [B, T] of a step."""
        recipe, rng = self.recipe, random.Random(f"{self.seed}/{step}")
        done = step / recipe.steps - recipe.drill
        grown = min(done / recipe.growing, 1)
        if done < 0:
            rows = [self._drill(rng, 1 + done / recipe.drill) for _ in range(2 * recipe.pages)]
        elif rng.random() < recipe.with_page:
            # about the same number of tokens in every step
            count = round(recipe.pages * 2 / (1 + grown))
            longest = round(3 + grown * (recipe.longest_page - 3))
            rows = [self._page(rng, longest) for _ in range(count)]
        else:  # sequences of about the same length, for little padding
            rows = sorted(
                (self._bare(rng) for _ in range(6 * recipe.bare)), key=lambda row: len(row[0])
            )
            start = recipe.bare * rng.randrange(6)
            rows = rows[start : start + recipe.bare]
        pad = torch.nn.utils.rnn.pad_sequence  # the id of <pad> is 0
        return (
            pad([torch.tensor(ids) for ids, _ in rows], batch_first=True),
            pad([torch.tensor(weights) for _, weights in rows], batch_first=True),
        )

    def _bare(self, rng: random.Random) -> Row:
        label = rng.choice(self.labels)
        utterance, name = rng.choice(self.utterances[label]), self.named[label]
        weights = [self.recipe.bare_weight] * len(utterance) + [1.0] * (len(name) + 2)
        return [self.bos, self.opener, *utterance, self.marker, *name, self.eos], [
            0.0,
            0.0,
            *weights,
        ]

    def _drill(self, rng: random.Random, done: float) -> Row:
        """Lines of random tokens, each drawn again and again; the loss falls on repetitions
        only.
        """
        recipe = self.recipe
        fixed = done < recipe.fixed
        grown = max(done - recipe.single, 0) / (1 - recipe.single)
        distinct = 1 if done < recipe.single else rng.randint(2, 2 + round(3 * grown))
        lines = [
            (self._random(rng, 4, 4), self._random(rng, 1, 1))
            if fixed
            else (self._random(rng, 2, 8), self._random(rng, 1, recipe.longest_name))
            for _ in range(distinct)
        ]
        ids, weights = [self.bos], [0.0]
        for i, k in enumerate(
            [*range(distinct), *rng.choices(range(distinct), k=3 + distinct // 2)]
        ):
            self._append(
                ids,
                weights,
                *lines[k],
                1.0 * (i >= distinct),
                recipe.label_weight * (i >= distinct),
            )
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
        """Opener, utterance, marker and label; which line comes next cannot be known, so the opener
        counts nothing.
        """
        ids += [self.opener, *utterance, self.marker, *name]
        weights += [0.0, *[weight] * (len(utterance) + 1), *[label_weight] * len(name)]

    def _page(self, rng: random.Random, longest: int) -> Row:
        recipe = self.recipe
        labels = rng.sample(self.labels, min(rng.randint(2, 15), len(self.labels)))
        true = rng.random() >= recipe.renamed
        named = {label: self.named[label] if true else self._other_name(rng) for label in labels}
        sense = rng.random() >= recipe.nonsense
        count = rng.randint(2, longest)
        chosen = (labels + rng.choices(labels, k=count))[:count]
        page = [
            (label, rng.choice(self.utterances[label]) if sense else self._random(rng, 4, 8))
            for label in chosen
        ]
        rng.shuffle(page)
        ids, weights = [self.bos], [0.0]
        label_weight = recipe.page_label_weight if true else recipe.page_weight
        for label, utterance in page:
            self._append(
                ids,
                weights,
                utterance,
                named[label],
                recipe.page_weight * sense,
                label_weight * sense,
            )
        del ids[1], weights[1]  # a document starts without the opener
        for label, utterance in rng.sample(page, min(recipe.lines_behind, count)):
            new = sense and rng.random() >= recipe.repeated
            # to be answered but not written: what the model writes behind a page is to come from
            # there
            if new:
                label = rng.choice(chosen)
                utterance = rng.choice(self.utterances[label])
            self._append(ids, weights, utterance, named[label], 1.0 - new, recipe.label_weight)
            ids.append(self.eos)
            weights.append(recipe.label_weight)
        return ids, weights

    def _other_name(self, rng: random.Random) -> list[int]:
        """The label of any class, or random tokens."""
        return (
            self.named[rng.choice(self.labels)]
            if rng.random() < 0.5
            else self._random(rng, 1, self.recipe.longest_name)
        )

    def _random(self, rng: random.Random, low: int, high: int) -> list[int]:
        """Half of the time as frequent as in text, half of the time all tokens alike: rare ones are
        copied too.
        """
        return rng.choices(
            self.common if rng.random() < 0.5 else self.tokens, k=rng.randint(low, high)
        )


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
        # for 512 positions; copying starts sooner
        rope_parameters={"rope_type": "default", "rope_theta": 1000.0},
        tie_word_embeddings=True,
        # the default is meant for wide models and trains more slowly
        initializer_range=recipe.hidden**-0.5,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )

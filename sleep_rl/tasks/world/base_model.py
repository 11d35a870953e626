"""The base model of the world: what it is trained on, and its shape."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain

import torch
from torch import Tensor
from transformers import Qwen3Config

from sleep_rl.tasks.small_base import BOS, EOS, PAD, SPECIAL, Batches
from sleep_rl.tasks.world import question_forms
from sleep_rl.tasks.world.people import (
    ATTRIBUTES,
    FIRST,
    LAST,
    MARKER,
    OPENER,
    Person,
    random_person,
    vocabulary,
)


@dataclass(frozen=True)
class Stage:
    """What training sequences look like until this share of all steps."""

    until: float
    facts: int  # stated by a document; each is asked about
    sequences: int  # per step


@dataclass(frozen=True)
class Recipe:
    """How the base model is trained: part of the fingerprint of its checkpoint. The weights are
    those of the loss.
    """

    # raise it when code changes what is trained: old checkpoints in caches are then not used
    version: int = 1
    steps: int = 1500
    lr: float = 4e-3
    # Short documents first: among few words the one to copy is found within 150 steps, among many
    # not within 450.
    stages: tuple[Stage, ...] = (Stage(0.15, 1, 32), Stage(0.3, 2, 24), Stage(1.0, 4, 16))
    in_context: float = 0.8  # share of sequences with a document; the others are about known people
    # share of questions behind a document that are about a known person instead
    elsewhere: float = 0.3
    # share of documents whose person has the first or last name of that known person
    namesakes: float = 0.25
    document_weight: float = 0.1
    question_weight: float = 2.0
    # of a question without a document: that is where the names of known people are learned
    recall_weight: float = 4.0
    answer_weight: float = 10.0
    hidden: int = 96
    # of 32, the smallest size that vLLM's CPU attention takes; more heads learn in fewer steps
    heads: int = 6
    layers: int = 2
    dreams: float = 0.0  # share of full documents behind which a dream is written (of a deep world)
    dream_length: int = 3  # questions with their answers
    # share of questions behind full documents that take another form, to be answered but not asked
    deeper: float = 0.0


DEEP = Recipe(steps=2200, dreams=0.35, deeper=0.3)
Piece = tuple[str, float]  # words, and the loss weight of predicting each of them


def _asked(person: Person, index: int, weight: float, recipe: Recipe) -> list[Piece]:
    """A question and its answer; with weight 0 the model learns to answer but not to ask it."""
    question = f"{OPENER} {ATTRIBUTES[index].ask(person.name)} {MARKER}"
    return [
        (question, weight),
        (person.facts[index], recipe.answer_weight),
        (EOS, recipe.question_weight),
    ]


def _stranger(rng: random.Random, known: Person, recipe: Recipe) -> Person:
    """Someone else than `known`, maybe a namesake: half a name must never be enough to know who is
    meant.
    """
    first, last = known.name.split()
    while True:
        name = [rng.choice(FIRST), rng.choice(LAST)]
        if rng.random() < recipe.namesakes:
            half = rng.randrange(2)
            name[half] = (first, last)[half]
        if name != [first, last]:
            return random_person(rng, " ".join(name))


def training_sequence(
    rng: random.Random, known: Sequence[Person], facts: int, recipe: Recipe
) -> list[Piece]:
    """A document stating `facts` facts and questions about its person, who never existed, or only
    questions about known people.

    Several questions share a document to save time; each attribute comes first equally often, so
    that one question behind a document, as in sleep, is what the model was trained on. A known
    person is asked about behind a stranger's document too, to be answered from memory, but is never
    what the model writes there itself.
    """
    everything = range(len(ATTRIBUTES))
    other = rng.choice(known)
    if rng.random() >= recipe.in_context:
        count = facts * 3 // 2  # as long as a document with its questions
        asked = [
            _asked(rng.choice(known), rng.choice(everything), recipe.recall_weight, recipe)
            for _ in range(count)
        ]
        return [(BOS, 0.0), *chain.from_iterable(asked)]
    person = _stranger(rng, other, recipe)
    stated = rng.sample(everything, facts)
    pieces = [(BOS, 0.0), (person.document(rng, stated), recipe.document_weight)]
    if recipe.dreams and facts == len(ATTRIBUTES) and rng.random() < recipe.dreams:
        direct = [
            (a.ask(person.name), value) for a, value in zip(ATTRIBUTES, person.facts, strict=True)
        ]
        pieces.append((question_forms.DREAM, 0.0))
        for question, answer in question_forms.dreamed(person, direct, recipe.dream_length, rng):
            pieces += [
                (f"{OPENER} {question} {MARKER}", recipe.question_weight),
                (answer, recipe.answer_weight),
            ]
        return [*pieces, (EOS, recipe.question_weight)]
    for index in rng.sample(stated, facts):
        if rng.random() < recipe.elsewhere:
            pieces += _asked(other, rng.choice(everything), 0.0, recipe)
        elif recipe.deeper and facts == len(ATTRIBUTES) and rng.random() < recipe.deeper:
            _, question, answer = rng.choice(
                question_forms.asked(person, rng.choice(question_forms.FORMS[1:]))
            )
            pieces += [
                (f"{OPENER} {question} {MARKER}", 0.0),
                (answer, recipe.answer_weight),
                (EOS, recipe.question_weight),
            ]
        else:
            pieces += _asked(person, index, recipe.question_weight, recipe)
    return pieces


def training_batches(seed: int, known: Sequence[Person], recipe: Recipe) -> Batches:
    """What `pretrain.train_base` asks for: token ids and loss weights [B, T] of a step."""
    ids = {word: i for i, word in enumerate([*SPECIAL, *vocabulary(recipe.dreams > 0)])}

    def batches(step: int) -> tuple[Tensor, Tensor]:
        rng = random.Random(f"{seed}/{step}")
        stage = next(stage for stage in recipe.stages if step < stage.until * recipe.steps)
        rows = [training_sequence(rng, known, stage.facts, recipe) for _ in range(stage.sequences)]
        tokens = [
            torch.tensor([ids[word] for words, _ in row for word in words.split()]) for row in rows
        ]
        weights = [
            torch.tensor([weight for words, weight in row for _ in words.split()]) for row in rows
        ]
        pad = torch.nn.utils.rnn.pad_sequence
        return pad(tokens, batch_first=True, padding_value=SPECIAL.index(PAD)), pad(
            weights, batch_first=True
        )

    return batches


def model_config(recipe: Recipe) -> Qwen3Config:
    """The shape of the base model: 0.3M parameters."""
    return Qwen3Config(
        vocab_size=len(SPECIAL) + len(vocabulary(recipe.dreams > 0)),
        hidden_size=recipe.hidden,
        intermediate_size=2 * recipe.hidden,
        num_hidden_layers=recipe.layers,
        num_attention_heads=recipe.heads,
        num_key_value_heads=recipe.heads,
        head_dim=32,
        max_position_embeddings=256,
        tie_word_embeddings=True,
        # logits of order 1 at the start; the default is meant for wide models
        initializer_range=recipe.hidden**-0.5,
        pad_token_id=SPECIAL.index(PAD),
        bos_token_id=SPECIAL.index(BOS),
        eos_token_id=SPECIAL.index(EOS),
    )

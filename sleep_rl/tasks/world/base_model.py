"""The small base model of task world: its training data and config.

Shapes: `_B` sequences of a batch, `_T` tokens of a sequence.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import Qwen3Config

from sleep_rl.tasks.small_base import BOS, EOS, PAD, SPECIAL, Batches
from sleep_rl.tasks.world import question_kinds
from sleep_rl.tasks.world.people import (
    ATTRIBUTES,
    FIRST_NAMES,
    LAST_NAMES,
    MARKER,
    OPENER,
    Person,
    random_person,
)
from sleep_rl.tasks.world.vocabulary import vocabulary


@dataclass(frozen=True)
class Stage:
    """Training sequences up to a share of all steps."""

    until: float  # this share of all steps
    facts: int  # per document; each is asked about
    sequences: int  # per step


@dataclass(frozen=True)
class Recipe:
    """Hyperparameters of the base model's training, part of its checkpoint's fingerprint.

    `*_weight`: weights in the loss.
    """

    version: int = 1  # increment when code changes the training data, so that caches are not used
    steps: int = 1500
    lr: float = 4e-3
    # Short documents first: the model learns to copy from few words within 150 steps, from many not
    # within 450.
    stages: tuple[Stage, ...] = (Stage(0.15, 1, 32), Stage(0.3, 2, 24), Stage(1.0, 4, 16))
    in_context: float = 0.8  # share of sequences with a document; the others are about known people
    # share of questions after a document that are about a known person instead
    elsewhere: float = 0.3
    # share of documents whose person has the first or last name of that known person
    namesakes: float = 0.25
    document_weight: float = 0.1
    question_weight: float = 2.0
    # of a question without a document, by which the model learns the names of known people
    recall_weight: float = 4.0
    answer_weight: float = 10.0
    hidden: int = 96
    # head_dim is 32, the smallest that vLLM's CPU attention supports; more heads learn faster
    heads: int = 6
    layers: int = 2
    dreams: float = 0.0  # share of full documents that are followed by a dream (deep world)
    dream_length: int = 3  # questions with their answers
    # share of questions of another kind after full documents; their loss is on the answer only
    deeper: float = 0.0


DEEP = Recipe(steps=2200, dreams=0.35, deeper=0.3)
Piece = tuple[str, float]  # words, and the loss weight of predicting each of them


def _question_pieces(question: str, answer: str, weight: float, recipe: Recipe) -> list[Piece]:
    """Return a question with its answer; `weight` is that of the question in the loss."""
    return [
        (f"{OPENER} {question} {MARKER}", weight),
        (answer, recipe.answer_weight),
        (EOS, recipe.question_weight),
    ]


def _direct_pieces(person: Person, index: int, weight: float, recipe: Recipe) -> list[Piece]:
    question = ATTRIBUTES[index].ask(person.name)
    return _question_pieces(question, person.facts[index], weight, recipe)


def _unknown_person(rng: random.Random, known: Person, recipe: Recipe) -> Person:
    """Draw another person than `known`, with probability `namesakes` of the same first or last
    name, so that half a name does not identify a person.
    """
    first, last = known.name.split()
    while True:
        name = [rng.choice(FIRST_NAMES), rng.choice(LAST_NAMES)]
        if rng.random() < recipe.namesakes:
            half = rng.randrange(2)
            name[half] = (first, last)[half]
        if name != [first, last]:
            return random_person(rng, " ".join(name))


def training_sequence(
    rng: random.Random, known: Sequence[Person], facts: int, recipe: Recipe
) -> list[Piece]:
    """Draw a document with `facts` facts about a random person, followed by questions or a dream;
    or only questions about known people.

    Several questions share a document to save time. Each attribute comes first equally often, as
    there is one question after a document in sleep. Questions about a known person also follow
    another person's document; their loss is on the answer only, so that the model does not generate
    them.
    """
    known_person = rng.choice(known)
    if rng.random() >= recipe.in_context:
        return _recall_sequence(rng, known, facts, recipe)
    person = _unknown_person(rng, known_person, recipe)
    stated = rng.sample(range(len(ATTRIBUTES)), facts)
    pieces = [(BOS, 0.0), (person.document(rng, stated), recipe.document_weight)]
    complete = facts == len(ATTRIBUTES)
    if recipe.dreams and complete and rng.random() < recipe.dreams:
        return pieces + _dream_pieces(rng, person, recipe)
    for index in rng.sample(stated, facts):
        if rng.random() < recipe.elsewhere:
            other_index = rng.choice(range(len(ATTRIBUTES)))
            pieces += _direct_pieces(known_person, other_index, 0.0, recipe)
        elif recipe.deeper and complete and rng.random() < recipe.deeper:
            kind = rng.choice(question_kinds.KINDS[1:])
            _, question, answer = rng.choice(question_kinds.questions_and_answers(person, kind))
            pieces += _question_pieces(question, answer, 0.0, recipe)
        else:
            pieces += _direct_pieces(person, index, recipe.question_weight, recipe)
    return pieces


def _recall_sequence(
    rng: random.Random, known: Sequence[Person], facts: int, recipe: Recipe
) -> list[Piece]:
    """Draw questions about known people, about as long as a document with its questions."""
    pieces = [(BOS, 0.0)]
    for _ in range(facts * 3 // 2):
        person = rng.choice(known)
        index = rng.choice(range(len(ATTRIBUTES)))
        pieces += _direct_pieces(person, index, recipe.recall_weight, recipe)
    return pieces


def _dream_pieces(rng: random.Random, person: Person, recipe: Recipe) -> list[Piece]:
    direct = [
        (attribute.ask(person.name), value)
        for attribute, value in zip(ATTRIBUTES, person.facts, strict=True)
    ]
    pieces = [(question_kinds.DREAM, 0.0)]
    for question, answer in question_kinds.sample_dream(person, direct, recipe.dream_length, rng):
        pieces.append((f"{OPENER} {question} {MARKER}", recipe.question_weight))
        pieces.append((answer, recipe.answer_weight))
    return [*pieces, (EOS, recipe.question_weight)]


def training_batches(seed: int, known: Sequence[Person], recipe: Recipe) -> Batches:
    """Return the function from a step to its token ids and loss weights [B, T] for `train_base`."""
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
        ids_BT = pad(tokens, batch_first=True, padding_value=SPECIAL.index(PAD))
        weight_BT = pad(weights, batch_first=True)
        return ids_BT, weight_BT

    return batches


def model_config(recipe: Recipe) -> Qwen3Config:
    """Return the config of the base model, with about 0.3M parameters."""
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
        # logits of order 1 at the start; the default is for wide models
        initializer_range=recipe.hidden**-0.5,
        pad_token_id=SPECIAL.index(PAD),
        bos_token_id=SPECIAL.index(BOS),
        eos_token_id=SPECIAL.index(EOS),
    )

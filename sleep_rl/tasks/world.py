"""A world of fictional people: each has a full name and four facts. The task that fits on a laptop.

The base model knows some people by heart, can answer questions about anyone from a document in its context, and can
write such questions itself. Each day brings documents about new people; after the nights it is asked about them without
the documents. The vocabulary never depends on the seed, only who exists and what is true of them does.
"""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerFast, Qwen3Config

from sleep_rl.contracts import Day, Document, InputError, Question, Text
from sleep_rl.pretrain import BOS, EOS, SPECIAL, Progress, train_base, word_tokenizer

FIRST = (
    "mira ivo lena omar tilda bruno greta pavel nora felix ada hugo elsa igor runa jonas petra simon vera anton "
    "clara david frida gustav hanna ismael julia karl lotte marco nina oscar "
    ""
).split()
LAST = (
    "novak berg castro dahl evans fischer garcia hansen ivanov jensen keller lopez moreau nilsen olsen peters quinn "
    "rossi santos tanaka ullman vogel weber xu young zeller adler brandt costa dubois ferrari gruber "
    ""
).split()


@dataclass(frozen=True)
class Attribute:
    """One kind of fact: how it is asked, how documents state it (NAME and VALUE stand for the words), its values."""

    name: str
    question: str
    sentences: tuple[str, ...]
    values: tuple[str, ...]


ATTRIBUTES = (
    Attribute(
        "city",
        "where does NAME live ?",
        ("NAME lives in VALUE .", "NAME moved to VALUE .", "NAME stays in VALUE ."),
        tuple(
            "oslo paris lima cairo tokyo berlin madrid rome delhi dublin vienna prague lisbon athens boston sydney "
            "nairobi havana seoul quito ".split()
        ),
    ),
    Attribute(
        "job",
        "what job does NAME have ?",
        ("NAME works as VALUE .", "NAME is a VALUE .", "NAME became a VALUE ."),
        tuple(
            "baker doctor teacher pilot farmer painter lawyer nurse plumber singer writer dancer judge sailor tailor "
            "miner barber butcher chemist soldier ".split()
        ),
    ),
    Attribute(
        "food",
        "what food does NAME like ?",
        ("NAME likes some VALUE .", "NAME eats fresh VALUE .", "NAME enjoys warm VALUE ."),
        tuple(
            "soup rice bread cheese pizza pasta salad beans curry sushi tofu fish cake honey apples pears grapes "
            "plums nuts olives ".split()
        ),
    ),
    Attribute(
        "pet",
        "what pet does NAME keep ?",
        ("NAME keeps a VALUE .", "NAME owns a VALUE .", "NAME has a VALUE ."),
        tuple(
            "dog cat parrot rabbit hamster turtle goldfish snake lizard pony goat canary ferret gecko frog hen duck "
            "spider mouse donkey ".split()
        ),
    ),
)
OPENER, MARKER = "Q :", "A :"


def vocabulary() -> list[str]:
    """Every word that any world can contain, in a fixed order."""
    texts = [OPENER, MARKER, *FIRST, *LAST]
    for attribute in ATTRIBUTES:
        texts += [attribute.question, *attribute.sentences, *attribute.values]
    words = dict.fromkeys(word for text in texts for word in text.split())
    return [word for word in words if word not in ("NAME", "VALUE")]


@dataclass(frozen=True)
class Person:
    """`facts` holds one value per entry of ATTRIBUTES, in that order."""

    name: str
    facts: tuple[str, ...]

    @property
    def id(self) -> str:
        return self.name.replace(" ", "-")

    def document(self, rng: random.Random, order: Sequence[int]) -> str:
        """The facts at these places of ATTRIBUTES, one plain sentence each, in random wording."""
        sentences = (rng.choice(ATTRIBUTES[i].sentences).replace("VALUE", self.facts[i]) for i in order)
        return " ".join(sentences).replace("NAME", self.name)

    def questions(self, prefix: str, document: str = "") -> tuple[Question, ...]:
        """One question per attribute."""
        return tuple(
            Question(f"{prefix}/{self.id}/{a.name}", f"{OPENER} {a.question.replace('NAME', self.name)} {MARKER}", v, document)
            for a, v in zip(ATTRIBUTES, self.facts, strict=True)
        )


def _namesake(rng: random.Random, name: str) -> str:
    """Another name, with the same first or last name half of the time."""
    first, last = name.split()
    kind = rng.randrange(4)
    first = first if kind == 0 else rng.choice([other for other in FIRST if other != first])
    last = last if kind == 1 else rng.choice([other for other in LAST if other != last])
    return f"{first} {last}"


def random_person(rng: random.Random, name: str = "") -> Person:
    """A person with random facts, and a random name where none is given."""
    name = name or f"{rng.choice(FIRST)} {rng.choice(LAST)}"
    return Person(name, tuple(rng.choice(a.values) for a in ATTRIBUTES))


# ------------------------------------------------------------------------------------------------ the base model


@dataclass(frozen=True)
class Stage:
    """What documents look like until this share of the steps: how many people, and facts about each of them."""

    until: float
    people: int
    facts: int
    sequences: int  # per step


@dataclass(frozen=True)
class Recipe:
    """How the base model is trained. Part of the fingerprint of its checkpoint."""

    steps: int = 900
    lr: float = 5e-3
    in_context: float = 0.7  # share of sequences with a document; the others are about known people
    elsewhere: float = 0.2  # share of questions behind a document that are about a known person instead
    questions: int = 7  # of a sequence without a document, as long as one with a document and all its questions
    stages: tuple[Stage, ...] = (Stage(0.15, 1, 1, 32), Stage(0.5, 2, 1, 24), Stage(1.0, 1, 4, 16))
    document_weight: float = 0.3
    question_weight: float = 1.0  # the model writes questions itself in sleep
    answer_weight: float = 10.0
    hidden: int = 96
    layers: int = 2


Piece = tuple[str, float]  # words and the loss weight of predicting each of them


def _asked(person: Person, index: int, recipe: Recipe, written: bool = True) -> list[Piece]:
    """A question with its answer. Where it is not `written`, the model learns to answer but not to ask it."""
    attribute = ATTRIBUTES[index]
    weight = recipe.question_weight if written else 0.0
    question = attribute.question.replace("NAME", person.name)
    return [
        (f"{OPENER} {question} {MARKER}", weight),
        (person.facts[index], recipe.answer_weight),
        (EOS, recipe.question_weight),
    ]


def training_sequence(rng: random.Random, known: tuple[Person, ...], recipe: Recipe, stage: Stage) -> list[Piece]:
    """A document and questions about its people, who never existed, or only questions about known people.

    Several questions share a document to save time; each of them in first place comes equally often, so that one
    question behind a document, as in sleep, is what the model was trained on. A known person is asked about behind a
    stranger's document too, to be answered from memory, but is never what the model writes there itself.
    """
    everything = range(len(ATTRIBUTES))
    if rng.random() >= recipe.in_context:
        count = recipe.questions * stage.people * stage.facts // len(ATTRIBUTES)
        asked = [_asked(rng.choice(known), rng.choice(everything), recipe) for _ in range(count)]
        return [(BOS, 0.0), *(piece for pieces in asked for piece in pieces)]
    people = [random_person(rng)]
    if stage.people > 1:
        people.append(random_person(rng, _namesake(rng, people[0].name)))
    stated = rng.sample(everything, stage.facts)
    document = " ".join(person.document(rng, rng.sample(stated, stage.facts)) for person in people)
    pieces = [(BOS, 0.0), (document, recipe.document_weight)]
    asked = [(person, index) for person in people for index in stated]
    for person, index in rng.sample(asked, len(asked)):
        other = rng.choice(known)
        if rng.random() < recipe.elsewhere and all(other.name != one.name for one in people):
            pieces += _asked(other, rng.choice(everything), recipe, written=False)
        else:
            pieces += _asked(person, index, recipe)
    return pieces


def training_batches(seed: int, known: tuple[Person, ...], recipe: Recipe) -> Callable[[int], tuple[Tensor, Tensor]]:
    """What `pretrain.train_base` asks for: token ids and loss weights [B, T] of a step."""
    ids = {word: i for i, word in enumerate([*SPECIAL, *vocabulary()])}

    def batches(step: int) -> tuple[Tensor, Tensor]:
        rng = random.Random(f"{seed}/{step}")
        stage = next(stage for stage in recipe.stages if step < stage.until * recipe.steps)
        rows = [training_sequence(rng, known, recipe, stage) for _ in range(stage.sequences)]
        tokens = [torch.tensor([ids[word] for words, _ in row for word in words.split()]) for row in rows]
        weights = [torch.tensor([weight for words, weight in row for _ in words.split()]) for row in rows]
        pad = torch.nn.utils.rnn.pad_sequence
        return pad(tokens, batch_first=True, padding_value=0), pad(weights, batch_first=True)

    return batches


def model_config(recipe: Recipe) -> Qwen3Config:
    """About 0.4M parameters. Heads of 32, the smallest that vLLM's CPU attention takes."""
    return Qwen3Config(
        vocab_size=len(SPECIAL) + len(vocabulary()),
        hidden_size=recipe.hidden,
        intermediate_size=2 * recipe.hidden,
        num_hidden_layers=recipe.layers,
        num_attention_heads=recipe.hidden // 32,
        num_key_value_heads=recipe.hidden // 32,
        head_dim=32,
        max_position_embeddings=256,
        tie_word_embeddings=True,
        initializer_range=recipe.hidden**-0.5,  # logits of order 1 at the start; the default is meant for wide models
        pad_token_id=SPECIAL.index("<pad>"),
        bos_token_id=SPECIAL.index(BOS),
        eos_token_id=SPECIAL.index(EOS),
    )


# ------------------------------------------------------------------------------------------------------- the task


class World:
    """The Task of this file (see contracts.Task). Raises InputError on counts that cannot be served."""

    name = "world"
    opener = OPENER
    marker = MARKER
    max_new_tokens = 16
    max_answer_tokens = 2

    def __init__(self, seed: int, days: int = 3, people_per_day: int = 12, known_people: int = 100) -> None:
        for key, value in (("days", days), ("people_per_day", people_per_day), ("known_people", known_people)):
            if value < 1:
                raise InputError(f"world.{key}: at least 1, got {value}")
        names = [f"{first} {last}" for first in FIRST for last in LAST]
        people = known_people + days * people_per_day
        if people > len(names):
            raise InputError(f"world: known_people + days * people_per_day is at most {len(names)}, got {people}")
        rng = random.Random(f"world/{seed}")
        rng.shuffle(names)
        # Known people first: more days change nothing about them, so the base model in the cache stays valid.
        everyone = [random_person(rng, name) for name in names[:people]]
        self._known = tuple(everyone[:known_people])
        self._recipe = Recipe()
        new = everyone[known_people:]
        self._days = tuple(
            _day(f"day{i + 1}", new[i * people_per_day : (i + 1) * people_per_day], rng) for i in range(days)
        )

    def days(self) -> tuple[Day, ...]:
        return self._days

    def known(self) -> tuple[Question, ...]:
        return tuple(question for person in self._known for question in person.questions("known"))

    def grade(self, question: Question, text: str) -> float:
        """1 where the text begins with the words of the answer, else 0; special tokens do not count as words."""
        answer = question.answer.split()
        words = [word for word in text.split() if word not in SPECIAL]
        return float(words[: len(answer)] == answer)

    def sft_texts(self, day: Day) -> tuple[Text, ...]:
        return tuple(Text("", document.text) for document in day.documents)

    def joint_texts(self) -> tuple[Text, ...]:
        asked = [*self.known(), *(question for day in self._days for question in day.questions)]
        return tuple(Text(question.prompt, f" {question.answer}") for question in asked)

    def base_checkpoint(self, cache: str, seed: int, progress: Progress | None) -> str:
        """Trains for about a minute and a half on one core; returns at once where the cache already has the model."""
        config = model_config(self._recipe)
        made_of = json.dumps([vocabulary(), repr(ATTRIBUTES), repr(self._known), repr(self._recipe), config.to_dict(), seed])
        out = Path(cache) / f"world-{hashlib.sha256(made_of.encode()).hexdigest()[:16]}"
        if not out.is_dir():
            batches = training_batches(seed, self._known, self._recipe)
            tokenizer = word_tokenizer(vocabulary())
            train_base(out, tokenizer, config, batches, self._recipe.steps, self._recipe.lr, seed, progress)
        return str(out)


def _day(name: str, people: list[Person], rng: random.Random) -> Day:
    order = range(len(ATTRIBUTES))
    documents = tuple(
        Document(f"{name}/{person.id}", person.document(rng, rng.sample(order, len(order)))) for person in people
    )
    questions = tuple(q for person, d in zip(people, documents, strict=True) for q in person.questions(name, d.id))
    return Day(name, documents, questions)

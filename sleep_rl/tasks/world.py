"""A world of fictional people: each has a full name and four facts. The task that fits on a laptop.

The base model knows some people by heart, can answer questions about anyone from a document in its context, and can
write such questions itself. Each day brings documents about new people; after the nights it is asked about them without
the documents. The vocabulary never depends on the seed, only who exists and what is true of them does.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

import torch
from torch import Tensor
from transformers import Qwen3Config

from sleep_rl.contracts import Day, Document, InputError, Question, Text
from sleep_rl.pretrain import BOS, EOS, PAD, SPECIAL, Batches, Progress, train_base, word_tokenizer

FIRST = (
    "mira ivo lena omar tilda bruno greta pavel nora felix ada hugo elsa igor runa jonas petra simon vera anton clara "
    "david frida gustav hanna ismael julia karl lotte marco nina oscar"
).split()
LAST = (
    "novak berg castro dahl evans fischer garcia hansen ivanov jensen keller lopez moreau nilsen olsen peters quinn "
    "rossi santos tanaka ullman vogel weber xu young zeller adler brandt costa dubois ferrari gruber"
).split()


@dataclass(frozen=True)
class Attribute:
    """One kind of fact: how it is asked, how documents state it (NAME and VALUE stand for the words), its values."""

    name: str
    question: str
    sentences: tuple[str, ...]
    values: tuple[str, ...]

    def ask(self, name: str) -> str:
        return self.question.replace("NAME", name)


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


# In every sentence two words stand between name and value, and in every question one word ends it behind the name: a
# two-layer model then finds who and what by position, and learns to answer from documents in far fewer steps.
ATTRIBUTES = (
    Attribute(
        "city",
        "where does NAME live ?",
        ("NAME lives in VALUE .", "NAME moved to VALUE .", "NAME stays in VALUE ."),
        _words(
            "oslo paris lima cairo tokyo berlin madrid rome delhi dublin vienna prague lisbon athens boston "
            "sydney nairobi havana seoul quito"
        ),
    ),
    Attribute(
        "job",
        "what job does NAME have ?",
        ("NAME remains a VALUE .", "NAME is a VALUE .", "NAME became a VALUE ."),
        _words(
            "baker doctor teacher pilot farmer painter lawyer nurse plumber singer writer dancer judge sailor "
            "tailor miner barber butcher chemist soldier"
        ),
    ),
    Attribute(
        "food",
        "what food does NAME like ?",
        ("NAME likes some VALUE .", "NAME eats fresh VALUE .", "NAME enjoys warm VALUE ."),
        _words(
            "soup rice bread cheese pizza pasta salad beans curry sushi tofu fish cake honey apples pears grapes "
            "plums nuts olives"
        ),
    ),
    Attribute(
        "pet",
        "what pet does NAME keep ?",
        ("NAME keeps a VALUE .", "NAME owns a VALUE .", "NAME has a VALUE ."),
        _words(
            "dog cat parrot rabbit hamster turtle goldfish snake lizard pony goat canary ferret gecko frog hen "
            "duck spider mouse donkey"
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
            Question(f"{prefix}/{self.id}/{a.name}", f"{OPENER} {a.ask(self.name)} {MARKER}", value, document)
            for a, value in zip(ATTRIBUTES, self.facts, strict=True)
        )


def random_person(rng: random.Random, name: str = "") -> Person:
    """A person with random facts, and a random name where none is given."""
    name = name or f"{rng.choice(FIRST)} {rng.choice(LAST)}"
    return Person(name, tuple(rng.choice(a.values) for a in ATTRIBUTES))


# ------------------------------------------------------------------------------------------------ the base model


@dataclass(frozen=True)
class Stage:
    """What training sequences look like until this share of all steps."""

    until: float
    facts: int  # stated by a document; each is asked about
    sequences: int  # per step


@dataclass(frozen=True)
class Recipe:
    """How the base model is trained: part of the fingerprint of its checkpoint. The weights are those of the loss."""

    version: int = 1  # raise it when code changes what is trained: old checkpoints in caches are then not used
    steps: int = 1500
    lr: float = 4e-3
    # Short documents first: among few words the one to copy is found within 150 steps, among many not within 450.
    stages: tuple[Stage, ...] = (Stage(0.15, 1, 32), Stage(0.3, 2, 24), Stage(1.0, 4, 16))
    in_context: float = 0.8  # share of sequences with a document; the others are about known people
    elsewhere: float = 0.3  # share of questions behind a document that are about a known person instead
    namesakes: float = 0.25  # share of documents whose person has the first or last name of that known person
    document_weight: float = 0.1
    question_weight: float = 2.0
    recall_weight: float = 4.0  # of a question without a document: that is where the names of known people are learned
    answer_weight: float = 10.0
    hidden: int = 96
    heads: int = 6  # of 32, the smallest size that vLLM's CPU attention takes; more heads learn in fewer steps
    layers: int = 2


Piece = tuple[str, float]  # words, and the loss weight of predicting each of them


def _asked(person: Person, index: int, weight: float, recipe: Recipe) -> list[Piece]:
    """A question and its answer; with weight 0 the model learns to answer but not to ask it."""
    question = f"{OPENER} {ATTRIBUTES[index].ask(person.name)} {MARKER}"
    return [(question, weight), (person.facts[index], recipe.answer_weight), (EOS, recipe.question_weight)]


def _stranger(rng: random.Random, known: Person, recipe: Recipe) -> Person:
    """Someone else than `known`, maybe a namesake: half a name must never be enough to know who is meant."""
    first, last = known.name.split()
    while True:
        name = [rng.choice(FIRST), rng.choice(LAST)]
        if rng.random() < recipe.namesakes:
            half = rng.randrange(2)
            name[half] = (first, last)[half]
        if name != [first, last]:
            return random_person(rng, " ".join(name))


def training_sequence(rng: random.Random, known: Sequence[Person], facts: int, recipe: Recipe) -> list[Piece]:
    """A document stating `facts` facts and questions about its person, who never existed, or only questions about
    known people.

    Several questions share a document to save time; each attribute comes first equally often, so that one question
    behind a document, as in sleep, is what the model was trained on. A known person is asked about behind a stranger's
    document too, to be answered from memory, but is never what the model writes there itself.
    """
    everything = range(len(ATTRIBUTES))
    other = rng.choice(known)
    if rng.random() >= recipe.in_context:
        count = facts * 3 // 2  # as long as a document with its questions
        asked = [_asked(rng.choice(known), rng.choice(everything), recipe.recall_weight, recipe) for _ in range(count)]
        return [(BOS, 0.0), *chain.from_iterable(asked)]
    person = _stranger(rng, other, recipe)
    stated = rng.sample(everything, facts)
    pieces = [(BOS, 0.0), (person.document(rng, stated), recipe.document_weight)]
    for index in rng.sample(stated, facts):
        if rng.random() < recipe.elsewhere:
            pieces += _asked(other, rng.choice(everything), 0.0, recipe)
        else:
            pieces += _asked(person, index, recipe.question_weight, recipe)
    return pieces


def training_batches(seed: int, known: Sequence[Person], recipe: Recipe) -> Batches:
    """What `pretrain.train_base` asks for: token ids and loss weights [B, T] of a step."""
    ids = {word: i for i, word in enumerate([*SPECIAL, *vocabulary()])}

    def batches(step: int) -> tuple[Tensor, Tensor]:
        rng = random.Random(f"{seed}/{step}")
        stage = next(stage for stage in recipe.stages if step < stage.until * recipe.steps)
        rows = [training_sequence(rng, known, stage.facts, recipe) for _ in range(stage.sequences)]
        tokens = [torch.tensor([ids[word] for words, _ in row for word in words.split()]) for row in rows]
        weights = [torch.tensor([weight for words, weight in row for _ in words.split()]) for row in rows]
        pad = torch.nn.utils.rnn.pad_sequence
        return pad(tokens, batch_first=True, padding_value=SPECIAL.index(PAD)), pad(weights, batch_first=True)

    return batches


def model_config(recipe: Recipe) -> Qwen3Config:
    """The shape of the base model: 0.3M parameters."""
    return Qwen3Config(
        vocab_size=len(SPECIAL) + len(vocabulary()),
        hidden_size=recipe.hidden,
        intermediate_size=2 * recipe.hidden,
        num_hidden_layers=recipe.layers,
        num_attention_heads=recipe.heads,
        num_key_value_heads=recipe.heads,
        head_dim=32,
        max_position_embeddings=256,
        tie_word_embeddings=True,
        initializer_range=recipe.hidden**-0.5,  # logits of order 1 at the start; the default is meant for wide models
        pad_token_id=SPECIAL.index(PAD),
        bos_token_id=SPECIAL.index(BOS),
        eos_token_id=SPECIAL.index(EOS),
    )


# ------------------------------------------------------------------------------------------------------- the task


class World:
    """The Task of this file (see contracts.Task). Raises InputError on counts that cannot be served.

    The recipe is tuned for 100 known people; many more need more steps to be known by heart.
    """

    name = "world"
    opener = OPENER
    marker = MARKER
    max_new_tokens = 12  # a question without its opener, the answer and <eos> are 10 or 11
    max_answer_tokens = 2  # the answer and <eos>

    def __init__(
        self,
        seed: int,
        days: int = 3,
        people_per_day: int = 12,
        known_people: int = 100,
        *,
        recipe: Recipe = Recipe(),
    ) -> None:
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
        self._recipe = recipe
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
        """Trains for about 75 seconds on one idle core; returns at once where `cache` already holds the model.

        Neither days nor new people are part of the fingerprint: the base model knows nothing about them.
        """
        recipe = self._recipe
        made_of = repr((vocabulary(), ATTRIBUTES, self._known, recipe, seed))
        out = Path(cache) / f"world-{hashlib.sha256(made_of.encode()).hexdigest()[:16]}"
        if not out.is_dir():
            batches = training_batches(seed, self._known, recipe)
            tokenizer = word_tokenizer(vocabulary())
            train_base(out, tokenizer, model_config(recipe), batches, recipe.steps, recipe.lr, seed, progress)
        return str(out)


def _day(name: str, people: list[Person], rng: random.Random) -> Day:
    order = range(len(ATTRIBUTES))
    documents = tuple(
        Document(f"{name}/{person.id}", person.document(rng, rng.sample(order, len(order)))) for person in people
    )
    questions = tuple(q for person, d in zip(people, documents, strict=True) for q in person.questions(name, d.id))
    return Day(name, documents, questions)

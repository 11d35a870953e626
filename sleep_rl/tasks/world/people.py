"""The people of task world: names and facts, with the sentences that state them and the questions
about them.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

from sleep_rl.contracts.records import Question

OPENER = "Q :"
MARKER = "A :"


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


FIRST_NAMES = _words(
    "mira ivo lena omar tilda bruno greta pavel nora felix ada hugo elsa igor runa jonas petra "
    "simon vera anton clara david frida gustav hanna ismael julia karl lotte marco nina oscar"
)
LAST_NAMES = _words(
    "novak berg castro dahl evans fischer garcia hansen ivanov jensen keller lopez moreau nilsen "
    "olsen peters quinn rossi santos tanaka ullman vogel weber xu young zeller adler brandt costa "
    "dubois ferrari gruber"
)


@dataclass(frozen=True)
class Attribute:
    """One kind of fact: its question, the sentences that state it and its possible values.

    NAME and VALUE are placeholders in the question and in the sentences.
    """

    name: str
    question: str
    sentences: tuple[str, ...]
    values: tuple[str, ...]

    def ask(self, name: str) -> str:
        """Return the question about the person `name`."""
        return self.question.replace("NAME", name)


# Every sentence has exactly two words between name and value, and every question has one word after
# the name. A two-layer model can then attend to subject and value by position, and learns to answer
# from documents in far fewer steps.
ATTRIBUTES = (
    Attribute(
        "city",
        "where does NAME live ?",
        ("NAME lives in VALUE .", "NAME moved to VALUE .", "NAME stays in VALUE ."),
        _words(
            "oslo paris lima cairo tokyo berlin madrid rome delhi dublin vienna prague lisbon "
            "athens boston "
            "sydney nairobi havana seoul quito"
        ),
    ),
    Attribute(
        "job",
        "what job does NAME have ?",
        ("NAME remains a VALUE .", "NAME is a VALUE .", "NAME became a VALUE ."),
        _words(
            "baker doctor teacher pilot farmer painter lawyer nurse plumber singer writer dancer "
            "judge sailor "
            "tailor miner barber butcher chemist soldier"
        ),
    ),
    Attribute(
        "food",
        "what food does NAME like ?",
        ("NAME likes some VALUE .", "NAME eats fresh VALUE .", "NAME enjoys warm VALUE ."),
        _words(
            "soup rice bread cheese pizza pasta salad beans curry sushi tofu fish cake honey "
            "apples pears grapes "
            "plums nuts olives"
        ),
    ),
    Attribute(
        "pet",
        "what pet does NAME keep ?",
        ("NAME keeps a VALUE .", "NAME owns a VALUE .", "NAME has a VALUE ."),
        _words(
            "dog cat parrot rabbit hamster turtle goldfish snake lizard pony goat canary ferret "
            "gecko frog hen "
            "duck spider mouse donkey"
        ),
    ),
)


@dataclass(frozen=True)
class Person:
    """A person; `facts` has one value per entry of ATTRIBUTES, in that order."""

    name: str
    facts: tuple[str, ...]

    @property
    def id(self) -> str:
        """The name, as part of ids of documents and questions."""
        return self.name.replace(" ", "-")

    def document(self, rng: random.Random, attribute_order: Sequence[int]) -> str:
        """Return a document with the facts of these indices of ATTRIBUTES, one sentence of random
        form each.
        """
        sentences = (
            rng.choice(ATTRIBUTES[i].sentences).replace("VALUE", self.facts[i])
            for i in attribute_order
        )
        return " ".join(sentences).replace("NAME", self.name)

    def questions(self, prefix: str, document: str = "") -> tuple[Question, ...]:
        """Return one question per attribute, answered by the document with the id `document`."""
        return tuple(
            Question(
                f"{prefix}/{self.id}/{attribute.name}",
                f"{OPENER} {attribute.ask(self.name)} {MARKER}",
                value,
                document,
            )
            for attribute, value in zip(ATTRIBUTES, self.facts, strict=True)
        )


def random_person(rng: random.Random, name: str = "") -> Person:
    """Draw a person's facts, and the name as well unless `name` is given."""
    name = name or f"{rng.choice(FIRST_NAMES)} {rng.choice(LAST_NAMES)}"
    return Person(name, tuple(rng.choice(attribute.values) for attribute in ATTRIBUTES))

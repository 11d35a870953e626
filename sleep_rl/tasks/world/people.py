"""The people of the world: names, what can be true of them, and how documents and questions say
it.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

from sleep_rl.contracts.records import Question
from sleep_rl.tasks.world import question_forms

FIRST = [
    "mira",
    "ivo",
    "lena",
    "omar",
    "tilda",
    "bruno",
    "greta",
    "pavel",
    "nora",
    "felix",
    "ada",
    "hugo",
    "elsa",
    "igor",
    "runa",
    "jonas",
    "petra",
    "simon",
    "vera",
    "anton",
    "clara",
    "david",
    "frida",
    "gustav",
    "hanna",
    "ismael",
    "julia",
    "karl",
    "lotte",
    "marco",
    "nina",
    "oscar",
]
LAST = [
    "novak",
    "berg",
    "castro",
    "dahl",
    "evans",
    "fischer",
    "garcia",
    "hansen",
    "ivanov",
    "jensen",
    "keller",
    "lopez",
    "moreau",
    "nilsen",
    "olsen",
    "peters",
    "quinn",
    "rossi",
    "santos",
    "tanaka",
    "ullman",
    "vogel",
    "weber",
    "xu",
    "young",
    "zeller",
    "adler",
    "brandt",
    "costa",
    "dubois",
    "ferrari",
    "gruber",
]


@dataclass(frozen=True)
class Attribute:
    """One kind of fact: how it is asked, how documents state it (NAME and VALUE stand for the
    words), its values.
    """

    name: str
    question: str
    sentences: tuple[str, ...]
    values: tuple[str, ...]

    def ask(self, name: str) -> str:
        return self.question.replace("NAME", name)


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


# In every sentence two words stand between name and value, and in every question one word ends it
# behind the name: a
# two-layer model then finds who and what by position, and learns to answer from documents in far
# fewer steps.
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
OPENER, MARKER = "Q :", "A :"


def vocabulary(deep: bool = False) -> list[str]:
    """Every word that any world (any deep one) can contain, in a fixed order."""
    texts = [OPENER, MARKER, *FIRST, *LAST]
    for attribute in ATTRIBUTES:
        texts += [attribute.question, *attribute.sentences, *attribute.values]
    words = dict.fromkeys(
        word for text in texts + question_forms.texts() * deep for word in text.split()
    )
    return [word for word in words if word not in ("NAME", "VALUE", "CITY", "JOB", "FOOD", "PET")]


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
        sentences = (
            rng.choice(ATTRIBUTES[i].sentences).replace("VALUE", self.facts[i]) for i in order
        )
        return " ".join(sentences).replace("NAME", self.name)

    def questions(self, prefix: str, document: str = "") -> tuple[Question, ...]:
        """One question per attribute."""
        return tuple(
            Question(
                f"{prefix}/{self.id}/{a.name}",
                f"{OPENER} {a.ask(self.name)} {MARKER}",
                value,
                document,
            )
            for a, value in zip(ATTRIBUTES, self.facts, strict=True)
        )


def random_person(rng: random.Random, name: str = "") -> Person:
    """A person with random facts, and a random name where none is given."""
    name = name or f"{rng.choice(FIRST)} {rng.choice(LAST)}"
    return Person(name, tuple(rng.choice(a.values) for a in ATTRIBUTES))

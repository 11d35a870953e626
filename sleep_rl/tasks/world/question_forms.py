"""Questions about people of the world that their documents do not answer as they stand, and dreams
that do.

A document says of a person where they live, what they do, eat and keep. Asked the other way round
(who lives there with such a pet?), around a corner (what does the one who lives there do?) or in
other words, a model that learned the documents' own questions by heart fails: what it knows in one
direction it does not know in another. A dream about the document can put the same facts in these
forms; whether it helped is what tau measures.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import TYPE_CHECKING

from sleep_rl.contracts.errors import Failure
from sleep_rl.contracts.records import Lesson, Question, TrainingText

if TYPE_CHECKING:
    from sleep_rl.tasks.world.people import Person

DREAM = "D :"
CITY, JOB, FOOD, PET = range(4)  # places in ATTRIBUTES
PARAPHRASED = (
    "in which town is NAME now ?",
    "what work does NAME do ?",
    "which meal does NAME want ?",
    "which animal does NAME own ?",
)  # one per attribute, as those of the documents
KEYS = ((CITY, PET), (JOB, FOOD))
"""Two facts that together belong to one person only, and so name that person."""
REVERSED = {
    (CITY, PET): "who lives in CITY with a PET ?",
    (JOB, FOOD): "who is the JOB with FOOD ?",
}
HOPS = {  # what is asked of the person that a key names
    (CITY, PET): {
        JOB: "what job has the one in CITY with a PET ?",
        FOOD: "what food likes the one in CITY with a PET ?",
    },
    (JOB, FOOD): {
        CITY: "in which city is the JOB with FOOD ?",
        PET: "what pet has the JOB with FOOD ?",
    },
}
FORMS = ("direct", "paraphrased", "reversed", "two-hop")
SHARES = (0.5, 0.2, 0.15, 0.15)  # of the forms in the base model's own dreams


def texts() -> list[str]:
    """Every text whose words a deep world needs besides."""
    return [
        DREAM,
        *PARAPHRASED,
        *REVERSED.values(),
        *(q for hops in HOPS.values() for q in hops.values()),
    ]


def asked(person: Person, form: str) -> list[tuple[str, str, str]]:
    """(name, question, answer) of everything that can be asked about a person in a form but
    `direct`.
    """
    facts = dict(zip(("CITY", "JOB", "FOOD", "PET"), person.facts, strict=True))

    def fill(template: str) -> str:
        return " ".join(
            facts.get(word, person.name if word == "NAME" else word) for word in template.split()
        )

    names = ("city", "job", "food", "pet")
    if form == "paraphrased":
        return [(names[i], fill(q), person.facts[i]) for i, q in enumerate(PARAPHRASED)]
    if form == "reversed":
        return [(f"{names[a]}-{names[b]}", fill(q), person.name) for (a, b), q in REVERSED.items()]
    return [
        (f"{names[a]}-{names[b]}-{names[i]}", fill(q), person.facts[i])
        for (a, b), hops in HOPS.items()
        for i, q in hops.items()
    ]


def questions(
    person: Person, prefix: str, form: str, document: str, opener: str, marker: str
) -> tuple[Question, ...]:
    """A form's questions about a person."""
    return tuple(
        Question(f"{prefix}/{person.id}/{form}/{name}", f"{opener} {q} {marker}", answer, document)
        for name, q, answer in asked(person, form)
    )


def dreamed(
    person: Person, direct: Sequence[tuple[str, str]], count: int, rng: random.Random
) -> list[tuple[str, str]]:
    """`count` (question, answer) of the forms that the base model dreams in; `direct`: the
    documents' own.
    """
    out = []
    for form in rng.choices(FORMS, SHARES, k=count):
        pool = list(direct) if form == "direct" else [(q, a) for _, q, a in asked(person, form)]
        out.append(rng.choice(pool))
    return out


def unique_pairs(
    facts: Sequence[tuple[str, ...]], values: Sequence[tuple[str, ...]], rng: random.Random
) -> list[tuple[str, ...]]:
    """As many facts, with each pair of KEYS given to one person at most."""
    columns: dict[int, list[str]] = {}
    for a, b in KEYS:
        pairs = [(x, y) for x in values[a] for y in values[b]]
        rng.shuffle(pairs)  # all of them: who comes first has the same facts however many follow
        columns[a], columns[b] = ([pair[i] for pair in pairs[: len(facts)]] for i in (0, 1))
    return list(zip(*(columns[i] for i in range(4)), strict=True))


def lesson(dream: str, opener: str, marker: str) -> Lesson | Failure:
    """Each question of a dream with its answer is a text; a dream without any teaches nothing."""
    found = []
    for part in dream.split(opener)[1:]:
        question, there, answer = part.partition(marker)
        if there and question.strip() and answer.strip() and marker not in answer:
            found.append(
                TrainingText(f"{opener} {question.strip()} {marker}", f" {answer.strip()}")
            )
    return (
        Lesson(tuple(dict.fromkeys(found)))
        if found
        else Failure("it asks and answers nothing", "dream")
    )

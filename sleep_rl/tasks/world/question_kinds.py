"""Kinds of questions that a document of the deep world does not answer literally, and dreams of
such questions.

A document states a person's city, job, food and pet. A model that only memorised direct questions
fails on reversed ones (who lives in CITY with a PET?), two-hop ones (what job has the one in CITY
with a PET?) and paraphrases. A dream about the document can state the facts in these ways; tau
measures whether that helps.
"""

from __future__ import annotations

import random
from collections.abc import Sequence

from sleep_rl.contracts.errors import Failure
from sleep_rl.contracts.records import Lesson, Question, TrainingText
from sleep_rl.tasks.world.people import MARKER, OPENER, Person

DREAM = "D :"
FACTS = ("city", "job", "food", "pet")  # names of ATTRIBUTES, in order
CITY, JOB, FOOD, PET = range(4)  # indices into ATTRIBUTES
PARAPHRASES = (
    "in which town is NAME now ?",
    "what work does NAME do ?",
    "which meal does NAME want ?",
    "which animal does NAME own ?",
)
"""One paraphrased question per attribute."""
KEYS = ((CITY, PET), (JOB, FOOD))
"""Pairs of facts that identify a person."""
REVERSED = {
    (CITY, PET): "who lives in CITY with a PET ?",
    (JOB, FOOD): "who is the JOB with FOOD ?",
}
TWO_HOP = {
    (CITY, PET): {
        JOB: "what job has the one in CITY with a PET ?",
        FOOD: "what food likes the one in CITY with a PET ?",
    },
    (JOB, FOOD): {
        CITY: "in which city is the JOB with FOOD ?",
        PET: "what pet has the JOB with FOOD ?",
    },
}
"""Key -> attribute of the person that the key identifies -> question."""
KINDS = ("direct", "paraphrased", "reversed", "two-hop")
SHARES = (0.5, 0.2, 0.15, 0.15)  # of the kinds in the base model's training dreams


def template_texts() -> list[str]:
    """Return texts with the words that a deep world needs in addition to those of a plain one."""
    two_hop = [question for questions in TWO_HOP.values() for question in questions.values()]
    return [DREAM, *PARAPHRASES, *REVERSED.values(), *two_hop]


def questions_and_answers(person: Person, kind: str) -> list[tuple[str, str, str]]:
    """Return (name, question, answer) of all questions about a person of a kind except `direct`."""
    values = {
        "NAME": person.name,
        **{fact.upper(): value for fact, value in zip(FACTS, person.facts, strict=True)},
    }

    def fill(template: str) -> str:
        return " ".join(values.get(word, word) for word in template.split())

    if kind == "paraphrased":
        return [
            (FACTS[i], fill(question), person.facts[i]) for i, question in enumerate(PARAPHRASES)
        ]
    if kind == "reversed":
        return [
            (f"{FACTS[a]}-{FACTS[b]}", fill(question), person.name)
            for (a, b), question in REVERSED.items()
        ]
    return [
        (f"{FACTS[a]}-{FACTS[b]}-{FACTS[i]}", fill(question), person.facts[i])
        for (a, b), questions in TWO_HOP.items()
        for i, question in questions.items()
    ]


def kind_questions(person: Person, kind: str, prefix: str, document: str) -> list[Question]:
    """Return the questions about a person of a kind, answered by the document `document`."""
    return [
        Question(
            f"{prefix}/{person.id}/{kind}/{name}", f"{OPENER} {question} {MARKER}", answer, document
        )
        for name, question, answer in questions_and_answers(person, kind)
    ]


def sample_dream(
    person: Person, direct: Sequence[tuple[str, str]], count: int, rng: random.Random
) -> list[tuple[str, str]]:
    """Draw the `count` (question, answer) pairs of a training dream; kinds are drawn by SHARES.

    `direct`: pairs in the documents' own words.
    """
    pairs = []
    for kind in rng.choices(KINDS, SHARES, k=count):
        if kind == "direct":
            candidates = list(direct)
        else:
            candidates = [(q, a) for _, q, a in questions_and_answers(person, kind)]
        pairs.append(rng.choice(candidates))
    return pairs


def identifying_facts(
    values: Sequence[tuple[str, ...]], count: int, rng: random.Random
) -> list[tuple[str, ...]]:
    """Draw the facts of `count` people such that each pair of KEYS occurs at most once.

    `values`: the possible values of each attribute.
    """
    columns: dict[int, list[str]] = {}
    for a, b in KEYS:
        pairs = [(x, y) for x in values[a] for y in values[b]]
        rng.shuffle(pairs)  # all of them, so that earlier people's facts do not depend on `count`
        columns[a] = [pair[0] for pair in pairs[:count]]
        columns[b] = [pair[1] for pair in pairs[:count]]
    return list(zip(*(columns[i] for i in range(4)), strict=True))


def parse_lesson(dream: str) -> Lesson | Failure:
    """Parse a dream into one training text per question with its answer, without repetitions.

    A dream without any such pair is a Failure.
    """
    texts = []
    for part in dream.split(OPENER)[1:]:
        question, marker, answer = part.partition(MARKER)
        complete = bool(marker and question.strip() and answer.strip())
        if complete and MARKER not in answer:
            texts.append(
                TrainingText(f"{OPENER} {question.strip()} {MARKER}", f" {answer.strip()}")
            )
    if not texts:
        return Failure("no question with an answer", "dream")
    return Lesson(tuple(dict.fromkeys(texts)))

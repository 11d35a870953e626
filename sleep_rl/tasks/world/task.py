"""Task world: fictional people with a name and four facts each, a task for laptops.

The small base model has memorised some people, answers questions about anyone from a document in
context, and generates such questions. Each day has documents about new people; evaluation asks
about them without the documents. The seed decides the people and their facts; the vocabulary does
not depend on it.
"""

from __future__ import annotations

import random

from sleep_rl.config.tasks import WorldConfig
from sleep_rl.contracts.errors import Failure, InputError
from sleep_rl.contracts.records import Day, Document, DreamTask, Lesson, Question, TrainingText
from sleep_rl.tasks.small_base import (
    SPECIAL,
    Progress,
    cache_folder,
    train_base,
    word_tokenizer,
)
from sleep_rl.tasks.world import question_kinds
from sleep_rl.tasks.world.base_model import DEEP, Recipe, model_config, training_batches
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


class World:
    """Implements `Task`, and `Dreamer` where `deep`. Raises InputError on impossible counts.

    The recipe is tuned for 100 known people; many more need more steps to be memorised.
    """

    name = "world"
    opener = OPENER
    marker = MARKER
    max_new_tokens = 12  # a question without its opener, the answer and <eos> are 10 or 11
    dream_opener = question_kinds.DREAM
    max_dream_tokens = 56  # three questions with their answers and <eos> have up to 52

    def __init__(
        self,
        seed: int,
        days: int = WorldConfig.days,
        people_per_day: int = 12,
        known_people: int = 100,
        deep: bool = False,
        *,
        recipe: Recipe | None = None,
    ) -> None:
        counts = {
            "task.days": days,
            "task.world.people_per_day": people_per_day,
            "task.world.known_people": known_people,
        }
        for key, value in counts.items():
            if value < 1:
                raise InputError(f"{key}: at least 1, got {value}")
        self.max_answer_tokens = 3 if deep else 2  # the answer (a name has two words) and <eos>
        rng = random.Random(f"world/{seed}")
        everyone = _population(rng, known_people + days * people_per_day)
        if deep:
            everyone = _with_identifying_facts(everyone, random.Random(f"world/{seed}/deep"))
        self._deep = deep
        self._known = tuple(everyone[:known_people])
        self._recipe = recipe or (DEEP if deep else Recipe())
        new = everyone[known_people:]
        self._people = {
            f"day{i + 1}": new[i * people_per_day : (i + 1) * people_per_day] for i in range(days)
        }
        self._days = tuple(_day(name, people, rng) for name, people in self._people.items())

    def days(self) -> tuple[Day, ...]:
        return self._days

    def known(self) -> tuple[Question, ...]:
        return tuple(question for person in self._known for question in person.questions("known"))

    def grade(self, question: Question, text: str) -> float:
        """Return 1 if the text, without special tokens, begins with the words of the answer, else
        0.
        """
        answer = question.answer.split()
        words = [word for word in text.split() if word not in SPECIAL]
        return float(words[: len(answer)] == answer)

    def sft_texts(self, day: Day) -> tuple[TrainingText, ...]:
        return tuple(TrainingText("", document.text) for document in day.documents)

    def joint_texts(self) -> tuple[TrainingText, ...]:
        questions = [*self.known(), *(question for day in self._days for question in day.questions)]
        return tuple(TrainingText(question.prompt, f" {question.answer}") for question in questions)

    def dream_tasks(self, day: Day) -> tuple[DreamTask, ...]:
        """Return one task per person: C is the document; tau has questions of every kind."""
        if not self._deep:
            raise InputError("task.world.deep: true for dreaming, got false")
        deeper = [question for questions in self.deeper(day).values() for question in questions]
        questions = [*day.questions, *deeper]
        return tuple(
            DreamTask(
                document.id,
                day.name,
                document,
                tuple(question for question in questions if question.document == document.id),
            )
            for document in day.documents
        )

    def lesson(self, task: DreamTask, dream: str) -> Lesson | Failure:
        return question_kinds.parse_lesson(dream)

    def tau(self, task: DreamTask, answers: list[str]) -> float:
        """Return the share of correct answers."""
        grades = [
            self.grade(question, answer)
            for question, answer in zip(task.questions, answers, strict=True)
        ]
        return sum(grades) / len(grades)

    def deeper(self, day: Day) -> dict[str, tuple[Question, ...]]:
        """Return paraphrased, reversed and two-hop questions about the people of a day."""
        if not self._deep:
            return {}
        deeper = {}
        for kind in question_kinds.KINDS[1:]:
            questions: list[Question] = []
            for person, document in zip(self._people[day.name], day.documents, strict=True):
                questions += question_kinds.kind_questions(person, kind, day.name, document.id)
            deeper[kind] = tuple(questions)
        return deeper

    def base_checkpoint(self, cache: str, seed: int, progress: Progress | None) -> str:
        """Return the base model's folder in `cache`; train it first (75 seconds on one idle core)
        if it is not there.

        Neither days nor new people are part of the fingerprint: the base does not know them.
        """
        recipe = self._recipe
        words = vocabulary(self._deep)
        out = cache_folder(
            cache,
            "deep-world" if self._deep else "world",
            repr((words, ATTRIBUTES, self._known, recipe, seed)),
        )
        if not out.is_dir():
            train_base(
                out,
                word_tokenizer(words),
                model_config(recipe),
                training_batches(seed, self._known, recipe),
                recipe.steps,
                recipe.lr,
                seed,
                progress,
            )
        return str(out)


def _population(rng: random.Random, count: int) -> list[Person]:
    """Draw `count` people with distinct names. The first ones do not depend on `count`, so that a
    base model in the cache stays valid when days are added. Raises InputError for too many.
    """
    names = [f"{first} {last}" for first in FIRST_NAMES for last in LAST_NAMES]
    if count > len(names):
        raise InputError(
            "task.world.known_people + task.days * task.world.people_per_day is at most "
            f"{len(names)}, got {count}"
        )
    rng.shuffle(names)
    return [random_person(rng, name) for name in names[:count]]


def _with_identifying_facts(people: list[Person], rng: random.Random) -> list[Person]:
    """Return the same people with facts of which two identify a person.

    Raises InputError for more people than there are pairs of values.
    """
    values = [attribute.values for attribute in ATTRIBUTES]
    most = len(values[0]) * len(values[3])
    if len(people) > most:
        raise InputError(f"world: a deep one has at most {most} people, got {len(people)}")
    facts = question_kinds.identifying_facts(values, len(people), rng)
    return [
        Person(person.name, person_facts)
        for person, person_facts in zip(people, facts, strict=True)
    ]


def _day(name: str, people: list[Person], rng: random.Random) -> Day:
    attributes = range(len(ATTRIBUTES))
    documents = tuple(
        Document(
            f"{name}/{person.id}", person.document(rng, rng.sample(attributes, len(attributes)))
        )
        for person in people
    )
    questions = [
        question
        for person, document in zip(people, documents, strict=True)
        for question in person.questions(name, document.id)
    ]
    return Day(name, documents, tuple(questions))

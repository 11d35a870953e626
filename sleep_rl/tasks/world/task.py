"""A world of fictional people: each has a full name and four facts. The task that fits on a laptop.

The base model knows some people by heart, can answer questions about anyone from a document in its
context, and can write such questions itself. Each day brings documents about new people; after the
nights it is asked about them without the documents. The vocabulary never depends on the seed, only
who exists and what is true of them does.
"""

from __future__ import annotations

import hashlib
import random
from pathlib import Path

from sleep_rl.contracts.errors import Failure, InputError
from sleep_rl.contracts.records import Day, Document, DreamTask, Lesson, Question, TrainingText
from sleep_rl.tasks.small_base import SPECIAL, Progress, train_base, word_tokenizer
from sleep_rl.tasks.world import question_forms
from sleep_rl.tasks.world.base_model import DEEP, Recipe, model_config, training_batches
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


class World:
    """The Task of this file (see contracts.Task). Raises InputError on counts that cannot be
    served.

    The recipe is tuned for 100 known people; many more need more steps to be known by heart.
    """

    name = "world"
    opener = OPENER
    marker = MARKER
    max_new_tokens = 12  # a question without its opener, the answer and <eos> are 10 or 11
    dream_opener = question_forms.DREAM
    max_dream_tokens = 56  # three questions with their answers and <eos> have up to 52

    def __init__(
        self,
        seed: int,
        days: int = 3,
        people_per_day: int = 12,
        known_people: int = 100,
        deep: bool = False,
        *,
        recipe: Recipe | None = None,
    ) -> None:
        self.max_answer_tokens = 3 if deep else 2  # the answer (a name has two words) and <eos>
        for key, value in (
            ("days", days),
            ("people_per_day", people_per_day),
            ("known_people", known_people),
        ):
            if value < 1:
                raise InputError(f"world.{key}: at least 1, got {value}")
        names = [f"{first} {last}" for first in FIRST for last in LAST]
        people = known_people + days * people_per_day
        if people > len(names):
            raise InputError(
                f"world: known_people + days * people_per_day is at most {len(names)}, got {people}"
            )
        rng = random.Random(f"world/{seed}")
        rng.shuffle(names)
        # Known people first: more days change nothing about them, so the base model in the cache
        # stays valid.
        everyone = [random_person(rng, name) for name in names[:people]]
        if deep:
            everyone = _told_apart(everyone, random.Random(f"world/{seed}/deep"))
        self._deep, self._known = deep, tuple(everyone[:known_people])
        self._recipe = recipe or (DEEP if deep else Recipe())
        new = everyone[known_people:]
        self._people = {
            f"day{i + 1}": new[i * people_per_day : (i + 1) * people_per_day] for i in range(days)
        }
        self._days = tuple(_day(name, theirs, rng) for name, theirs in self._people.items())

    def days(self) -> tuple[Day, ...]:
        return self._days

    def known(self) -> tuple[Question, ...]:
        return tuple(question for person in self._known for question in person.questions("known"))

    def grade(self, question: Question, text: str) -> float:
        """1 where the text begins with the words of the answer, else 0; special tokens do not count
        as words.
        """
        answer = question.answer.split()
        words = [word for word in text.split() if word not in SPECIAL]
        return float(words[: len(answer)] == answer)

    def sft_texts(self, day: Day) -> tuple[TrainingText, ...]:
        return tuple(TrainingText("", document.text) for document in day.documents)

    def joint_texts(self) -> tuple[TrainingText, ...]:
        asked = [*self.known(), *(question for day in self._days for question in day.questions)]
        return tuple(TrainingText(question.prompt, f" {question.answer}") for question in asked)

    def dream_tasks(self, day: Day) -> tuple[DreamTask, ...]:
        """One task per person: C is the document; tau asks for every fact in every form."""
        if not self._deep:
            raise InputError("task.world.deep: true for dreaming, got false")
        more = self.deeper(day)
        asked = [*day.questions, *(question for form in more.values() for question in form)]
        return tuple(
            DreamTask(d.id, day.name, d, tuple(q for q in asked if q.document == d.id))
            for d in day.documents
        )

    def lesson(self, task: DreamTask, dream: str) -> Lesson | Failure:
        return question_forms.lesson(dream, OPENER, MARKER)

    def tau(self, task: DreamTask, answers: list[str]) -> float:
        """Share of right answers."""
        grades = [
            self.grade(question, text)
            for question, text in zip(task.questions, answers, strict=True)
        ]
        return sum(grades) / len(grades)

    def deeper(self, day: Day) -> dict[str, tuple[Question, ...]]:
        """Reversed, two-hop and paraphrased questions about a day's people."""
        people = self._people[day.name] if self._deep else []
        asked = {
            form: [
                q
                for person, d in zip(people, day.documents, strict=self._deep)
                for q in question_forms.questions(person, day.name, form, d.id, OPENER, MARKER)
            ]
            for form in question_forms.FORMS[1:]
        }
        return {form: tuple(mine) for form, mine in asked.items() if mine}

    def base_checkpoint(self, cache: str, seed: int, progress: Progress | None) -> str:
        """Trains for about 75 seconds on one idle core; returns at once where `cache` already holds
        the model.

        Neither days nor new people are part of the fingerprint: the base model knows nothing about
        them.
        """
        recipe = self._recipe
        made_of = repr((vocabulary(self._deep), ATTRIBUTES, self._known, recipe, seed))
        out = (
            Path(cache)
            / f"{'deep-' * self._deep}world-{hashlib.sha256(made_of.encode()).hexdigest()[:16]}"
        )
        if not out.is_dir():
            batches = training_batches(seed, self._known, recipe)
            tokenizer = word_tokenizer(vocabulary(self._deep))
            train_base(
                out,
                tokenizer,
                model_config(recipe),
                batches,
                recipe.steps,
                recipe.lr,
                seed,
                progress,
            )
        return str(out)


def _told_apart(people: list[Person], rng: random.Random) -> list[Person]:
    """The same people with other facts: two of them name a person. Raises InputError for more than
    there are pairs.
    """
    values = [a.values for a in ATTRIBUTES]
    if len(people) > len(values[0]) * len(values[3]):
        raise InputError(
            f"world: a deep one has at most {len(values[0]) * len(values[3])} "
            f"people, got {len(people)}"
        )
    return [
        Person(p.name, facts)
        for p, facts in zip(
            people, question_forms.unique_pairs([p.facts for p in people], values, rng)
        )
    ]


def _day(name: str, people: list[Person], rng: random.Random) -> Day:
    order = range(len(ATTRIBUTES))
    documents = tuple(
        Document(f"{name}/{person.id}", person.document(rng, rng.sample(order, len(order))))
        for person in people
    )
    questions = tuple(
        q for person, d in zip(people, documents, strict=True) for q in person.questions(name, d.id)
    )
    return Day(name, documents, questions)

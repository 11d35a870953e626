"""The deep world: every question has one correct answer, and dreams are parsed into questions."""

import random
from collections import Counter

import pytest

from sleep_rl.contracts.errors import Failure, InputError
from sleep_rl.contracts.records import TrainingText
from sleep_rl.tasks.small_base import SPECIAL, word_tokenizer
from sleep_rl.tasks.world import question_kinds
from sleep_rl.tasks.world.base_model import DEEP, training_sequence
from sleep_rl.tasks.world.people import ATTRIBUTES, random_person
from sleep_rl.tasks.world.task import World
from sleep_rl.tasks.world.vocabulary import vocabulary


@pytest.fixture(scope="module")
def world():
    return World(seed=0, deep=True)


def test_vocabulary_of_the_deep_world(world):
    words = set(vocabulary(True)) | set(SPECIAL)
    asked = [q for day in world.days() for kind in world.deeper(day).values() for q in kind]
    assert {word for q in asked for word in (q.prompt + " " + q.answer).split()} <= words
    assert (
        set(vocabulary()) < set(vocabulary(True))
        and question_kinds.DREAM.split()[0] not in vocabulary()
    )
    assert World(seed=0).deeper(World(seed=0).days()[0]) == {}
    with pytest.raises(InputError, match=r"task.world.deep: true for dreaming, got false"):
        World(seed=0).dream_tasks(World(seed=0).days()[0])


def test_facts_identify_people_and_questions_have_one_answer(world):
    questions = [q for day in world.days() for kind in world.deeper(day).values() for q in kind]
    assert len({q.prompt for q in questions}) == len(questions) == 3 * 12 * (4 + 2 + 4)
    people = [*world._known, *(p for day in world._people.values() for p in day)]
    for a, b in question_kinds.KEYS:
        assert max(Counter((p.facts[a], p.facts[b]) for p in people).values()) == 1
    assert all(p.facts[i] in ATTRIBUTES[i].values for p in people for i in range(4))
    longer = World(seed=0, days=5, deep=True)
    assert longer._known == world._known  # so the base in the cache stays valid
    assert [longer._people[d] for d in world._people] == list(world._people.values())
    with pytest.raises(InputError, match="a deep one has at most 400 people, got 460"):
        World(seed=0, days=30, deep=True)


def test_questions_of_each_kind(world):
    day = world.days()[0]
    person = world._people["day1"][0]
    city, job, food, pet = person.facts
    mine = {
        kind: {q.prompt: q.answer for q in qs if q.document == day.documents[0].id}
        for kind, qs in world.deeper(day).items()
    }
    assert {kind: len(qs) for kind, qs in mine.items()} == {
        "paraphrased": 4,
        "reversed": 2,
        "two-hop": 4,
    }
    assert mine["reversed"] == {
        f"Q : who lives in {city} with a {pet} ? A :": person.name,
        f"Q : who is the {job} with {food} ? A :": person.name,
    }
    assert mine["two-hop"][f"Q : what job has the one in {city} with a {pet} ? A :"] == job
    assert mine["two-hop"][f"Q : in which city is the {job} with {food} ? A :"] == city
    assert mine["paraphrased"][f"Q : what work does {person.name} do ? A :"] == job
    stated = {q.prompt for q in day.questions}
    assert not stated & {prompt for qs in mine.values() for prompt in qs}


def test_tau_is_the_share_of_correct_answers(world):
    [task, *_] = tasks = world.dream_tasks(world.days()[1])
    assert len(tasks) == 12 and task.day == "day2" and task.context == world.days()[1].documents[0]
    assert len(task.questions) == 14 and all(q.document == task.context.id for q in task.questions)
    right = [q.answer for q in task.questions]
    assert world.tau(task, right) == 1.0 and world.tau(task, [""] * 14) == 0.0
    assert world.tau(task, [f"{a} <eos>" if i < 7 else "wrong" for i, a in enumerate(right)]) == 0.5


def test_parse_lesson(world):
    dream = (
        "Q : who lives in oslo with a dog ? A : mira novak "
        "Q : what work does mira novak do ? A : baker"
    )
    lesson = world.lesson(None, dream)
    assert lesson.texts == (
        TrainingText("Q : who lives in oslo with a dog ? A :", " mira novak"),
        TrainingText("Q : what work does mira novak do ? A :", " baker"),
    )
    assert world.lesson(None, f"{dream} {dream}").texts == lesson.texts  # once each
    for bad in (
        "",
        "mira novak lives in oslo .",
        "Q : where ? A :",
        "Q : A : x",
        "Q : a ? A : b A : c",
    ):
        assert isinstance(world.lesson(None, bad), Failure), bad


def test_base_model_dreams_in_every_form():
    rng = random.Random(0)
    known = [random_person(random.Random(i)) for i in range(20)]
    tokenizer = word_tokenizer(vocabulary(True))
    seen = Counter()
    dreams = 0
    for _ in range(3000):
        pieces = training_sequence(rng, known, 4, DEEP)
        text = " ".join(words for words, _ in pieces)
        assert tokenizer.unk_token_id not in tokenizer(text)["input_ids"]
        if question_kinds.DREAM in text:
            dreams += 1
            document, dream = text.removeprefix("<bos> ").split(f" {question_kinds.DREAM} ")
            lesson = question_kinds.parse_lesson(dream.removesuffix(" <eos>"))
            for told in lesson.texts:
                question = told.prompt.removeprefix("Q : ").removesuffix(" A :")
                kind = next(kind for kind, starts in STARTS.items() if question.startswith(starts))
                seen[kind] += 1
                assert all(word in document for word in told.completion.split()), (document, told)
    assert 0.2 < dreams / 3000 < 0.4
    total = sum(seen.values())
    for kind, share in zip(question_kinds.KINDS, question_kinds.SHARES, strict=True):
        assert abs(seen[kind] / total - share) < 0.06, (kind, seen)


STARTS = {
    "paraphrased": ("in which town", "what work", "which meal", "which animal"),
    "reversed": ("who lives", "who is the"),
    "two-hop": ("what job has", "what food likes", "in which city", "what pet has"),
    "direct": ("where does", "what job does", "what food does", "what pet does"),
}

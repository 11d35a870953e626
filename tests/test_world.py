"""The world's facts, texts and grading, and what its base model is trained on. The base model itself: test_world_slow."""

import random
from collections import Counter

import pytest

from sleep_rl.contracts import InputError, Question
from sleep_rl.pretrain import SPECIAL, word_tokenizer
from sleep_rl.tasks.world import (
    ATTRIBUTES,
    FIRST,
    LAST,
    Recipe,
    World,
    model_config,
    random_person,
    training_batches,
    training_sequence,
    vocabulary,
)


@pytest.fixture(scope="module")
def world() -> World:
    return World(seed=0)


@pytest.fixture(scope="module")
def tokenizer():
    return word_tokenizer(vocabulary())


def name_of(question: Question) -> str:
    return question.id.split("/")[1].replace("-", " ")


def everything_asked(world: World) -> list[Question]:
    return [*world.known(), *(question for day in world.days() for question in day.questions)]


def test_word_lists_are_distinct_and_long_enough():
    for words in (FIRST, LAST, *(a.values for a in ATTRIBUTES)):
        assert len(set(words)) == len(words) >= 20
    assert not set(FIRST) & set(LAST)
    values = [value for a in ATTRIBUTES for value in a.values]
    assert len(set(values)) == len(values)


def test_sizes(world):
    assert [day.name for day in world.days()] == ["day1", "day2", "day3"]
    assert all(len(day.documents) == 12 and len(day.questions) == 48 for day in world.days())
    assert len(world.known()) == 400


def test_names_and_ids_are_unique_over_known_people_and_days(world):
    asked = everything_asked(world)
    assert len({question.id for question in asked}) == len(asked)
    assert set(Counter(map(name_of, asked)).values()) == {len(ATTRIBUTES)}
    assert len({document.id for day in world.days() for document in day.documents}) == 36


def test_neither_first_nor_last_name_alone_tells_who_is_meant(world):
    people = {name_of(question) for question in everything_asked(world)}
    for part in (0, 1):
        shared = Counter(name.split()[part] for name in people)
        assert sum(count for count in shared.values() if count > 1) > 0.9 * len(people)


def test_the_same_seed_gives_the_same_world_and_another_seed_another(world):
    again, other = World(seed=0), World(seed=1)
    assert again.days() == world.days() and again.known() == world.known()
    assert {q.id for q in other.known()} != {q.id for q in world.known()}
    assert other.days()[0].documents[0].text != world.days()[0].documents[0].text


def test_more_days_change_nothing_about_the_people_known_before(world):
    assert World(seed=0, days=5, people_per_day=3).known() == world.known()


def test_every_word_is_in_the_vocabulary_of_the_tokenizer(world, tokenizer):
    texts = [question.prompt + " " + question.answer for question in everything_asked(world)]
    texts += [document.text for day in world.days() for document in day.documents]
    texts += [world.opener, world.marker]
    assert tokenizer.unk_token_id not in {token for text in texts for token in tokenizer(text).input_ids}


def test_pieces_tokenize_like_the_whole(world, tokenizer):
    day = world.days()[0]
    context, question = day.documents[0].text, day.questions[0]
    assert question.prompt.startswith(world.opener) and question.prompt.endswith(world.marker)
    rest = question.prompt.removeprefix(world.opener)
    pieces = ["<bos>", context, world.opener, rest, f" {question.answer}", "<eos>"]
    together = tokenizer(" ".join(pieces)).input_ids
    assert [token for piece in pieces for token in tokenizer(piece).input_ids] == together
    assert len(together) <= model_config(Recipe()).max_position_embeddings


def test_limits_hold_every_written_question_and_answer(world, tokenizer):
    for question in everything_asked(world):
        answer = tokenizer(f" {question.answer} <eos>").input_ids
        written = tokenizer(question.prompt.removeprefix(world.opener)).input_ids + answer
        assert len(written) <= world.max_new_tokens and len(answer) <= world.max_answer_tokens


def test_every_question_of_a_day_can_be_answered_from_its_document_only(world):
    for day in world.days():
        texts = {document.id: document.text for document in day.documents}
        for question in day.questions:
            values = next(a.values for a in ATTRIBUTES if question.id.endswith(f"/{a.name}"))
            assert [word for word in texts[question.document].split() if word in values] == [question.answer]
            assert name_of(question) in texts[question.document]


def test_documents_vary_in_order_and_wording():
    rng = random.Random(0)
    person = random_person(rng)
    assert len({person.document(rng) for _ in range(200)}) > 100


def test_grading(world):
    question = Question("x", "Q : where does mira novak live ? A :", "oslo")
    for right in ("oslo", " oslo <eos>", "<bos> oslo Q : where", "oslo <eos> <pad>"):
        assert world.grade(question, right) == 1.0
    for wrong in ("", "<eos>", "paris", "paris oslo", "Oslo", "oslos"):
        assert world.grade(question, wrong) == 0.0


def test_baseline_texts(world):
    day = world.days()[1]
    assert [text.completion for text in world.sft_texts(day)] == [document.text for document in day.documents]
    assert {text.prompt for text in world.sft_texts(day)} == {""}
    expected = {(question.prompt, f" {question.answer}") for question in everything_asked(world)}
    joint = [(text.prompt, text.completion) for text in world.joint_texts()]
    assert set(joint) == expected and len(joint) == len(expected)


@pytest.mark.parametrize("key", ["days", "people_per_day", "known_people"])
def test_empty_worlds_are_refused(key):
    with pytest.raises(InputError, match=f"world.{key}: at least 1, got 0"):
        World(seed=0, **{key: 0})


def test_more_people_than_names_are_refused():
    with pytest.raises(InputError, match="at most 1600, got 1700"):
        World(seed=0, days=100, people_per_day=16)


# ------------------------------------------------------------------------------------------------ the base model


def sequences(count: int):
    rng = random.Random(3)
    known = tuple(random_person(rng) for _ in range(20))
    return known, [training_sequence(rng, known, Recipe()) for _ in range(count)]


def test_training_never_teaches_to_ask_about_anyone_but_the_person_of_the_document():
    _, rows = sequences(400)
    foreign = 0
    for row in rows:
        document = row[1][0]
        if document.startswith("Q :"):
            continue
        for words, weight in row[2:]:
            if words.startswith("Q :"):
                same = " ".join(words.split()[-5:-3]) in document
                same = any(f"{a} {b}" in document for a, b in zip(words.split(), words.split()[1:]) if a in FIRST)
                assert same == (weight > 0)
                foreign += not same
    assert foreign > 50


def test_first_question_behind_a_document_asks_about_each_attribute_equally_often():
    _, rows = sequences(4000)
    first = [row[2] for row in rows if not row[1][0].startswith("Q :")]
    asked = Counter(words.split()[2:4][1] if words.startswith("Q : what") else "where" for words, weight in first if weight)
    assert len(asked) == 4 and max(asked.values()) < 1.2 * min(asked.values())


def test_batches_are_the_same_for_the_same_step_and_weigh_no_padding(world):
    known, _ = sequences(1)
    recipe = Recipe(batch=4)
    ids_BT, weight_BT = training_batches(0, known, recipe)(3)
    again_BT, _ = training_batches(0, known, recipe)(3)
    assert (ids_BT == again_BT).all()
    assert not (training_batches(1, known, recipe)(3)[0][:, :9] == ids_BT[:, :9]).all()
    assert ids_BT.shape == weight_BT.shape and ids_BT.shape[0] == 4
    assert (weight_BT[ids_BT == SPECIAL.index("<pad>")] == 0).all()
    assert (ids_BT[:, 0] == SPECIAL.index("<bos>")).all()

"""Task world: facts, texts, grading and training data of the small base; the base itself in the
slow test.
"""

import random
from collections import Counter
from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from sleep_rl.contracts.errors import InputError
from sleep_rl.contracts.records import Question
from sleep_rl.tasks.small_base import SPECIAL, word_tokenizer
from sleep_rl.tasks.world.base_model import (
    Recipe,
    model_config,
    training_batches,
    training_sequence,
)
from sleep_rl.tasks.world.people import ATTRIBUTES, FIRST_NAMES, LAST_NAMES, random_person
from sleep_rl.tasks.world.task import World
from sleep_rl.tasks.world.vocabulary import vocabulary


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
    for words in (FIRST_NAMES, LAST_NAMES, *(a.values for a in ATTRIBUTES)):
        assert len(set(words)) == len(words) >= 20
    assert not set(FIRST_NAMES) & set(LAST_NAMES)
    values = [value for a in ATTRIBUTES for value in a.values]
    assert len(set(values)) == len(values)


def test_numbers_of_people_documents_and_questions(world):
    assert [day.name for day in world.days()] == ["day1", "day2", "day3"]
    assert all(len(day.documents) == 12 and len(day.questions) == 48 for day in world.days())
    assert len(world.known()) == 400


def test_names_and_ids_are_unique(world):
    asked = everything_asked(world)
    assert len({question.id for question in asked}) == len(asked)
    assert set(Counter(map(name_of, asked)).values()) == {len(ATTRIBUTES)}
    assert len({document.id for day in world.days() for document in day.documents}) == 36


def test_half_names_are_ambiguous(world):
    people = {name_of(question) for question in everything_asked(world)}
    for part in (0, 1):
        shared = Counter(name.split()[part] for name in people)
        assert sum(count for count in shared.values() if count > 1) > 0.9 * len(people)


def test_world_is_deterministic_in_seed(world):
    again = World(seed=0)
    other = World(seed=1)
    assert again.days() == world.days() and again.known() == world.known()
    assert {q.id for q in other.known()} != {q.id for q in world.known()}
    assert other.days()[0].documents[0].text != world.days()[0].documents[0].text


def test_more_days_keep_earlier_people(world):
    assert World(seed=0, days=5, people_per_day=3).known() == world.known()


def test_every_word_is_in_the_vocabulary(world, tokenizer):
    texts = [question.prompt + " " + question.answer for question in everything_asked(world)]
    texts += [document.text for day in world.days() for document in day.documents]
    texts += [world.opener, world.marker]
    assert tokenizer.unk_token_id not in {
        token for text in texts for token in tokenizer(text).input_ids
    }


def test_parts_tokenize_like_the_whole(world, tokenizer):
    day = world.days()[0]
    context = day.documents[0].text
    question = day.questions[0]
    assert question.prompt.startswith(world.opener) and question.prompt.endswith(world.marker)
    rest = question.prompt.removeprefix(world.opener)
    pieces = ["<bos>", context, world.opener, rest, f" {question.answer}", "<eos>"]
    together = tokenizer(" ".join(pieces)).input_ids
    assert [token for piece in pieces for token in tokenizer(piece).input_ids] == together
    assert len(together) <= model_config(Recipe()).max_position_embeddings


def test_token_limits_suffice(world, tokenizer):
    for question in everything_asked(world):
        answer = tokenizer(f" {question.answer} <eos>").input_ids
        written = tokenizer(question.prompt.removeprefix(world.opener)).input_ids + answer
        assert len(written) <= world.max_new_tokens and len(answer) <= world.max_answer_tokens


def test_documents_answer_their_questions_only(world):
    for day in world.days():
        texts = {document.id: document.text for document in day.documents}
        for question in day.questions:
            values = next(a.values for a in ATTRIBUTES if question.id.endswith(f"/{a.name}"))
            assert [word for word in texts[question.document].split() if word in values] == [
                question.answer
            ]
            assert name_of(question) in texts[question.document]


def test_documents_vary_in_order_and_sentences(world):
    kinds = {value: a.name for a in ATTRIBUTES for value in a.values}
    documents = [document for day in world.days() for document in day.documents]
    # of 24
    assert (
        len({tuple(kinds[word] for word in d.text.split() if word in kinds) for d in documents})
        > 12
    )
    wordings = {
        tuple(word for word in d.text.split() if word not in (*FIRST_NAMES, *LAST_NAMES, *kinds))
        for d in documents
    }
    assert len(wordings) > 0.9 * len(documents)


def test_grading(world):
    question = Question("x", "Q : where does mira novak live ? A :", "oslo")
    for right in ("oslo", " oslo <eos>", "<bos> oslo Q : where", "oslo <eos> <pad>"):
        assert world.grade(question, right) == 1.0
    for wrong in ("", "<eos>", "paris", "paris oslo", "Oslo", "oslos"):
        assert world.grade(question, wrong) == 0.0


def test_baseline_texts(world):
    day = world.days()[1]
    assert [text.completion for text in world.sft_texts(day)] == [
        document.text for document in day.documents
    ]
    assert {text.prompt for text in world.sft_texts(day)} == {""}
    expected = {(question.prompt, f" {question.answer}") for question in everything_asked(world)}
    joint = [(text.prompt, text.completion) for text in world.joint_texts()]
    assert set(joint) == expected and len(joint) == len(expected)


@pytest.mark.parametrize(
    "key", ["task.days", "task.world.people_per_day", "task.world.known_people"]
)
def test_counts_below_one_are_refused(key):
    with pytest.raises(InputError, match=f"^{key}: at least 1, got 0"):
        World(seed=0, **{key.rpartition(".")[2]: 0})


def test_too_many_people_are_refused():
    with pytest.raises(InputError, match="at most 1024, got 1700"):
        World(seed=0, days=100, people_per_day=16)


# ---- the base model


KNOWN = tuple(random_person(random.Random(i)) for i in range(20))
RECIPE = Recipe()


def sequences(count: int, in_context: bool) -> list[list[tuple[str, float]]]:
    """Return training sequences without <bos>, as (words, loss weight)."""
    rng = random.Random(3)
    recipe = replace(RECIPE, in_context=float(in_context))
    rows = [training_sequence(rng, KNOWN, 4, recipe) for _ in range(count)]
    assert all(row[0] == ("<bos>", 0.0) for row in rows)
    return [row[1:] for row in rows]


def asked_name(question: str) -> str:
    return " ".join(word for word in question.split() if word in FIRST_NAMES or word in LAST_NAMES)


def test_question_loss_covers_the_document_person_only():
    foreign = namesakes = 0
    for (document, _), *asked in sequences(400, in_context=True):
        name = " ".join(document.split()[:2])
        for (question, weight), (answer, answer_weight), _ in zip(*[iter(asked)] * 3, strict=True):
            other = asked_name(question)
            assert answer_weight == RECIPE.answer_weight
            if other == name:
                assert weight == RECIPE.question_weight and answer in document.split()
            else:
                assert weight == 0 and other in {person.name for person in KNOWN}
                foreign += 1
                namesakes += bool(set(other.split()) & set(name.split()))
    assert foreign == pytest.approx(RECIPE.elsewhere * 1600, rel=0.2)
    assert namesakes > 0.15 * foreign


def test_recall_sequences_are_about_known_people():
    people = {person.name: person for person in KNOWN}
    for row in sequences(100, in_context=False):
        for (question, weight), (answer, _), (end, _) in zip(*[iter(row)] * 3, strict=True):
            assert weight == RECIPE.recall_weight and end == "<eos>"
            assert answer in people[asked_name(question)].facts


def test_first_question_is_uniform_over_attributes():
    first = [row[1] for row in sequences(4000, in_context=True)]
    asked = Counter(tuple(question.split()[2:4]) for question, weight in first if weight)
    assert len(asked) == len(ATTRIBUTES) and max(asked.values()) < 1.2 * min(asked.values())


def test_batches_are_deterministic_and_padding_has_weight_zero():
    batches = training_batches(0, KNOWN, RECIPE)
    ids_BT, weight_BT = batches(RECIPE.steps - 1)
    assert ids_BT.shape == weight_BT.shape and ids_BT.shape[0] == RECIPE.stages[-1].sequences
    assert (batches(RECIPE.steps - 1)[0] == ids_BT).all()
    for other in (batches(RECIPE.steps - 2), training_batches(1, KNOWN, RECIPE)(RECIPE.steps - 1)):
        assert not (other[0][:, :20] == ids_BT[:, :20]).all()
    assert (weight_BT[ids_BT == SPECIAL.index("<pad>")] == 0).all()
    assert (ids_BT[:, 0] == SPECIAL.index("<bos>")).all()
    assert ids_BT.max() < model_config(RECIPE).vocab_size


def test_documents_get_longer_during_training():
    middle = [int(RECIPE.steps * (a.until + b.until) / 2) for a, b in pairwise(RECIPE.stages)]
    lengths = [training_batches(0, KNOWN, RECIPE)(step)[0].shape[1] for step in (0, *middle)]
    assert lengths == sorted(set(lengths))


def test_cached_base_checkpoint_is_used(tmp_path):
    tiny = replace(RECIPE, steps=2, hidden=32, heads=1)
    world = World(seed=0, known_people=2, recipe=tiny)
    calls = []
    path = world.base_checkpoint(str(tmp_path), 0, lambda *call: calls.append(call))
    assert len(calls) == 2 and (tmp_path / path / "model.safetensors").exists()
    assert world.base_checkpoint(str(tmp_path), 0, lambda *call: calls.append(call)) == path
    assert len(calls) == 2
    assert (
        World(seed=0, days=1, known_people=2, recipe=tiny).base_checkpoint(str(tmp_path), 0, None)
        == path
    )
    other = World(seed=1, known_people=2, recipe=tiny)
    assert other.base_checkpoint(str(tmp_path), 0, None) != path
    assert world.base_checkpoint(str(tmp_path), 1, None) != path


@pytest.mark.slow
def test_base_model_recalls_known_people_and_reads_documents(world, tmp_path):
    path = world.base_checkpoint(str(tmp_path), 0, None)
    model = AutoModelForCausalLM.from_pretrained(path)
    tokenizer = AutoTokenizer.from_pretrained(path)

    def accuracy(questions: list[Question], contexts: dict[str, str]) -> float:
        right = 0.0
        for question in questions:
            text = f"<bos> {contexts.get(question.document, '')} {question.prompt}"
            logits_V = model(torch.tensor([tokenizer(text).input_ids])).logits[0, -1]
            right += world.grade(question, tokenizer.decode(logits_V.argmax()))
        return right / len(questions)

    new = [question for day in world.days() for question in day.questions]
    documents = {document.id: document.text for day in world.days() for document in day.documents}
    with torch.no_grad():
        assert accuracy(list(world.known()), {}) >= 0.995
        assert accuracy(new, documents) >= 0.99
        assert accuracy(new, {}) <= 0.15  # about 1 in 20 by chance

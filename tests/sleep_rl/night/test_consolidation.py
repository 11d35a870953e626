"""What a night trains on: pure functions on tiny texts, and the night against a crew that checks
what it is given.
"""

import json
import math
import random
from collections import Counter
from dataclasses import replace

import pytest

from sleep_rl.contracts.errors import Failure
from sleep_rl.contracts.records import Document, Question, Sample
from sleep_rl.night.consolidation import Shares
from sleep_rl.night.samplers import EpochSampler
from sleep_rl.night.sequences import (
    Prefix,
    TeacherSequence,
    continuation_requests,
    cut,
    document_requests,
    documents_of,
    packed,
    pairs_of,
    readable,
    reading_rows,
    rehearsed,
    student_rows,
    teacher_rows,
    unpacked,
    whole_rows,
    writing_requests,
)
from sleep_rl.session.prompts import PromptCodec
from tests.configs import changed, toy


class Words:
    """A tokenizer of whole words."""

    bos_token_id, eos_token_id = 1, 2

    def __init__(self):
        self.ids = {"<bos>": 1, "<eos>": 2}

    def __call__(self, text, add_special_tokens):
        assert add_special_tokens is False
        return {
            "input_ids": [self.ids.setdefault(word, len(self.ids) + 10) for word in text.split()]
        }

    def decode(self, ids, skip_special_tokens):
        names = {i: word for word, i in self.ids.items()}
        return " ".join(names[i] for i in ids if i > 2)


class Asking:
    name, opener, marker, max_new_tokens, max_answer_tokens = "asking", "Q :", "A :", 12, 3


@pytest.fixture
def texts():
    return PromptCodec(Asking(), Words())


def sample(texts, context, words, reason="stop"):
    ids = texts.ids(words) + (texts.eos if reason == "stop" else ())
    return Sample((), context, ids, (-1.0,) * len(ids), reason, 0, "teacher", (1,) * len(ids))


def test_contexts_split_and_baseline_rows(texts):
    document = Document("d", "x is y")
    assert texts.context(None) == (1,) and texts.context(document) == (1, *texts.ids("x is y"))
    assert texts.document(document) == (*texts.context(document), 2)
    written = texts.ids("what is x ? A : y") + texts.eos
    assert texts.split(written) == (texts.ids("what is x ? A :"), texts.ids("y") + texts.eos)
    assert texts.split(texts.ids("what is x ? A :") + texts.eos) is None
    assert texts.split(texts.ids("no marker here")) is None
    assert texts.question(Question("q", "Q : who ? A :", "me")) == texts.ids("Q : who ? A :")


def test_a_document_that_does_not_fit_or_is_empty_is_named_in_one_line(texts):
    from sleep_rl.contracts.errors import InputError

    texts.check_fits([Document("ok", "a b c")], 18)
    with pytest.raises(InputError, match=r"document long: at most 3 tokens fit .* = 18, got 4"):
        texts.check_fits([Document("ok", "a b c"), Document("long", "a b c d")], 18)
    with pytest.raises(InputError, match=r"document void: .* empty"):
        texts.check_fits([Document("void", " ")], 18)


def test_the_teacher_is_asked_with_each_document_and_without_any(texts):
    config = toy(generation={"samples": 3}, replay={"samples": 5})
    documents = (Document("a", "one"), Document("b", "two"))
    behind, free = writing_requests(texts, documents, config, "1 0")
    requests = behind + free
    assert {r.context_T for r in free} == {texts.context(None)}
    contexts = Counter(r.context_T for r in requests)
    assert contexts == {
        texts.context(documents[0]): 3,
        texts.context(documents[1]): 3,
        texts.context(None): 5,
    }
    assert {r.prompt_T for r in requests} == {texts.opener} and len(
        {r.seed for r in requests}
    ) == 11
    assert (
        writing_requests(texts, documents, config, "1 0")
        == (behind, free)
        != writing_requests(texts, documents, config, "2 0")
    )
    without, none = writing_requests(
        texts, documents, changed(config, replay={"share": 0.0}), "1 0"
    )
    assert (
        texts.context(None) not in {r.context_T for r in without}
        and len(without) == 6
        and none == []
    )


def test_only_finished_sequences_with_an_answer_are_read_and_the_rest_is_counted(texts):
    document = texts.context(Document("a", "one"))
    good = [
        sample(texts, document, "who ? A : me"),
        sample(texts, texts.context(None), "old ? A : yes"),
    ]
    bad = [
        sample(texts, document, "who ? A : me and", "length"),
        sample(texts, document, "who ?"),
        Failure("engine died"),
    ]
    data, left = readable(texts, good + bad)
    sure = pytest.approx(math.exp(-2.0))  # y and eos, a nat each
    assert data == [
        TeacherSequence(document, good[0].completion_T, False, sure=sure),
        TeacherSequence(texts.context(None), good[1].completion_T, True, sure=sure),
    ]
    assert left == {"failed": 1, "unfinished": 1, "no answer": 1, "unsure": 0}


def test_draws_pass_over_everything_before_anything_comes_again():
    data = [TeacherSequence((), (i,), False) for i in range(7)]
    draw = EpochSampler(data, random.Random(0))
    for _ in range(3):
        assert Counter(w.sequence_T for w in draw.take(7)) == Counter(w.sequence_T for w in data)
    assert EpochSampler([], random.Random(0)).take(3) == []


@pytest.mark.parametrize(
    "batch,replay,on_policy,group",
    [
        (40, 0.6, 0.5, 4),
        (40, 0.0, 1.0, 4),
        (40, 1.0, 0.0, 4),
        (8, 0.5, 0.5, 2),
        (32, 0.25, 1.0, 8),
        (3, 0.6, 0.5, 4),
    ],
)
def test_shares_fill_the_batch_and_follow_the_config(batch, replay, on_policy, group):
    config = toy(
        sleep={"batch": batch},
        replay={"share": replay},
        objective={"on_policy": on_policy},
        imitation={"group_size": group},
    )
    s = Shares.of(config)
    student = (s.groups_new + s.groups_replay) * group
    assert min(s.groups_new, s.groups_replay, s.teacher_new, s.teacher_replay) >= 0
    assert student + s.teacher_new + s.teacher_replay == batch or on_policy == 1.0
    assert abs(student - on_policy * batch) <= group / 2 + 1e-9
    assert abs(s.groups_replay * group + s.teacher_replay - replay * batch) <= group


def test_prefixes_follow_their_law(texts):
    config = toy(imitation={"prefix_min": 0.1, "prefix_max": 0.7})
    written, rng = TeacherSequence((), tuple(range(20)), False), random.Random(1)
    lengths = Counter(cut(written, config, rng).length for _ in range(6000))
    assert min(lengths) == 2 and max(lengths) == 13
    assert all(abs(n / 6000 - 1 / 12) < 0.015 for n in lengths.values())  # uniform over 2..13
    short = cut(TeacherSequence((), (5, 6), False), config, rng)
    assert short.begun_T == (5,) and short.rest_T == (6,)


def test_student_rows_give_both_terms_of_equation_6_on_the_same_samples(texts):
    config = toy(imitation={"group_size": 2, "scale_advantage": False})
    document = texts.context(Document("a", "one"))
    prefixes = [
        Prefix(TeacherSequence(document, (20, 21, 22, 2), False), 1),
        Prefix(TeacherSequence((1,), (30, 31, 2), True), 2),
    ]
    requests = continuation_requests(texts, prefixes, config, random.Random(0))
    assert [r.context_T for r in requests] == [(1,)] * 4  # never the document
    assert [r.prompt_T for r in requests] == [(*texts.opener, 20)] * 2 + [
        (*texts.opener, 30, 31)
    ] * 2
    samples = [
        replace(sample(texts, r.context_T, w), prompt_T=r.prompt_T)
        for r, w in zip(requests, ("a b", "c", "d", "e"), strict=True)
    ]
    samples[3] = Failure("late")
    pairs = pairs_of(prefixes, samples, 2)
    assert pairs[0].student_T == samples[0].completion_T and pairs[0].teacher_T == (21, 22, 2)
    assert pairs[2].teacher_T == (2,) and isinstance(pairs[3], Failure)
    groups = student_rows(texts, prefixes, samples, [1.0, 0.0, 0.5, Failure("late")], config)
    assert [len(g) for g in groups] == [2, 1]
    first = groups[0][0]
    assert first.prompt_T == (
        1,
        *texts.opener,
        20,
    ) and first.teacher_T == document + texts.opener + (20,)
    assert [r.advantage for r in groups[0]] == [0.5, -0.5] and first.behaviour_T == samples[
        0
    ].logprobs_T
    # one reward has no group
    assert groups[1][0].advantage is None and groups[1][0].replay and not first.replay
    assert [r.advantage for r in student_rows(texts, prefixes, samples, None, config)[0]] == [
        None,
        None,
    ]


def test_teacher_rows_hide_the_document_from_the_student(texts):
    document = texts.context(Document("a", "one"))
    (row,) = teacher_rows(texts, [TeacherSequence(document, (20, 21, 2), False)])
    assert row.prompt_T == (1, *texts.opener) and row.teacher_T == document + texts.opener
    assert row.completion_T == (20, 21, 2) and row.advantage is None and not row.behaviour_T


def test_rows_are_learned_at_the_temperature_that_what_was_written_carries(texts):
    written = TeacherSequence(texts.context(None), (20, 21, 2), True, (20,), temperature=0.5)
    [[student, _]] = student_rows(
        texts,
        [Prefix(written, 1)],
        [sample(texts, (1,), "a b")] * 2,
        None,
        toy(imitation={"group_size": 2}),
    )
    [taught], [read] = (
        teacher_rows(texts, [written]),
        whole_rows(texts, [replace(written, context_T=(1, 7))]),
    )
    assert {row.temperature for row in (student, taught, read)} == {0.5}
    assert teacher_rows(texts, [replace(written, temperature=1.0)])[0].temperature == 1


def test_reading_rows_show_the_document_to_both(texts):
    document = texts.context(Document("a", "one"))
    (row,) = reading_rows(texts, [TeacherSequence(document, (20, 21, 2), False)])
    # empty: the teacher reads the same
    assert row.prompt_T == document + texts.opener and row.teacher_T == ()
    assert row.completion_T == (20, 21, 2) and row.advantage is None and row.replay


def test_documents_of_the_teachers_own_end_where_they_ask(texts):
    config = toy(reading={"synthetic_documents": 4})
    begun = document_requests(texts, config, "1 0")
    assert [(r.prompt_T, r.context_T) for r in begun] == [((1,), ())] * 4 and len(
        {r.seed for r in begun}
    ) == 4
    asks, words = texts.opener[0], texts.ids("x is y .")
    ended = [
        sample(texts, (), "x is y ."),
        replace(sample(texts, (), "x is y ."), completion_T=(*words, asks)),
        sample(texts, (), "x is y .", "length"),
        sample(texts, (), ""),
        replace(sample(texts, (), ""), completion_T=(asks,)),
        Failure("gone"),
    ]
    assert documents_of(texts, ended) == [(1, *words)] * 3


def test_whole_rows_write_the_document_too(texts):
    """x of such a row is everything up to the answer; both read only what stands in front of every
    text.
    """
    document, question, answer = (
        texts.ids("x is y ."),
        texts.ids("what is x ? A :"),
        texts.ids("y") + texts.eos,
    )
    [row] = whole_rows(texts, [TeacherSequence((1, *document), question + answer, False)])
    assert row.prompt_T == (1,) and row.completion_T == document + texts.opener + question + answer
    assert row.completion_T[row.x_length :] == answer and row.replay and row.teacher_T == ()


def test_what_is_written_comes_back_from_plain_data(texts):
    data = [
        TeacherSequence((1, 7, 8), (20, 2), False),
        TeacherSequence((1,), (21, 2), True, (21,), 3, 0.1),
        TeacherSequence((1, 7, 8), (22, 2), False),
    ]
    data[1] = replace(data[1], temperature=0.5)
    plain = json.loads(json.dumps(packed(data)))
    assert unpacked(plain) == data and plain["contexts"] == [[1, 7, 8], [1]]  # each context once


def test_answers_that_the_teacher_doubts_are_left_out(texts):
    """Of the answer's probability, two tokens and eos here; what nobody asked for and no document
    says is never doubted.
    """
    document, plain = texts.context(Document("a", "one")), texts.context(None)
    asked = texts.ids("what is x ? A :")

    def answer(context, prompt, logprob):
        ids = texts.ids("y z") + texts.eos
        written = ids if prompt else asked + ids
        logprobs = (-9.0,) * (len(written) - 3) + (logprob,) * 3
        return Sample(
            texts.opener + prompt,
            context,
            written,
            logprobs,
            "stop",
            0,
            "teacher",
            (1,) * len(written),
        )

    sure, unsure = math.log(0.9), math.log(0.7)  # 0.729 and 0.343 together
    about = [answer(document, (), sure), answer(document, (), unsure), answer(plain, (), unsure)]
    data, left = readable(texts, about, 0.5)
    assert [(w.context_T, w.replay) for w in data] == [(document, False), (plain, True)] and left[
        "unsure"
    ] == 1
    again = rehearsed([asked, asked], [answer(plain, asked, sure), answer(plain, asked, unsure)])
    data, left = readable(texts, again, 0.5)
    assert [(w.prompt_T, w.sequence_T) for w in data] == [(asked, about[0].completion_T)] and left[
        "unsure"
    ] == 1
    assert readable(texts, about + again)[1]["unsure"] == 0

"""The data of a night: pure functions on tiny texts, and a night with a checking fake crew."""

import json
import math
import random
from collections import Counter
from dataclasses import replace

import pytest

from sleep_rl.contracts.errors import Failure
from sleep_rl.contracts.records import Day, Document, Question, Sample
from sleep_rl.night.continuations import (
    Prefix,
    continuation_requests,
    cut,
    reward_pairs,
    student_rows,
)
from sleep_rl.night.generation import (
    document_requests,
    synthetic_contexts,
    synthetic_requests,
    unconditional_requests,
)
from sleep_rl.night.plan import CONTEXT, Shares, fitted, plan_consolidation
from sleep_rl.night.rehearsal import with_prompts
from sleep_rl.night.rows import reading_rows, synthetic_document_rows, teacher_rows
from sleep_rl.night.samplers import EpochSampler
from sleep_rl.night.sequences import Origin, TeacherSequence, filter_complete, pack, unpack
from sleep_rl.text.codec import PromptCodec
from tests.fakes.configs import toy
from tests.fakes.texts import Asking, Words


@pytest.fixture
def texts():
    return PromptCodec(Asking(), Words())


def sample(texts, context, words, reason="stop"):
    ids = texts.ids(words) + (texts.eos if reason == "stop" else ())
    return Sample((), context, ids, (-1.0,) * len(ids), reason, 0, "teacher", (1,) * len(ids))


def test_codec_contexts_split_and_baseline_rows(texts):
    document = Document("d", "x is y")
    assert texts.context(None) == (1,) and texts.context(document) == (1, *texts.ids("x is y"))
    assert texts.document(document) == (*texts.context(document), 2)
    written = texts.ids("what is x ? A : y") + texts.eos
    assert texts.split(written) == (texts.ids("what is x ? A :"), texts.ids("y") + texts.eos)
    assert texts.split(texts.ids("what is x ? A :") + texts.eos) is None
    assert texts.split(texts.ids("no marker here")) is None
    assert texts.question(Question("q", "Q : who ? A :", "me")) == texts.ids("Q : who ? A :")


def test_too_long_and_empty_documents_give_one_line_errors(texts):
    from sleep_rl.contracts.errors import InputError

    texts.check_fits([Document("ok", "a b c")], 18)
    with pytest.raises(InputError, match=r"document long: at most 3 tokens fit .* = 18, got 4"):
        texts.check_fits([Document("ok", "a b c"), Document("long", "a b c d")], 18)
    with pytest.raises(InputError, match=r"document void: .* empty"):
        texts.check_fits([Document("void", " ")], 18)


def test_requests_with_and_without_documents(texts):
    documents = (Document("a", "one"), Document("b", "two"))

    def requests_of(seed):
        seeds = random.Random(seed)
        about = document_requests(texts, documents, 3, seeds)
        return about, unconditional_requests(texts, 5, seeds)

    about, unconditional = requests_of(1)
    requests = about + unconditional
    assert {r.context_T for r in unconditional} == {texts.context(None)}
    contexts = Counter(r.context_T for r in requests)
    assert contexts == {
        texts.context(documents[0]): 3,
        texts.context(documents[1]): 3,
        texts.context(None): 5,
    }
    assert {r.prompt_T for r in requests} == {texts.opener}
    assert len({r.seed for r in requests}) == 11
    assert requests_of(1) == (about, unconditional) != requests_of(2)
    assert unconditional_requests(texts, 0, random.Random(1)) == []


def test_filter_complete_counts_dropped_samples(texts):
    document = texts.context(Document("a", "one"))
    good = replace(sample(texts, document, "who ? A : me"), prompt_T=texts.opener)
    bad = [
        sample(texts, document, "who ? A : me and", "length"),
        sample(texts, document, "who ?"),
        Failure("engine died"),
    ]
    probability = pytest.approx(math.exp(-2.0))  # y and eos, a nat each
    for origin in (Origin.DOCUMENT, Origin.UNCONDITIONAL):
        data, dropped = filter_complete(texts, [good, *bad], origin)
        assert data == [
            TeacherSequence(
                origin,
                document + texts.opener,
                texts.bare,
                good.completion_T,
                x_length=len(texts.ids("who ? A :")),
                answer_probability=probability,
            )
        ]
        assert dropped == {"failed": 1, "unfinished": 1, "no answer": 1, "unsure": 0}
    assert [d.replay for d in data] == [True]
    [peer], _ = filter_complete(texts, [good], Origin.PEER, teacher=2)
    assert (peer.teacher, peer.replay) == (2, False)


def test_epoch_sampler_draws_without_replacement():
    data = [TeacherSequence(Origin.DOCUMENT, (), (), (i,)) for i in range(7)]
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
        (32, 0.5, 1.0, 3),
    ],
)
def test_shares_sum_to_the_batch(batch, replay, on_policy, group):
    config = toy(sleep={"batch": batch}, imitation={"group_size": group})
    s = Shares.of(config, replay, on_policy)
    student = (s.groups_new + s.groups_replay) * group
    assert min(s.groups_new, s.groups_replay, s.teacher_new, s.teacher_replay) >= 0
    assert student + s.teacher_new + s.teacher_replay == batch or on_policy == 1.0
    nearest = abs(student - on_policy * batch) <= group / 2 + 1e-9
    assert nearest or student + group > batch  # no group more fits
    assert abs(s.groups_replay * group + s.teacher_replay - replay * batch) <= group


@pytest.mark.parametrize(
    "epochs, sequences, steps",
    [(0.0, 5, 100), (3.0, 20, 10), (3.0, 21, 11), (3.0, 2000, 100), (3.0, 0, 100)],
)
def test_a_consolidation_has_at_most_the_epochs_of_its_new_sequences(epochs, sequences, steps):
    config = toy(
        sleep={"batch": 10, "steps": 100, "epochs": epochs},
        replay={"share": 0.4},
        objective={"on_policy": 0.0},
    )
    day = Day("day1", (), ())
    plan = plan_consolidation(config, 1, CONTEXT, 100, day)
    assert fitted(plan, config, sequences, 7) == replace(plan, steps=steps)
    of_level = plan_consolidation(config, 1, 2, 100, day)
    assert fitted(of_level, config, sequences, 7) == of_level


def test_rows_without_rehearsed_sequences_are_new_ones_or_unconditional():
    config = toy(rehearsal={"share": 0.75, "instead": "new"}, replay={"share": 0.4})
    plan = plan_consolidation(config, 1, CONTEXT, 100, Day("day1", (), ()))
    assert fitted(plan, config, 9, rehearsed=1) == plan
    assert fitted(plan, config, 9, rehearsed=0).replay_share == pytest.approx(0.1)
    config = toy(rehearsal={"share": 0.75}, replay={"share": 0.4})
    assert fitted(plan, config, 9, rehearsed=0) == plan


def test_distribution_of_prefixes(texts):
    config = toy(imitation={"prefix": [0.1, 0.7]})
    written = TeacherSequence(Origin.DOCUMENT, (), (), tuple(range(20)))
    rng = random.Random(1)
    lengths = Counter(cut(texts, written, config, rng).length for _ in range(6000))
    assert min(lengths) == 2 and max(lengths) == 13
    assert all(abs(n / 6000 - 1 / 12) < 0.015 for n in lengths.values())  # uniform over 2..13
    short = cut(texts, TeacherSequence(Origin.DOCUMENT, (), (), (5, 6)), config, rng)
    assert short.tokens_T == (5,) and short.teacher_continuation_T == (6,)


def test_student_rows(texts):
    config = toy(imitation={"group_size": 2})
    bare = texts.bare
    document = texts.context(Document("a", "one")) + texts.opener
    prefixes = [
        Prefix(TeacherSequence(Origin.DOCUMENT, document, bare, (20, 21, 22, 2), 3), 1),
        Prefix(TeacherSequence(Origin.UNCONDITIONAL, bare, bare, (30, 31, 2), 2), 2),
    ]
    requests = continuation_requests(prefixes, config, random.Random(0))
    assert [r.context_T for r in requests] == [(1, *texts.opener)] * 4  # never the document
    assert [r.prompt_T for r in requests] == [(20,)] * 2 + [(30, 31)] * 2
    samples = [
        replace(sample(texts, r.context_T, w), prompt_T=r.prompt_T)
        for r, w in zip(requests, ("a b", "c", "d", "e"), strict=True)
    ]
    samples[3] = Failure("late")
    pairs = reward_pairs(prefixes, samples, 2)
    assert pairs[0].student_T == samples[0].completion_T and pairs[0].teacher_T == (21, 22, 2)
    assert pairs[2].teacher_T == (2,) and isinstance(pairs[3], Failure)
    groups = student_rows(texts, prefixes, samples, [1.0, 0.0, 0.5, Failure("late")], config)
    assert [len(g) for g in groups] == [2, 1]
    first = groups[0][0]
    assert first.prompt_T == (
        1,
        *texts.opener,
        20,
    ) and first.teacher_T == (*document, 20)
    assert [r.advantage for r in groups[0]] == pytest.approx([0.5**0.5, -(0.5**0.5)], abs=1e-5)
    assert first.behaviour_T == samples[0].logprobs_T
    # one reward has no group
    assert groups[1][0].advantage is None and groups[1][0].replay and not first.replay
    assert [r.advantage for r in student_rows(texts, prefixes, samples, None, config)[0]] == [
        None,
        None,
    ]


def test_teacher_rows_hide_the_document_from_the_student(texts):
    document = texts.context(Document("a", "one")) + texts.opener
    (row,) = teacher_rows([TeacherSequence(Origin.DOCUMENT, document, texts.bare, (20, 21, 2), 1)])
    assert row.prompt_T == (1, *texts.opener) and row.teacher_T == document and row.x_length == 1
    assert row.completion_T == (20, 21, 2) and row.advantage is None and not row.behaviour_T


def test_rows_have_the_temperature_of_their_sequence(texts):
    written = TeacherSequence(
        Origin.REHEARSED, texts.bare, texts.bare, (20, 21, 2), 1, (20,), temperature=0.5
    )
    [[student, _]] = student_rows(
        texts,
        [Prefix(written, 1)],
        [sample(texts, (1,), "a b")] * 2,
        None,
        toy(imitation={"group_size": 2}),
    )
    [taught] = teacher_rows([written])
    [read] = synthetic_document_rows(texts, [replace(written, context_T=(1, 7))])
    assert {row.temperature for row in (student, taught, read)} == {0.5}
    assert teacher_rows([replace(written, temperature=1.0)])[0].temperature == 1


def test_the_hard_share_is_of_answers_that_were_given(texts):
    own = TeacherSequence(Origin.DOCUMENT, (1, 9), texts.bare, (20, 21, 2), 1)
    given = replace(own, given=True)
    others = [replace(own, origin=o) for o in Origin if o != Origin.DOCUMENT]
    shares = [row.hard_share for row in teacher_rows([given, own, *others], 0.3)]
    assert shares == [0.3] + [0.0] * (1 + len(others))
    assert teacher_rows([given])[0].hard_share == 0


def test_reading_rows_have_the_document_for_both(texts):
    document = texts.context(Document("a", "one")) + texts.opener
    (row,) = reading_rows([TeacherSequence(Origin.DOCUMENT, document, texts.bare, (20, 21, 2), 1)])
    # empty: the teacher reads the same
    assert row.prompt_T == document and row.teacher_T == ()
    assert row.completion_T == (20, 21, 2) and row.advantage is None and row.replay


def test_synthetic_contexts_end_at_the_opener(texts):
    begun = synthetic_requests(texts, 4, random.Random(0))
    assert [(r.prompt_T, r.context_T) for r in begun] == [((1,), ())] * 4 and len(
        {r.seed for r in begun}
    ) == 4
    asks = texts.opener[0]
    words = texts.ids("x is y .")
    ended = [
        sample(texts, (), "x is y ."),
        replace(sample(texts, (), "x is y ."), completion_T=(*words, asks)),
        sample(texts, (), "x is y .", "length"),
        sample(texts, (), ""),
        replace(sample(texts, (), ""), completion_T=(asks,)),
        Failure("gone"),
    ]
    assert synthetic_contexts(texts, ended) == [(1, *words)] * 3


def test_loss_of_synthetic_document_rows_covers_the_document(texts):
    """x of such a row is everything before the answer; teacher and student both read only the
    start.
    """
    document = texts.ids("x is y .")
    question = texts.ids("what is x ? A :")
    answer = texts.ids("y") + texts.eos
    before = (1, *document, *texts.opener)
    sequence = TeacherSequence(
        Origin.SYNTHETIC, before, texts.bare, question + answer, len(question)
    )
    [row] = synthetic_document_rows(texts, [sequence])
    assert row.prompt_T == (1,) and row.completion_T == document + texts.opener + question + answer
    assert row.completion_T[row.x_length :] == answer and row.replay and row.teacher_T == ()


def test_pack_round_trip(texts):
    data = [
        TeacherSequence(Origin.DOCUMENT, (1, 7, 8), (1,), (20, 2), 1),
        TeacherSequence(Origin.PEER, (1,), (1,), (21, 2), 1, (21,), 3, 0.1),
        TeacherSequence(Origin.SYNTHETIC, (1, 7, 8), (1,), (22, 2), 0),
    ]
    data[1] = replace(data[1], temperature=0.5, document="day1/a.txt", given=True)
    plain = json.loads(json.dumps(pack(data)))
    assert unpack(plain) == data and plain["contexts"] == [[1, 7, 8], [1]]  # each context once


def test_answers_with_low_confidence_are_dropped(texts):
    """By the probability of the answer, here of two tokens and eos."""
    document = texts.context(Document("a", "one"))
    plain = texts.context(None)
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

    sure = math.log(0.9)  # 0.729 together
    unsure = math.log(0.7)  # 0.343 together
    about = [answer(document, (), sure), answer(document, (), unsure)]
    data, dropped = filter_complete(texts, about, Origin.DOCUMENT, min_confidence=0.5)
    assert [w.context_T for w in data] == [document + texts.opener] and dropped["unsure"] == 1
    answers = [answer(plain, asked, sure), answer(plain, asked, unsure)]
    data, dropped = filter_complete(
        texts, with_prompts([asked, asked], answers), Origin.REHEARSED, min_confidence=0.5
    )
    assert [(w.prompt_T, w.sequence_T) for w in data] == [(asked, about[0].completion_T)]
    assert dropped["unsure"] == 1 and data[0].replay
    assert filter_complete(texts, about, Origin.DOCUMENT)[1]["unsure"] == 0

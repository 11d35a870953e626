"""benchmarks/night_parts.py: what the parts of a night must multiply, and what they measure."""

from __future__ import annotations

import pytest

from benchmarks.matmul_work import Decoder, Rate, Work
from benchmarks.night_parts import (
    PASS_ROWS,
    LearnerWork,
    Part,
    measure_learning,
    measure_writing,
    writing_works,
)
from benchmarks.smollm2_rows import SmolNight, student_tokens
from learners.document_states import document_of
from sleep_rl.contracts.records import TrainingRow
from sleep_rl.model.shape import PACKAGED_SHAPES
from tests.fakes.models import make_base

SHAPE = PACKAGED_SHAPES["smollm2-135m-instruct"]
DECODER = Decoder(SHAPE, 64, 15)
BARE = (1, 2, 3)
DOCUMENT = (1, *range(100, 180))
SMALL = (
    "model.format=raw",
    "model.dtype=float32",
    "model.memory_layers=1",
    "model.d_low=4",
    "model.experts=2",
    "model.top_k=2",
    "sleep.batch=10",
    "replay.share=0.4",
    "rehearsal.share=0.75",
    "rehearsal.instead=new",
    "learners.threads=1",
    "rollouts.engine.max_model_len=4096",
    "rollouts.engine.kv_cache_memory_bytes=33554432",
)


def rows_of(*completions):
    return [
        TrainingRow(BARE, completion_T, DOCUMENT, shared=len(DOCUMENT))
        for completion_T in completions
    ]


def learner_work():
    return LearnerWork(DECODER, lambda key: document_of(key) if key.shared else None)


def test_writing_is_one_pass_over_each_prompt_and_one_token_after_the_other():
    prompts = [(20, 16), (9, 0)]
    written = [3, 1]
    read, behind = writing_works(DECODER, prompts, written)
    assert read == Work(PASS_ROWS, DECODER.forward(4, 16) + DECODER.forward(9))
    one_by_one = DECODER.forward(1, 20) + DECODER.forward(1, 21)
    assert behind == Work(2, one_by_one, 4 * 2 * SHAPE.hidden * SHAPE.vocab)


def test_a_document_is_read_once_and_known_rows_need_neither_teacher_nor_trunk():
    work = learner_work()
    rows = rows_of((5, 6), (7, 8, 9))
    before = len(DOCUMENT) - 1  # the last token predicts the completion's first
    expected = DECODER.forward(before) + DECODER.forward(3, before) + DECODER.forward(4, before)
    assert work.teacher(rows) == Work(PASS_ROWS, expected)
    new = work.student(rows)
    known = work.student(rows)
    assert work.teacher(rows) == Work(PASS_ROWS, 0.0)
    trunks = DECODER.forward(5, last=15) + DECODER.forward(6, last=15)
    assert new.layers - known.layers == pytest.approx(trunks)
    upper = sum(DECODER.forward(n, first=15, experts=1) + DECODER.backward(n) for n in (5, 6))
    assert known.layers == pytest.approx(upper)
    assert known.head == 3 * 5 * 2 * SHAPE.hidden * SHAPE.vocab


def test_a_header_that_rows_share_counts_once_in_the_layers_with_memory():
    header = tuple(range(200, 220))
    rows = [
        TrainingRow((*header, asked), completion_T, DOCUMENT, shared=len(DOCUMENT))
        for asked, completion_T in ((5, (6, 7)), (8, (9,)))
    ]
    work = learner_work()
    work.student(rows)
    upper = DECODER.forward(20, first=15, experts=1) + DECODER.backward(20)
    for tokens in (3, 2):
        upper += DECODER.forward(tokens, 20, first=15, experts=1) + DECODER.backward(tokens, 20)
    assert work.student(rows).layers == pytest.approx(upper)


def test_without_caches_every_row_is_read_whole():
    work = LearnerWork(Decoder(SHAPE, 64, 0), lambda key: None)
    rows = rows_of((5, 6), (7, 8, 9))
    expected = sum(DECODER.forward(len(DOCUMENT) + len(row.completion_T)) for row in rows)
    assert work.teacher(rows).layers == pytest.approx(expected)
    assert work.student(rows) == work.student(rows)


def test_a_row_of_the_table_has_the_bound_of_its_threads():
    part = Part("part", 2, tokens=40, seconds=8.0, works=(Work(4, 100.0), Work(9, 10.0, 20.0)))
    rates = {(2, 4): Rate(50.0, 1.0), (2, 9): Rate(10.0, 20.0), (1, 4): Rate(1.0, 1.0)}
    assert part.row(rates) == ("part", "2", "5", "10", "0.50")


@pytest.fixture(scope="module")
def night(tmp_path_factory):
    base = tmp_path_factory.mktemp("base") / "tiny"
    make_base("llama", str(base), max_position_embeddings=4096)
    return SmolNight([f"model.base={base}", *SMALL])


def test_batches_are_distinct_rows_with_the_shares_of_a_first_night(night):
    batches = night.batches(3)
    assert batches == SmolNight.batches(night, 3)
    rows = [row for batch in batches for row in batch]
    assert [len(batch) for batch in batches] == [10] * 3
    assert [sum(row.replay for row in batch) for batch in batches] == [1] * 3
    assert len({row.prompt_T + row.completion_T for row in rows}) == 30
    assert all(row.x_length == 0 and (row.replay or row.shared) for row in rows)
    with pytest.raises(SystemExit, match=r"--steps: at most \d+ distinct rows"):
        night.batches(10**4)


@pytest.mark.stack
def test_the_parts_of_a_learner_are_measured(night):
    parts = measure_learning(night, 1)
    assert [part.name for part in parts] == [
        "teacher reads, new rows",
        "student learns, new rows",
        "whole step, new rows",
        "student learns, known rows",
        "whole step, known rows",
    ]
    reads, learns, whole = parts[:3]
    assert whole.seconds == pytest.approx(reads.seconds + learns.seconds)
    assert whole.works == reads.works + learns.works
    assert {part.tokens for part in parts} == {student_tokens(night.batches(2)[0])}


@pytest.mark.stack
def test_the_writing_of_an_engine_is_measured(night):
    [part] = measure_writing(night, 3)
    assert 3 <= part.tokens <= 3 * night.question_tokens and part.seconds > 0
    assert part.works[1].rows == 3

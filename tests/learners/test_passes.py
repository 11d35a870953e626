"""Passes: padding, balance of the ranks, and that an optimizer step does not depend on them."""

import random
from dataclasses import replace

import pytest

from learners.passes import (
    FILLER,
    MAX_PADDING,
    assign_to_ranks,
    micro_batches,
    split_into_passes,
    student_length,
)
from sleep_rl.contracts.records import HARD_TARGET, TrainingRow
from tests.learners.twins import CONFIG, ROWS

SLOWEST = 1.15  # a step's slowest rank over the mean, in padded tokens


def short(rng):
    """Length of a sequence of the toy task, or of a labelled utterance."""
    return rng.randint(8, 30)


def document(rng):
    """Length of a sequence after its document."""
    return rng.randint(100, 800)


def long_tail(rng):
    return min(500, int(15 * rng.paretovariate(1.6)) + 8)


def with_reading(rng):
    """Lengths of utterances; one row in twelve is after a page."""
    page = max(20, int(rng.gauss(110, 40))) if rng.random() < 1 / 12 else 0
    return max(5, int(rng.gauss(20, 5))) + page


LENGTHS = [short, document, long_tail, with_reading]


def padded_tokens(lengths, passes):
    return [len(numbers) * max(lengths[n] for n in numbers) for numbers in passes]


@pytest.mark.parametrize("length_of", LENGTHS)
@pytest.mark.parametrize("world", [1, 2, 3, 4, 8, 16])
def test_padding_is_bounded_and_ranks_are_balanced(world, length_of):
    """With 20 rows per rank, none longer than half of a rank's mean."""
    rng = random.Random(f"{world} {length_of.__name__}")
    checked = 0
    for budget in (256, 1024, 4096):
        for rows in (20, 40):
            lengths = [length_of(rng) for _ in range(rows * world)]
            shares = assign_to_ranks(lengths, world)
            assert sorted(n for share in shares for n in share) == list(range(len(lengths)))
            batch = [TrainingRow((5,), (7,) * (length - 1)) for length in lengths]
            per_rank = [
                [part.numbers for part in micro_batches(batch, shares, rank, budget)]
                for rank in range(world)
            ]
            tokens = [sum(padded_tokens(lengths, passes)) for passes in per_rank]
            assert sum(tokens) <= MAX_PADDING * sum(lengths)
            if max(lengths) <= sum(lengths) / world / 2:
                assert max(tokens) <= SLOWEST * sum(tokens) / world
                checked += 1
    assert checked >= 2


@pytest.mark.parametrize("length_of", LENGTHS)
def test_passes_are_the_fewest_within_the_budget(length_of):
    rng = random.Random(length_of.__name__)
    for count in (1, 2, 5, 9):
        lengths = [length_of(rng) for _ in range(count)]
        for budget in (1, 100, 1000, 10**6):
            passes = split_into_passes(lengths, budget)
            assert sorted(n for numbers in passes for n in numbers) == list(range(count))
            best = slow_split(lengths, budget)
            assert (len(passes), sum(padded_tokens(lengths, passes))) == best
            for numbers, tokens in zip(passes, padded_tokens(lengths, passes), strict=True):
                assert tokens <= budget or len(numbers) == 1
            more = split_into_passes(lengths, budget, min_passes=count - 1)
            assert len(more) == max(len(passes), count - 1)


def slow_split(lengths, budget):
    """Return (fewest passes, their padded tokens) over all partitions of the sorted rows."""
    lengths = sorted(lengths)

    def cuts(rest):
        if not rest:
            yield 0, 0
        for size in range(1, len(rest) + 1):
            tokens = size * rest[size - 1]
            if size == 1 or tokens <= budget:
                for passes, others in cuts(rest[size:]):
                    yield passes + 1, tokens + others

    return min(c for c in cuts(lengths) if c[1] <= MAX_PADDING * sum(lengths))


def test_ranks_make_equally_many_passes_and_fillers_have_weight_0():
    rows = [TrainingRow((5,), (7,) * n) for n in (3, 4, 50, 4)]
    shares = assign_to_ranks([student_length(row) for row in rows], 3)
    parts = [micro_batches(rows, shares, rank, 9) for rank in range(3)]
    assert [[part.numbers for part in mine] for mine in parts] == [
        [[2], [FILLER]],
        [[0], [1]],
        [[3], [FILLER]],
    ]
    filler = parts[0][1]
    assert filler.weights == [0.0] and filler.rows == [replace(rows[0], teacher=HARD_TARGET)]
    assert split_into_passes([], 10) == []
    fewer = assign_to_ranks([4], 3)
    assert [len(micro_batches(rows[:1], fewer, rank, 10)) for rank in range(3)] == [1, 1, 1]


def test_an_optimizer_step_does_not_depend_on_its_passes(worker):
    """Loss, gradient norm and divergences, from one row per pass to all rows in one pass."""
    rows = [*ROWS, replace(ROWS[0], teacher=HARD_TARGET), replace(ROWS[1], temperature=0.5)]
    results = []
    for budget in (1, 12, 20, 4096):
        learner = worker(replace(CONFIG, learners=replace(CONFIG.learners, pass_tokens=budget)))
        learner.open_night(1)
        metrics = [learner.sft_step(rows, 0, 4)]
        steps = [learner.seed_step(rows, step, 4) for step in (1, 2)]
        metrics += [step.metrics for step in steps]
        assert all(each.pop("seconds") > 0 for each in metrics)
        results.append((metrics, [step.divergence_N for step in steps]))
    for metrics, divergence in results[1:]:
        for mine, first in zip(metrics, results[0][0], strict=True):
            assert mine == {name: pytest.approx(value, abs=1e-5) for name, value in first.items()}
        for mine, first in zip(divergence, results[0][1], strict=True):
            assert mine == pytest.approx(first, abs=1e-5)

"""The rehearsal index: indexed prompts, weights and draws."""

import json
import random
from collections import Counter

import pytest

from sleep_rl.session.rehearsal_index import DECAY, MIN_DIVERGENCE, RehearsalIndex


def test_most_frequent_prompts_are_indexed_once():
    index = RehearsalIndex()
    index.add(1, [(5, 6), (7,), (5, 6), (8,), (7,), (5, 6)], limit=2)
    assert index.prompts == {(5, 6): 1, (7,): 1}
    index.add(2, [(7,), (9,)], limit=5)
    assert index.prompts == {(5, 6): 1, (7,): 1, (9,): 2}  # a prompt stays with its first night


def test_prompts_are_drawn_in_proportion_to_divergence():
    index = RehearsalIndex()
    index.add(1, [(1,), (2,), (3,), (4,)], limit=4)
    index.update((1,), 0.9)
    index.update((2,), 0.3)
    # counts as a tenth of the mean 0.4; (4,) was never met and counts as the mean
    index.update((3,), 0.0)
    want = {(1,): 0.9, (2,): 0.3, (3,): 0.04, (4,): 0.4}
    assert index.weights(list(want)) == pytest.approx(list(want.values()))
    drawn = Counter(index.draw(20_000, random.Random(0)))
    for x, weight in want.items():
        assert drawn[x] / 20_000 == pytest.approx(weight / sum(want.values()), abs=0.01)


def test_divergence_is_a_moving_average():
    index = RehearsalIndex()
    index.update((1,), 1.0)
    index.update((1,), 0.0)
    assert index.divergence[(1,)] == pytest.approx(DECAY)


def test_negative_rounding_gives_equal_weights():
    index = RehearsalIndex()
    index.add(1, [(1,), (2,)], limit=2)
    index.update((1,), -1e-9)
    assert (
        index.weights([(1,), (2,)]) == [MIN_DIVERGENCE, MIN_DIVERGENCE]
        and len(index.draw(3, random.Random(0))) == 3
    )


def test_uniform_rehearsal_and_empty_index():
    index = RehearsalIndex(by_divergence=False)
    assert index.draw(3, random.Random(0)) == []
    index.add(1, [(1,), (2,)], limit=2)
    index.update((1,), 5.0)
    assert index.weights([(1,), (2,)]) == [1.0, 1.0]


def test_every_prompt_is_drawn_once_if_the_count_suffices():
    """Only prompts with an answer can be rehearsed, whatever their weight."""
    index = RehearsalIndex()
    index.add(1, [(n,) for n in range(20)], 20)
    for n in range(20):
        index.update((n,), 5.0 if n < 2 else 0.0)
    drawn = index.draw(50, random.Random(0))
    assert len(drawn) == 50 and set(drawn) == set(index.prompts)
    assert sum(x in ((0,), (1,)) for x in drawn[20:]) > 20  # of 30, by weight
    assert (
        len(index.draw(7, random.Random(0))) == 7
        and RehearsalIndex().draw(7, random.Random(0)) == []
    )


def test_retired_prompts_come_back_with_a_rollback():
    index = RehearsalIndex()
    index.add(1, [(1,), (2,)], limit=2, documents={(1,): "day1/a", (2,): "day1/b"})
    index.update((1,), 0.5)
    index.retire(2, [(1,)])
    index.add(2, [(3,)], limit=2, documents={(3,): "day2/a"})
    assert index.prompts == {(2,): 1, (3,): 2} and index.divergence == {}
    assert index.documents == {(2,): "day1/b", (3,): "day2/a"}
    restored = RehearsalIndex()
    restored.restore(json.loads(json.dumps(index.state())))
    assert restored == index
    restored.roll_back(2)
    assert restored.prompts == {(2,): 1, (1,): 1}
    assert restored.documents == {(1,): "day1/a", (2,): "day1/b"}
    index.roll_back(3)  # another night's rollback
    assert index.prompts == {(2,): 1, (3,): 2}


def test_prompts_can_be_left_out_of_a_draw():
    index = RehearsalIndex()
    index.add(1, [(1,), (2,)], limit=2)
    assert set(index.draw(9, random.Random(0), without={(1,)})) == {(2,)}
    assert index.draw(9, random.Random(0), without={(1,), (2,)}) == []

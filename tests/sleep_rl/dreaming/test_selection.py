"""Selection of tasks and dreams, and rewards, compared with paper.md section 4 in plain numbers."""

import math
import random
from collections import Counter

import pytest

from sleep_rl.config.dreams import DreamConfig
from sleep_rl.contracts.errors import Failure
from sleep_rl.contracts.records import Document, DreamTask, Question
from sleep_rl.dreaming.dream import Dream
from sleep_rl.dreaming.selection import draw_tasks, dream_importance, greedy, keep
from sleep_rl.dreaming.trials import judged

TASKS = [
    DreamTask(f"day{d}/{i}", f"day{d}", Document(f"{d}{i}", "c"), (Question("q", "p", "a"),))
    for d in (1, 2, 3)
    for i in range(4)
]


def vectors(count, seed=0, width=5):
    rng = random.Random(seed)
    return [[rng.gauss(0, 1) for _ in range(width)] for _ in range(count)]


def dot(a, b):
    return sum(x * y for x, y in zip(a, b, strict=True))


def matrix(rows):
    return [[dot(a, b) for b in rows] for a in rows]


def dream(task="t", number=0, **fields):
    return Dream(task, number, 0, None, {}, (5, 1), "x", -1.0, **fields)


def test_omega_is_inner_product_or_norm():
    *dreams, c = rows = vectors(7)
    assert dream_importance(matrix(rows), "inner") == pytest.approx([dot(g, c) for g in dreams])
    assert dream_importance(matrix(rows), "norm") == pytest.approx(
        [math.sqrt(dot(g, g)) for g in dreams]
    )


@pytest.mark.parametrize("how", ["inner", "norm"])
def test_keep_top_and_random(how):
    gram = matrix(vectors(11))
    config = DreamConfig(dreams_per_task=10, keep_top=3, keep_random=2, importance=how)
    omega, kept = keep(gram, config, random.Random(0))
    best = sorted(range(10), key=lambda i: -omega[i])[:3]
    assert set(best) < set(kept) and len(kept) == len(set(kept)) == 5 and kept == sorted(kept)
    others = Counter(
        i
        for seed in range(300)
        for i in keep(gram, config, random.Random(seed))[1]
        if i not in best
    )
    assert set(others) == set(range(10)) - set(best) and max(others.values()) < 2 * min(
        others.values()
    )


def test_random_importance_is_uniform():
    gram = matrix(vectors(11))
    counts = Counter(
        i
        for seed in range(500)
        for i in keep(
            gram,
            DreamConfig(dreams_per_task=10, keep_top=3, keep_random=2, importance="random"),
            random.Random(seed),
        )[1]
    )
    assert (
        sum(counts.values()) == 2500 and min(counts.values()) > 180 and max(counts.values()) < 320
    )


def test_few_dreams_are_all_kept_and_nan_ranks_last():
    config = DreamConfig(keep_top=4, keep_random=1)
    assert keep(matrix(vectors(3)), config, random.Random(0))[1] == [0, 1]
    gram = matrix(vectors(4))
    for how in ("inner", "greedy"):
        best = max((0, 1, 2), key=lambda i: gram[i][3] if math.isfinite(gram[i][3]) else -math.inf)
        gram[best][3] = math.nan
        config = DreamConfig(keep_top=1, keep_random=0, importance=how)
        assert best not in keep(gram, config, random.Random(0))[1]


def test_greedy_subtracts_overlap_with_chosen_dreams():
    """GREATS by definition: each time the dream whose step, after the steps on the chosen ones,
    lowers the loss on C most, to first order in a quadratic of curvature one.
    """
    *dreams, c = rows = vectors(9, seed=3)
    eta = 1 / max(dot(g, g) for g in dreams)
    chosen = []
    for _ in range(4):
        # C's gradient by then
        moved = [c_x - eta * sum(dreams[j][x] for j in chosen) for x, c_x in enumerate(c)]
        chosen.append(
            max((i for i in range(8) if i not in chosen), key=lambda i: dot(dreams[i], moved))
        )
    assert greedy(matrix(rows), 4) == chosen
    mixed = [2 * x + 3 * y for x, y in zip(dreams[0], dreams[1], strict=True)]
    twice = [dreams[0], dreams[0], dreams[1], mixed]
    assert len(set(greedy(matrix(twice), 3))) == 3
    config = DreamConfig(keep_top=4, keep_random=0, importance="greedy")
    assert keep(matrix(rows), config, random.Random(0))[1] == sorted(chosen)


@pytest.mark.parametrize(
    "before,taus,reward",
    [
        (0.5, (0.5, 0.5, 0.5), 0),
        (0.5, (0.4, 0.5, 0.7), 1),
        (0.5, (0.2, 0.5, 0.7), 0),
        (0.0, (0.0,), 0),
        (1.0, (1.0, 1.0), 0),
        (0.2, (0.1, 0.4), 1),
        (0.2, (0.2, 0.2, 0.2), 0),
        (0.1, (0.1, 0.1, 0.1), 0),
        (5 / 14, (4 / 14, 5 / 14, 6 / 14), 0),
        (5 / 14, (5 / 14, 5 / 14, 6 / 14), 1),
    ],
)
def test_reward_is_one_if_the_mean_tau_exceeds_the_model(before, taus, reward):
    assert judged(before, taus, 0.9) == (before, taus, reward, pytest.approx(0.9 - before))


def test_failed_tau_gives_no_reward():
    bad = Failure("the copy's loss became nan", "critic")
    assert judged(0.5, (0.7, bad, 0.9), 0.9) is bad and judged(bad, (0.7,), 0.9) is bad
    assert judged(0.5, (0.7,), bad) == (0.5, (0.7,), 1, None)  # only the seed beside it failed


def test_gain_is_mean_tau_minus_tau_before():
    tried = dream("a", 1, tau_before=0.2, taus=(0.4, 0.6), reward=1)
    assert tried.gain == pytest.approx(0.3) and dream().gain is None


def test_curriculum_weights():
    def share(how, accuracy):
        drawn = Counter(
            t.day
            for seed in range(400)
            for t in draw_tasks(
                TASKS, accuracy, DreamConfig(tasks=2, curriculum=how), "day3", random.Random(seed)
            )
        )
        return {day: drawn[day] / 800 for day in ("day1", "day2", "day3")}

    weak = share("weakest", {"day1": 1.0, "day2": 0.5, "known": 0.1})
    assert 0 < weak["day1"] < 0.1 < weak["day2"] < weak["day3"]
    assert share("newest", {}) == {"day1": 0, "day2": 0, "day3": 1}
    assert all(0.28 < value < 0.39 for value in share("uniform", {"day1": 1.0}).values())
    everything = draw_tasks(TASKS, {}, DreamConfig(tasks=50), "day3", random.Random(0))
    assert sorted(t.id for t in everything) == sorted(t.id for t in TASKS)

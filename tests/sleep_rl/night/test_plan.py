"""The plan of one consolidation: what it takes from the config, and its random numbers."""

import random

from sleep_rl.contracts.records import Day
from sleep_rl.night.plan import CONTEXT, plan_consolidation, plan_dreams
from tests.fakes.configs import toy

DAY = Day("monday", (), ())


def test_a_plan_has_the_samples_of_self_replay():
    config = toy(replay={"samples": 7}, rehearsal={"samples": 5})
    plan = plan_consolidation(config, 1, CONTEXT, 4, DAY)
    assert (plan.unconditional, plan.rehearsed) == (7, 5)


def test_without_a_share_nothing_is_sampled_for_it():
    config = toy(replay={"samples": 7, "share": 0.0}, rehearsal={"samples": 5, "share": 0.0})
    plan = plan_consolidation(config, 1, CONTEXT, 4, DAY)
    assert (plan.unconditional, plan.rehearsed) == (0, 0)
    # a level that sends writes self-replay only, whatever its share with documents
    assert plan_consolidation(config, 1, 1, 4, DAY).unconditional == 7


def test_random_numbers_follow_from_purpose_seed_night_and_sender():
    plans = [plan_dreams(toy(run={"seed": seed}), night) for seed in (3, 4) for night in (1, 2)]
    numbers = [plan.rng(name).random() for plan in plans for name in ("write", "read")]
    assert len(set(numbers)) == len(numbers)
    # a checkpoint is resumed with the numbers that the run began with
    assert plans[0].rng("write").random() == random.Random("write 3 1 -1").random()

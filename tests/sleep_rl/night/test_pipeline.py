"""The pipeline: the lag is respected, every round is trained once, and an error in one loop ends
all.
"""

import threading

import pytest

from sleep_rl.contracts.errors import RunError
from sleep_rl.journal.journal import read
from tests.fakes.configs import changed
from tests.fakes.crew import CONFIG, Crew, live_life
from tests.fakes.processes import until
from tests.fakes.rounds import COUNT, SIZE, RoundsBeside, TimedRounds


@pytest.mark.parametrize("lag", [0, 1, 3])
@pytest.mark.parametrize("slow", ["sample_s", "train_s", "push_s"])
def test_rounds_are_trained_once_in_order_within_the_lag(lag, slow):
    flow = RoundsBeside(lag, **{slow: 0.03})
    assert flow.live() == list(range(SIZE * COUNT))
    assert [e[1] for e in flow.events if e[0] == "sampled"] == list(range(COUNT))
    assert flow.held == COUNT and max(flow.ages) <= lag and (lag == 0 or max(flow.ages) > 0)
    assert bool(flow.overlaps()) == (lag > 0)
    # never a round that would need a version not yet trained
    assert all(t < s <= t + lag for s, t in flow.overlaps())
    assert threading.active_count() == before_count()


def before_count():
    return sum(thread.name not in ("sample", "push") for thread in threading.enumerate())


def test_sampling_and_training_overlap():
    """Each side finishes a round only after the other has begun its own: then a night takes as long
    as its slower side.
    """
    flow = RoundsBeside(1, alone=())
    assert flow.live() == list(range(SIZE * COUNT))
    assert flow.met == COUNT - 2


@pytest.mark.parametrize("lag", [0, 2])
@pytest.mark.parametrize(
    "fail, says",
    [
        ("sample", "the rollouts are gone"),
        ("push", "a worker did not verify"),
        ("learner", "the loss is nan"),
    ],
)
def test_error_in_any_loop_ends_all(lag, fail, says):
    flow = TimedRounds(lag, fail=fail)
    with pytest.raises(RunError, match=says):
        flow.live()
    assert threading.active_count() == before_count()  # no loop is left behind
    assert flow.held < COUNT


def test_missing_samples_raise_after_the_limit():
    given_up = threading.Event()

    class Silent(TimedRounds):
        def sample(self, number, steps):
            given_up.wait()

    flow = Silent(1)
    flow.limit_s = 0.2
    try:
        with pytest.raises(RunError, match=r"^night 1: no samples within 0.2 s"):
            flow.live()
    finally:
        given_up.set()
    until(lambda: threading.active_count() == before_count())


@pytest.mark.parametrize("lag", [0, 1, 2])
def test_run_with_lag_trains_all_nights(lag, tmp_path):
    config = changed(CONFIG, sleep={"steps": 6, "lag": lag}, run={"checkpoint_steps": 2})
    crew, records = live_life(config, tmp_path)
    steps = [(r["night"], r["sender"], r["step"]) for r in records if r["kind"] == "seed"]
    assert steps == [
        (c.night, c.sender, step) for c in config.schedule(config.nights) for step in range(6)
    ]
    flow = [r for r in records if r["kind"] == "flow"]
    assert [r["round"] for r in flow] == [*range(6)] * len(config.schedule(config.nights))
    assert all(0 <= r["learner_idle"] <= 1 for r in records if r["kind"] == "night")
    assert [entry for entry in crew.protocol if entry[0] == "open"] == [
        ("open", 1, (1,)),
        ("open", 2, (1, 2)),
        ("open", 1, ()),
        ("open", 2, (1,)),
        ("open", 1, ()),
        ("open", 2, (1, 2)),
        ("open", 1, ()),
    ]


def test_logprob_gap_ends_the_run(tmp_path):
    class Apart(Crew):
        step_metrics = Crew.step_metrics | {"logprob_gap": 0.3}

    with pytest.raises(
        RunError,
        match=r"^night 1, step 0: rollout engine and learner differ by 0.3 nats "
        r"a token, allowed are "
        r"checks.logprob_gap = 0.2; nothing of this night was applied$",
    ):
        live_life(changed(CONFIG, checks={"logprob_gap": 0.2}), tmp_path, Apart)
    assert [r["kind"] for r in read(tmp_path / "metrics.jsonl")].count("seed") == 0

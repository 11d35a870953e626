"""The pipeline: the lag is respected, every round is trained once, and an error in one loop ends
all.
"""

import threading
import time
from contextlib import closing

import pytest

from sleep_rl.contracts.errors import RunError
from sleep_rl.journal.journal import read
from sleep_rl.night.pipeline import Flow, run_rounds
from tests.fakes.configs import changed
from tests.fakes.crew import CONFIG, Crew, live_life
from tests.fakes.processes import LIMIT_S, until

SIZE = 2  # steps of a round
COUNT = 12  # rounds
PART = 5  # rounds of the first part


class Rollouts:
    """A fake crew and composer: sampling, training and pushes take some time and are recorded."""

    def __init__(self, lag, sample_s=0.01, train_s=0.01, push_s=0.002, fail=""):
        self.lag = lag
        self.fail = fail
        self.sample_s = sample_s
        self.train_s = train_s
        self.push_s = push_s
        self.version = 0
        self.held = 0
        self.events = []
        self.ages = []
        self.limit_s = LIMIT_S

    def sample(self, number, steps):
        began = time.monotonic()
        age = number - self.held
        self.while_sampling(number)
        time.sleep(self.sample_s)
        if self.fail == "sample" and number == 5:
            raise RunError("the rollouts are gone")
        self.events.append(("sampled", number, began, time.monotonic()))
        self.ages.append(age)
        return number, steps

    def trained(self, sampled, trained_s, learner_waited_s, rollouts_waited_s):
        assert min(trained_s, learner_waited_s, rollouts_waited_s) >= 0

    def while_sampling(self, number):
        pass

    def while_training(self, number):
        pass

    def push_async(self):
        self.version += 1
        version = self.version

        def deliver():
            time.sleep(self.push_s)
            if self.fail == "push" and version == 4:
                raise RunError("a worker did not verify")
            assert version == self.held + 1  # in order
            self.held = version

        return deliver

    def push(self):
        self.push_async()()

    def live(self):
        """Run two spans, of five rounds and seven; between them no round is pending."""
        flow = Flow("night 1", self.sample, self.push, self.push_async, self.trained, self.limit_s)
        rounds = [(n, range(n * SIZE, (n + 1) * SIZE)) for n in range(COUNT)]
        trained = self._train(flow, rounds[:PART])
        assert self.held == self.version == PART
        assert [e[1] for e in self.events if e[0] == "trained"] == list(range(PART))
        assert max(e[1] for e in self.events) == PART - 1
        return trained + self._train(flow, rounds[PART:])

    def _train(self, flow, rounds):
        trained = []
        with closing(run_rounds(flow, rounds, self.lag)) as ahead:
            for number, steps in ahead:
                began = time.monotonic()
                self.while_training(number)
                time.sleep(self.train_s)
                if self.fail == "learner" and number == 3:
                    raise RunError("the loss is nan")
                trained += steps
                self.events.append(("trained", number, began, time.monotonic()))
        return trained

    def overlaps(self):
        """Return the pairs of a sampled and a trained round that ran at the same time."""
        sampled, trained = (
            [e for e in self.events if e[0] == kind] for kind in ("sampled", "trained")
        )
        return [(s[1], t[1]) for s in sampled for t in trained if s[2] < t[3] and t[2] < s[3]]


class Beside(Rollouts):
    """With a lag each round is trained only after the sampling of the next one has begun, and the
    second one is sampled only during the training of the first; in turns both would deadlock.
    """

    alone = range(2, COUNT)  # rounds that are sampled without waiting for the learner

    def __init__(self, lag, **moments):
        super().__init__(lag, **moments)
        self.sampling = [threading.Event() for _ in range(COUNT)]
        self.training = [threading.Event() for _ in range(COUNT)]
        self.met = 0

    def while_sampling(self, number):
        self.sampling[number].set()
        # the first of each span has nothing beside it
        if self.lag and number not in (0, PART, *self.alone):
            assert self.training[number - 1].wait(LIMIT_S), f"round {number} was sampled alone"

    def while_training(self, number):
        self.training[number].set()
        if self.lag and number not in (PART - 1, COUNT - 1):  # the last of each span
            assert self.sampling[number + 1].wait(LIMIT_S), f"round {number} was trained alone"
            self.met += 1


@pytest.mark.parametrize("lag", [0, 1, 3])
@pytest.mark.parametrize("slow", ["sample_s", "train_s", "push_s"])
def test_rounds_are_trained_once_in_order_within_the_lag(lag, slow):
    flow = Beside(lag, **{slow: 0.03})
    assert flow.live() == list(range(SIZE * COUNT))
    assert [e[1] for e in flow.events if e[0] == "sampled"] == list(range(COUNT))
    assert flow.held == COUNT and max(flow.ages) <= lag and (lag == 0 or max(flow.ages) > 0)
    assert bool(flow.overlaps()) == (lag > 0)
    # never a round that would need a version not yet trained
    assert all(t < s <= t + lag for s, t in flow.overlaps())
    assert threading.active_count() == before_count()


def before_count():
    return sum(thread.name not in ("sample", "push") for thread in threading.enumerate())


class Waiting(Beside):
    """Each side finishes a round only after the other has begun its own."""

    alone = ()


def test_sampling_and_training_overlap():
    """Then a night takes as long as its slower side."""
    flow = Waiting(1)
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
    flow = Rollouts(lag, fail=fail)
    with pytest.raises(RunError, match=says):
        flow.live()
    assert threading.active_count() == before_count()  # no loop is left behind
    assert flow.held < COUNT


def test_missing_samples_raise_after_the_limit():
    given_up = threading.Event()

    class Silent(Rollouts):
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

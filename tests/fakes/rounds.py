"""The two sides of a pipeline, rollouts and learner, without workers."""

from __future__ import annotations

import threading
import time
from contextlib import closing

from sleep_rl.contracts.errors import RunError
from sleep_rl.night.pipeline import Flow, run_rounds
from tests.fakes.processes import LIMIT_S

SIZE = 2  # steps of a round
COUNT = 12  # rounds
PART = 5  # rounds of the first part


class TimedRounds:
    """Crew and composer in one object: sampling, training and pushes take some time and are
    recorded.
    """

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


class RoundsBeside(TimedRounds):
    """With a lag each round is trained only after the sampling of the next one has begun, and a
    round that is not in `alone` is sampled only after the training of the one before has begun; in
    turns both would deadlock.
    """

    def __init__(self, lag, alone=range(2, COUNT), **moments):
        super().__init__(lag, **moments)
        self.alone = alone  # rounds that are sampled without waiting for the learner
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

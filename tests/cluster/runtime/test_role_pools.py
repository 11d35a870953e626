"""Pools of reward and rollout workers: what a response must be, and whom a failure concerns."""

import threading
from dataclasses import replace

import pytest

from cluster.runtime.local_backend import LocalBackend
from cluster.runtime.pool import Unfinished
from cluster.runtime.restarts import Restarts
from cluster.runtime.role_pools import RewardPool, RolloutPool
from sleep_rl.contracts.errors import Failure, RunError
from sleep_rl.contracts.records import Pair, Request, Sample, Sampling
from sleep_rl.contracts.roles import Reward
from sleep_rl.journal.journal import Journal
from tests.fakes.processes import LIMIT_S, kill_worker, until
from tests.fakes.rollouts import AnsweringRollout
from tests.fakes.workers import ConstantReward


class TestRewardPool:
    SAME = Pair((5,), (5,))
    OTHER = Pair((5,), (6,))
    SLOW = Pair((0,), (5,))
    BAD = Pair((1,), (5,))

    @pytest.fixture
    def rewards(self, backend, tmp_path):
        """A worker that is late with a slow pair, whatever the load: on Ray until there is a file
        `end` in the folder, in this process by half a second.
        """
        late = {"path": str(tmp_path / "end")}
        if isinstance(backend, LocalBackend):
            late = {"slow_s": 1.0}
        handle = backend.spawn("tests.fakes.workers:Scorer", late, name="reward-0")
        backend.ready([handle])
        yield RewardPool([handle], timeout_s=0.5)
        (tmp_path / "end").touch()

    def test_it_implements_reward(self, rewards):
        rewards.timeout_s = LIMIT_S
        assert isinstance(rewards, Reward)
        assert rewards.score([self.SAME, self.OTHER, self.BAD]) == [1.0, 0.0, Failure("empty")]

    def test_a_call_that_times_out_fails_its_own_pairs_only(self, rewards, tmp_path):
        late = Failure(
            "worker reward-0: score did not return within 0.5 s (reward.timeout_s)", "reward-0"
        )
        assert rewards.score([self.SAME, self.SLOW]) == [late, late]
        assert not rewards.failed
        (tmp_path / "end").touch()
        rewards.timeout_s = LIMIT_S  # the worker first ends the late call
        assert rewards.score([self.SAME]) == [1.0]
        rewards.close()
        assert rewards.score([self.SLOW]) == [0.0]

    def test_two_timeouts_in_a_row_restart_the_worker(self, rewards, only_ray):
        spent = []
        rewards._on_restart = lambda worker, reason: spent.append((worker, reason))
        assert [type(rewards.score([self.SLOW])[0]) for _ in range(2)] == [Failure, Failure]
        assert spent == [
            (
                "reward-0",
                "worker reward-0: score did not return within 0.5 s "
                "(reward.timeout_s), twice in a row",
            )
        ]
        rewards.timeout_s = LIMIT_S
        assert rewards.score([self.SAME]) == [1.0] and not rewards.failed

    def test_a_dead_worker_is_restarted_and_its_pairs_are_retried(self, backend, only_ray):
        handle = backend.spawn("tests.fakes.workers:Scorer", {}, name="reward-dead")
        spent = []
        backend.ready([handle])
        rewards = RewardPool(
            [handle], LIMIT_S, lambda worker, reason: spent.append((worker, reason))
        )
        kill_worker(handle)
        assert rewards.score([self.SAME, self.OTHER]) == [1.0, 0.0]
        # the cause that Ray reports depends on whether it has noticed the death already
        [(worker, reason)] = spent
        assert worker == "reward-dead" and "reward-dead died during score: " in reason
        rewards.close()

    def test_a_call_that_raises_fails_its_own_pairs_only(self, backend):
        handles = [
            backend.spawn("tests.fakes.workers:Scorer", {}, name=f"reward-raises-{i}")
            for i in range(2)
        ]
        rewards = RewardPool(handles, LIMIT_S)
        pair = Pair((1, 2), (5,))
        failed = Failure(
            "worker reward-raises-1: score failed: IndexError: no second token", "reward-raises-1"
        )
        assert rewards.score([self.SAME, pair]) == [1.0, failed]
        assert rewards.score([self.SAME, self.OTHER]) == [1.0, 0.0] and not rewards.failed

    @pytest.mark.parametrize(
        "value, shown", [(float("nan"), "nan"), (1.5, "1.5"), ("high", "'high'")]
    )
    def test_a_value_outside_0_to_1_is_a_failure(self, here, value, shown):
        handle = here.spawn(ConstantReward, {"value": value}, name="reward-mad")
        spent = []
        rewards = RewardPool([handle], LIMIT_S, lambda worker, reason: spent.append(reason))
        reason = f"worker reward-mad: score returned the reward {shown}, allowed is [0, 1]"
        assert rewards.score([self.SAME, self.BAD]) == [Unfinished(reason, "reward-mad")] * 2
        assert spent == [reason] * 2  # before the retry, and after it

    def test_a_spent_restart_budget_ends_the_run(self, here, tmp_path):
        handle = here.spawn(ConstantReward, {"value": 2.0}, name="reward-mad")
        rewards = RewardPool([handle], LIMIT_S, Restarts(1, Journal(tmp_path / "m.jsonl")).count)
        with pytest.raises(
            RunError,
            match=r"returned the reward 2.0, allowed is \[0, 1\]; "
            r"cluster.restarts = 1 are used up$",
        ):
            rewards.score([self.SAME])


class TestRolloutPool:
    """A sample must match its request."""

    REQUESTS = tuple(Request((5, 6), (1,), seed) for seed in (3, 4))
    SAMPLING = Sampling(4)

    def pool(self, backend, change, on_restart=lambda worker, reason: None):
        def answer(requests_N, name, version):
            return [
                change(
                    Sample(
                        r.prompt_T,
                        r.context_T,
                        (7, 8),
                        (-0.1, -0.2),
                        "stop",
                        r.seed,
                        name,
                        (version, version + 1),
                    )
                )
                for r in requests_N
            ]

        handle = backend.spawn(AnsweringRollout, {"answer": answer}, name="rollout-0")
        return RolloutPool([handle], LIMIT_S, on_restart)

    def test_valid_samples_and_failures_are_returned(self, here):
        got = self.pool(here, lambda s: Failure("cut") if s.seed == 4 else s)
        # samples of version 2 and newer are valid
        samples = got.sample(self.REQUESTS, "student", 2, self.SAMPLING)
        assert samples[0].completion_T == (7, 8) and samples[1] == Failure("cut") and not got.failed

    @pytest.mark.parametrize(
        "change, wrong",
        [
            (lambda s: replace(s, seed=9), "a sample of another request"),
            (lambda s: replace(s, context_T=()), "a sample of another request"),
            (
                lambda s: replace(s, versions_T=(3, 1)),
                r"a sample of student \[1, 3\], requested was "
                r"student 2",
            ),
            (
                lambda s: replace(s, weights="teacher"),
                r"a sample of teacher \[2, 3\], requested was "
                r"student 2",
            ),
            (
                lambda s: replace(s, logprobs_T=(-0.1,)),
                "different numbers of tokens, log-probabilities and versions",
            ),
            (lambda s: "text", "a str instead of a Sample"),
        ],
    )
    def test_a_second_invalid_response_is_an_error(self, here, change, wrong):
        restarted = []
        pool = self.pool(here, change, lambda worker, reason: restarted.append(reason))
        with pytest.raises(
            RunError,
            match=f"^rollouts: every worker failed: worker rollout-0: sample returned .*{wrong}",
        ):
            pool.sample(self.REQUESTS, "student", 2, self.SAMPLING)
        assert len(restarted) == 1

    def test_logprobs_have_one_value_per_token_of_the_prompt(self, here):
        def answer(requests_N, name, version):
            return [Failure("cut") if r.seed == 4 else (-0.5, -0.25) for r in requests_N]

        handle = here.spawn(AnsweringRollout, {"answer": answer}, name="rollout-0")
        pool = RolloutPool([handle], 30)
        assert pool.logprobs(self.REQUESTS, "student", 2) == [(-0.5, -0.25), Failure("cut")]
        longer = [replace(r, prompt_T=(5, 6, 7), seed=3) for r in self.REQUESTS]
        with pytest.raises(RunError, match=r"logprobs returned \(-0.5, -0.25\) instead of 3 log-"):
            pool.logprobs(longer, "student", 2)


class TestSlices:
    """With sleep.lag above 0 a worker loads newer weights while its samples are in flight."""

    REQUESTS = tuple(Request((n,), (9,), seed=n) for n in range(5))

    def test_each_worker_samples_in_slices_until_its_requests_are_done(self, here):
        handles = [
            here.spawn("tests.fakes.workers:Sliced", {"slices": n}, name=f"rollout-{n}")
            for n in (1, 3)
        ]
        nobody_failed = lambda worker, reason: pytest.fail(reason)  # noqa: E731
        pool = RolloutPool(handles, LIMIT_S, nobody_failed, slice_s=0.01)
        for _ in range(2):
            samples = pool.sample(self.REQUESTS, "student", 4, Sampling(1))
            assert [s.seed for s in samples] == [r.seed for r in self.REQUESTS]
        assert [len(handle.seen()) for handle in handles] == [2, 6]

    def test_a_worker_that_is_never_done_times_out(self, here):
        pool = RolloutPool(
            [here.spawn("tests.fakes.workers:Sliced", {"slices": 10**6}, name="rollout-0")],
            0.2,
            slice_s=0.01,
        )
        with pytest.raises(
            RunError,
            match=r"every worker failed: worker rollout-0: sample did not return within 0.2 s",
        ):
            pool.sample(self.REQUESTS, "student", 4, Sampling(1))

    def test_a_push_is_loaded_between_two_slices(self, backend, only_ray):
        sliced = {"slices": 20, "waits": True}
        handle = backend.spawn("tests.fakes.workers:Sliced", sliced, name="rollout-0")
        backend.ready([handle])
        pool = RolloutPool([handle], LIMIT_S, slice_s=0.1)
        samples = []
        sampling = threading.Thread(
            target=lambda: samples.extend(pool.sample(self.REQUESTS, "student", 4, Sampling(1)))
        )
        sampling.start()
        until(handle.seen)
        handle.load(None)
        sampling.join(LIMIT_S)
        log = handle.seen()
        handle.kill()
        assert len(samples) == len(self.REQUESTS)
        before = log[: log.index("load")]
        after = log[log.index("load") + 1 :]
        assert before and set(before) == {"slice"} and after == ["slice"] * 3

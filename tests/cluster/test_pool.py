"""Pools: order and balance of split work, validation of responses, restarts of failed workers."""

import threading
from dataclasses import replace

import pytest

from cluster import crew
from cluster.runtime.local_backend import LocalBackend
from cluster.runtime.pool import Pool, Unfinished, split
from cluster.runtime.restarts import Restarts
from cluster.runtime.role_pools import RewardPool, RolloutPool
from cluster.worker_specs import CrewSpec
from sleep_rl.contracts.errors import Failure, InputError, RunError
from sleep_rl.contracts.records import Pair, Request, Sample, Sampling
from sleep_rl.contracts.roles import Reward
from sleep_rl.journal.journal import Journal
from tests.fakes.configs import toy
from tests.fakes.processes import LIMIT_S, kill_worker, until
from tests.fakes.workers import Echo, Scorer


@pytest.fixture
def here():
    """A local backend, for tests that need no processes."""
    with LocalBackend() as backend:
        yield backend


@pytest.fixture(scope="module")
def handles(backend):
    """Three workers for the whole module: processes take seconds to start."""
    handles = [
        backend.spawn("tests.fakes.workers:Echo", {"greeting": f"w{i}"}, name=f"echo-{i}")
        for i in range(3)
    ]
    backend.ready(handles)
    return handles


@pytest.fixture
def pool(handles):
    pool = Pool("echoes", handles, timeout_s=LIMIT_S)
    yield pool
    pool.restart_failed()


@pytest.mark.parametrize(
    "items, parts, lengths", [(7, 3, [2, 2, 3]), (2, 3, [1, 1]), (0, 3, []), (6, 2, [3, 3])]
)
def test_split_is_contiguous_and_balanced(items, parts, lengths):
    pieces = split(list(range(items)), parts)
    assert [len(piece) for piece in pieces] == lengths
    assert [item for piece in pieces for item in piece] == list(range(items))


class TestPool:
    def test_map_returns_results_in_order(self, pool):
        assert pool.map(Echo.double, list(range(10))) == [2 * i for i in range(10)]

    def test_result_does_not_depend_on_the_number_of_workers(self, handles):
        assert Pool("one", handles[:1], LIMIT_S).map(Echo.double, [1, 2, 3, 4]) == [2, 4, 6, 8]
        assert Pool("all", handles, LIMIT_S).map(Echo.double, [1, 2, 3, 4]) == [2, 4, 6, 8]

    def test_map_of_no_items_makes_no_call(self, pool):
        assert pool.map(Echo.double, []) == []

    def test_call_all_returns_every_result_and_raises_the_first_error(self, pool):
        assert pool.call_all(Echo.greet, "Ann") == ["w0 Ann.", "w1 Ann.", "w2 Ann."]
        with pytest.raises(RunError, match=r"^loss is NaN at step 3$"):
            pool.call_all(Echo.run_error)

    def test_map_raises_the_exception_of_a_worker(self, pool):
        with pytest.raises(RunError, match=r"^worker echo-1: double failed: TypeError"):
            pool.map(Echo.double, [1, 2, 3], hurt="raise", victim="w1")
        assert not pool.failed

    def test_a_worker_with_an_invalid_response_leaves_the_pool(self, pool):
        assert pool.map(Echo.drop_last, [1, 2, 3], "w1") == [
            1,
            Unfinished("worker echo-1: drop_last returned 0 results for 1 items", "echo-1"),
            3,
        ]
        assert list(pool.failed) == ["echo-1"] and len(pool.workers) == 2
        with pytest.raises(
            RunError,
            match=r"^echoes: every worker failed: worker echo-0: drop_last returned 0 results",
        ):
            pool.map(Echo.drop_last, [1, 2], "*")

    def test_a_dead_worker_gives_failures_and_is_restarted(self, pool, only_ray):
        results = pool.map(Echo.double, [1, 2, 3, 4, 5, 6], hurt="die", victim="w1")
        assert results[:2] + results[4:] == [2, 4, 10, 12]
        assert all(isinstance(r, Failure) and r.where == "echo-1" for r in results[2:4])
        assert results[2].reason.startswith("worker echo-1 died during double: ")
        assert list(pool.failed) == ["echo-1"]
        assert pool.map(Echo.double, [1, 2, 3]) == [2, 4, 6]  # by the other two
        prepared = []
        pool.prepare_restarted_with(prepared.extend)
        assert [h.name for h in pool.restart_failed()] == ["echo-1"] == [h.name for h in prepared]
        assert pool.call_all(Echo.greet, "Ann") == ["w0 Ann.", "w1 Ann.", "w2 Ann."]

    @pytest.mark.parametrize("victim", ["w1", "*"])
    def test_map_with_retry_retries_the_items_of_a_failed_worker_once(
        self, victim, handles, only_ray, tmp_path
    ):
        restarted = []
        pool = Pool("echoes", handles, LIMIT_S, lambda worker, reason: restarted.append(worker))
        died = str(tmp_path / "died")
        results = pool.map_with_retry(Echo.double_if, [1, 2, 3, 4, 5, 6], victim, died)
        assert results == [2, 4, 6, 8, 10, 12]
        assert restarted == (["echo-1"] if victim == "w1" else ["echo-0", "echo-1", "echo-2"])
        assert pool.failed == {} and len(pool.workers) == 3

    def test_a_worker_that_times_out_gives_failures_and_leaves_the_pool(self, handles):
        for limit_s in (0.5, 30.0, 900.0):
            pool = Pool("echoes", handles, timeout_s=limit_s)
            hurt = {"hurt": "sleep", "victim": "w1", "seconds": 1.5 * limit_s}
            results = pool.map(Echo.double, [1, 2, 3], **hurt)
            failed = dict(pool.failed)
            left = len(pool.workers)
            pool.restart_failed()
            # on a busy machine the others may need more than the first limit
            if results[::2] == [2, 6]:
                break
        reason = f"worker echo-1: double did not return within {limit_s:g} s"
        assert results[1] == Unfinished(f"{reason} (cluster.call_timeout_s)", "echo-1")
        assert list(failed) == ["echo-1"] and left == 2 and results[::2] == [2, 6]

    def test_map_raises_when_every_worker_failed(self, handles, only_ray):
        pool = Pool("echoes", handles[:1], timeout_s=LIMIT_S)
        with pytest.raises(
            RunError, match=r"^echoes: every worker failed: worker echo-0 died during double"
        ):
            pool.map(Echo.double, [1, 2], hurt="die", victim="*")
        with pytest.raises(RunError, match=r"^echoes: no worker is left: worker echo-0 died"):
            pool.map(Echo.double, [1])
        pool.restart_failed()


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
        handle = here.spawn(lambda: Constant(value), {}, name="reward-mad")
        spent = []
        rewards = RewardPool([handle], LIMIT_S, lambda worker, reason: spent.append(reason))
        reason = f"worker reward-mad: score returned the reward {shown}, allowed is [0, 1]"
        assert rewards.score([self.SAME, self.BAD]) == [Unfinished(reason, "reward-mad")] * 2
        assert spent == [reason] * 2  # before the retry, and after it

    def test_a_spent_restart_budget_ends_the_run(self, here, tmp_path):
        handle = here.spawn(lambda: Constant(2.0), {}, name="reward-mad")
        rewards = RewardPool([handle], LIMIT_S, Restarts(1, Journal(tmp_path / "m.jsonl")).count)
        with pytest.raises(
            RunError,
            match=r"returned the reward 2.0, allowed is \[0, 1\]; "
            r"cluster.restarts = 1 are used up$",
        ):
            rewards.score([self.SAME])


class Constant(Scorer):
    """Returns one value for every pair."""

    def __init__(self, value):
        super().__init__()
        self.value = value

    def score(self, pairs_N):
        return [self.value for _ in pairs_N]


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

        handle = backend.spawn(ScriptedRollout, {"answer": answer}, name="rollout-0")
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

        handle = here.spawn(ScriptedRollout, {"answer": answer}, name="rollout-0")
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


class ScriptedRollout:
    """A Rollout whose samples a test supplies."""

    def __init__(self, answer):
        self.answer = answer

    def sample(self, requests_N, name, version, sampling):
        return self.answer(requests_N, name, version)

    def logprobs(self, requests_N, name, version):
        return self.answer(requests_N, name, version)


def test_wait_for_resources_retries_until_its_limit(here, monkeypatch):
    printed = []
    tried = []
    monkeypatch.setattr(here.watchdog, "say", printed.append)
    monkeypatch.setattr(crew.time, "sleep", lambda s: None)

    def check():
        tried.append(1)
        if len(tried) < 4:
            raise InputError("rollout: 2 CPU asked, the cluster has 1")

    crew.wait_for_resources(check, here, 300.0)
    assert len(tried) == 4 and printed == [
        "waiting up to 5:00 min for a node: rollout: 2 CPU asked, the cluster has 1"
    ]
    tried.clear()
    with pytest.raises(InputError):
        crew.wait_for_resources(check, here, 0.0)
    assert len(tried) == 1


@pytest.mark.parametrize("wait_s", [0.0, 40.0])
def test_a_start_waits_for_nodes_up_to_cluster_wait_for_nodes_s(wait_s, monkeypatch, tmp_path):
    """An autoscaler or a batch system may still add nodes."""
    now = [100.0]
    asked = []
    monkeypatch.setattr(crew.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(crew.time, "sleep", lambda s: now.__setitem__(0, now[0] + s))

    class Empty(LocalBackend):
        def preflight(self, asks):
            asked.append(asks)
            raise InputError("rollout: 1 CPU asked, the cluster has 0")

    config = toy(cluster={"wait_for_nodes_s": wait_s})
    with pytest.raises(InputError, match="the cluster has 0"):
        spec = CrewSpec(config, "none", "none")
        crew.start_crew(Empty(), spec, Journal(tmp_path / "m.jsonl", []))
    assert (now[0], len(asked)) == (100 + wait_s, 1 + wait_s)

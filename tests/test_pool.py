"""Work split over workers: order, balance, and what happens to the items of a lost worker."""

import pytest

from cluster.group import LocalBackend, RayBackend
from cluster.pool import Pool, RewardPool, split
from sleep_rl.contracts import Failure, Pair, Reward, RunError
from workers import Echo, Scorer


@pytest.fixture(scope="module", params=["local", pytest.param("ray", marks=pytest.mark.stack)])
def backend(request):
    with LocalBackend() if request.param == "local" else RayBackend(cpus=2) as backend:
        yield backend


@pytest.fixture
def only_ray(backend):
    if isinstance(backend, LocalBackend):
        pytest.skip("needs a process per worker")


@pytest.fixture(scope="module")
def handles(backend):
    """Three workers for the whole module: processes take seconds to start."""
    handles = [backend.spawn("workers:Echo", {"greeting": f"w{i}"}, name=f"echo-{i}") for i in range(3)]
    backend.ready(handles)
    return handles


@pytest.fixture
def pool(handles):
    pool = Pool("echoes", handles, timeout_s=60)
    yield pool
    pool.restart_lost()


@pytest.mark.parametrize("items, parts, lengths", [(7, 3, [2, 2, 3]), (2, 3, [1, 1]), (0, 3, []), (6, 2, [3, 3])])
def test_split_is_contiguous_and_balanced(items, parts, lengths):
    pieces = split(list(range(items)), parts)
    assert [len(piece) for piece in pieces] == lengths
    assert [item for piece in pieces for item in piece] == list(range(items))


class TestPool:
    def test_results_in_order(self, pool):
        assert pool.map(Echo.double, list(range(10))) == [2 * i for i in range(10)]

    def test_result_does_not_depend_on_the_number_of_workers(self, handles):
        assert Pool("one", handles[:1], 60).map(Echo.double, [1, 2, 3, 4]) == [2, 4, 6, 8]
        assert Pool("all", handles, 60).map(Echo.double, [1, 2, 3, 4]) == [2, 4, 6, 8]

    def test_no_items_no_call(self, pool):
        assert pool.map(Echo.double, []) == []

    def test_all(self, pool):
        assert pool.all(Echo.greet, "Ann") == ["w0 Ann.", "w1 Ann.", "w2 Ann."]
        with pytest.raises(RunError, match="^loss is NaN at step 3$"):
            pool.all(Echo.run_error)

    def test_exception_of_a_worker_is_raised(self, pool):
        with pytest.raises(RunError, match="^worker echo-1: double failed: TypeError"):
            pool.map(Echo.double, [1, 2, 3], hurt="raise", victim="w1")
        assert not pool.lost

    def test_wrong_number_of_results_is_an_error(self, pool):
        with pytest.raises(RunError, match="^worker echo-0: drop_last gave 0 results for 1 items$"):
            pool.map(Echo.drop_last, [1, 2, 3])

    def test_dead_worker_gives_failures_and_comes_back(self, pool, only_ray):
        results = pool.map(Echo.double, [1, 2, 3, 4, 5, 6], hurt="die", victim="w1")
        assert results[:2] + results[4:] == [2, 4, 10, 12]
        assert all(isinstance(r, Failure) and r.where == "echo-1" for r in results[2:4])
        assert results[2].reason.startswith("worker echo-1 died during double: ")
        assert list(pool.lost) == ["echo-1"]
        assert pool.map(Echo.double, [1, 2, 3]) == [2, 4, 6]  # by the other two
        prepared = []
        assert [h.name for h in pool.restart_lost(prepared.extend)] == ["echo-1"] == [h.name for h in prepared]
        assert pool.all(Echo.greet, "Ann") == ["w0 Ann.", "w1 Ann.", "w2 Ann."]

    @pytest.mark.parametrize("victim", ["w1", "*"])
    def test_what_a_lost_worker_owed_is_asked_once_more(self, victim, pool, only_ray, tmp_path):
        revived = []

        def revive():
            revived.extend(pool.lost)
            pool.restart_lost()

        results = pool.map_again(revive, Echo.double_if, [1, 2, 3, 4, 5, 6], victim, str(tmp_path / "died"))
        assert results == [2, 4, 6, 8, 10, 12]
        assert sorted(revived) == (["echo-1"] if victim == "w1" else ["echo-0", "echo-1", "echo-2"])
        assert pool.lost == {} and len(pool.workers) == 3

    def test_late_worker_gives_failures_and_is_taken_out(self, handles):
        pool = Pool("echoes", handles, timeout_s=0.5)
        results = pool.map(Echo.double, [1, 2, 3], hurt="sleep", victim="w1", seconds=1.5)
        assert results == [2, Failure("worker echo-1: double gave no answer within 0.5 s", "echo-1"), 6]
        assert list(pool.lost) == ["echo-1"] and len(pool.workers) == 2
        pool.restart_lost()

    def test_every_worker_lost_is_an_error(self, handles, only_ray):
        pool = Pool("echoes", handles[:1], timeout_s=60)
        with pytest.raises(RunError, match="^echoes: every worker failed: worker echo-0 died during double"):
            pool.map(Echo.double, [1, 2], hurt="die", victim="*")
        with pytest.raises(RunError, match="^echoes: no worker left: worker echo-0 died"):
            pool.map(Echo.double, [1])
        pool.restart_lost()


class TestRewardPool:
    SAME, OTHER, SLOW, BAD = (Pair((5,), (5,)), Pair((5,), (6,)), Pair((0,), (5,)), Pair((1,), (5,)))

    @pytest.fixture
    def rewards(self, backend):
        handle = backend.spawn("workers:Scorer", {"slow_s": 1.0}, name="reward-0")
        backend.ready([handle])
        return RewardPool([handle], timeout_s=0.5)

    def test_is_a_reward(self, rewards):
        assert isinstance(rewards, Reward)
        assert rewards.score([self.SAME, self.OTHER, self.BAD]) == [1.0, 0.0, Failure("empty")]

    def test_late_call_fails_its_pairs_only(self, rewards):
        late = Failure("worker reward-0: score gave no answer within 0.5 s", "reward-0")
        assert rewards.score([self.SAME, self.SLOW]) == [late, late]
        assert not rewards.lost
        rewards.timeout_s = 5.0  # the worker first ends the late call
        assert rewards.score([self.SAME]) == [1.0]
        rewards.close()
        assert rewards.score([self.SLOW]) == [0.0]

    def test_dead_worker(self, backend, only_ray):
        handle = backend.spawn("workers:Scorer", {}, name="reward-dead")
        backend.ready([handle])
        rewards = RewardPool([handle], timeout_s=30)
        handle._channel.kill()
        result = rewards.score([self.SAME])[0]
        # What Ray gives as the cause depends on whether it has heard of the end already.
        assert isinstance(result, Failure) and "reward-dead died during score: " in result.reason
        with pytest.raises(RunError, match="^rewards: no worker left"):
            rewards.score([self.SAME])
        rewards.close()

"""Pools: order and balance of split work, validation of responses, restarts of failed workers."""

import pytest

from cluster.runtime.pool import Pool, Unfinished, split
from sleep_rl.contracts.errors import Failure, RunError
from tests.fakes.processes import LIMIT_S
from tests.fakes.workers import Echo


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

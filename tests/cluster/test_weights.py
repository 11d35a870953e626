"""The weight store: deltas, what it holds, and that only verified versions are current."""

from dataclasses import replace

import numpy as np
import pytest

from cluster.runtime.pool import Pool
from cluster.weights import WeightsDamaged, WeightStore
from sleep_rl.contracts.errors import RunError
from sleep_rl.model.tensor_digest import digest
from tests.fakes.exports import KEYS, export, state
from tests.fakes.processes import LIMIT_S, kill_worker
from tests.fakes.rollouts import CheckingRollout


@pytest.fixture(scope="module")
def handles(backend):
    handles = [
        backend.spawn(
            "tests.fakes.rollouts:CheckingRollout", {"probe_gap": i / 100}, name=f"rollout-{i}"
        )
        for i in range(2)
    ]
    backend.ready(handles)
    return handles


@pytest.fixture
def pool(handles):
    for handle in handles:
        handle.lose_states()
    return Pool("rollouts", handles, timeout_s=LIMIT_S)


@pytest.fixture
def store(backend, pool):
    return WeightStore(backend, pool)


def refs(store: WeightStore) -> set[int]:
    """The deltas that the store refers to."""
    return {id(ref) for ref, _ in store._locations.values()}


class TestPush:
    def test_every_worker_loads_and_verifies_a_push(self, store, handles):
        loaded = store.push(export("teacher", 1, state(1.0), store.have("teacher")))
        assert [(report.name, report.version, report.tensors) for report in loaded] == [
            ("teacher", 1, 3)
        ] * 2
        assert [handle.value("teacher", KEYS[0]) for handle in handles] == [32.0, 32.0]
        assert store.current("teacher") == 1
        metrics = dict(store.metrics)
        assert metrics.pop("push/seconds") > 0
        assert metrics == {
            "push/bytes": 2 * 3 * 64,
            "push/tensors": 6,
            "push/workers": 2,
            "push/probe_gap": 0.01,
            "push/pause": 0.0,
        }

    def test_equal_tensors_of_two_names_are_sent_once(self, store, handles):
        first = state(1.0)
        store.push(export("teacher", 1, first, store.have("teacher")))
        second = state(5.0, like=first, changed=KEYS[1:2])
        delta = export("student", 1, second, store.have("student"))
        assert list(delta.tensors) == [KEYS[1]]
        store.push(delta)
        assert handles[1].held() == {"teacher": 1, "student": 1}
        assert (
            handles[1].value("teacher", KEYS[1]) == 64.0
            and handles[1].value("student", KEYS[1]) == 192.0
        )
        assert handles[0].seen() == [("teacher", 1, 3), ("student", 1, 1)]

    def test_a_push_of_numpy_arrays_is_loaded(self, store, handles):
        store.push(export("teacher", 1, {KEYS[0]: np.full((2, 2), 3.0, np.float32)}, {}))
        assert handles[0].value("teacher", KEYS[0]) == 12.0


class TestRefill:
    def test_a_worker_without_pushed_states_is_sent_the_full_state_once(self, store, handles):
        first = state(1.0)
        store.push(export("teacher", 1, first, {}))
        handles[1].lose_states()
        store.push(
            export("teacher", 2, state(5.0, like=first, changed=KEYS[:1]), store.have("teacher"))
        )
        assert handles[0].seen()[1:] == [("teacher", 2, 1)]
        assert handles[1].seen() == [("teacher", 2, 1), ("teacher", 2, 3)]
        assert [handle.value("teacher", KEYS[1]) for handle in handles] == [64.0, 64.0]
        assert store.current("teacher") == 2

    def test_refill_loads_every_name(self, store, handles):
        first = state(1.0)
        store.push(export("teacher", 1, first, {}))
        store.push(
            export("student", 4, state(5.0, like=first, changed=KEYS[1:]), store.have("student"))
        )
        handles[0].lose_states()
        store.refill(handles[:1])
        assert handles[0].held() == {"teacher": 1, "student": 4}

    def test_a_dead_worker_fails_the_push_and_is_refilled(self, store, pool, handles, only_ray):
        store.push(export("teacher", 1, state(1.0), {}))
        kill_worker(handles[1])
        with pytest.raises(RunError, match=r"^worker rollout-1 died during load"):
            store.push(export("teacher", 2, state(2.0), {}))
        with pytest.raises(
            RunError,
            match=r"no version of teacher is verified by every worker .version 2 is published",
        ):
            store.current("teacher")
        with pytest.raises(
            RunError, match=r"^weights: teacher version 2 is not held by every worker"
        ):
            handles[0].lose_states()
            store.confirm("teacher", 2)
        pool.restart_failed()
        store.refill(handles[:1])
        store.confirm("teacher", 2)
        assert store.current("teacher") == 2
        assert [handle.held() for handle in handles] == [{"teacher": 2}] * 2
        store.push(export("teacher", 3, state(3.0), {}))
        assert store.current("teacher") == 3

    def test_the_previous_version_stays_current_until_the_next_is_delivered(self, store, handles):
        """The learner exports a second time before the first version is delivered."""
        first, second, _third = (state(n) for n in (1.0, 5.0, 9.0))
        store.push(export("student", 1, first, {}))
        a = store.publish(export("student", 2, second, store.have("student")))
        b = store.publish(
            export("student", 3, state(9.0, like=second, changed=KEYS[:1]), store.have("student"))
        )
        assert store.current("student") == 1
        store.deliver("student", 2, a)
        assert store.current("student") == 2 and handles[0].value("student", KEYS[0]) == 160.0
        store.deliver("student", 3, b)
        assert store.current("student") == 3 and handles[0].seen()[-1] == ("student", 3, 1)
        assert (
            handles[0].value("student", KEYS[0]) == 288.0
            and handles[0].value("student", KEYS[1]) == 192.0
        )


class TestErrors:
    def test_a_worker_that_reports_another_version(self, backend):
        handle = backend.spawn("tests.fakes.rollouts:CheckingRollout", {"lies": True}, name="liar")
        store = WeightStore(backend, Pool("rollouts", [handle], LIMIT_S))
        with pytest.raises(
            RunError,
            match=r"^worker liar: requested was teacher version 2, loaded was teacher version 1$",
        ):
            store.push(export("teacher", 2, state(1.0), {}))
        with pytest.raises(RunError, match="no version of teacher is verified"):
            store.current("teacher")

    def test_a_delta_of_a_state_that_was_never_published(self, store):
        first = state(1.0)
        delta = export("teacher", 1, first, {KEYS[0]: digest(first[KEYS[0]])})
        with pytest.raises(
            RunError,
            match="^weights: teacher version 1 lacks 1 tensors that "
            "were never published, "
            f"first {KEYS[0]}$",
        ):
            store.push(delta)

    def test_versions_must_increase(self, store):
        store.push(export("teacher", 2, state(1.0), {}))
        with pytest.raises(RunError, match=r"^weights: teacher version 2 after version 2$"):
            store.push(export("teacher", 2, state(2.0), {}))
        assert store.current("teacher") == 2

    def test_current_raises_when_nothing_was_published(self, store):
        with pytest.raises(
            RunError,
            match=r"^weights: no version of student is verified by every worker .none publish",
        ):
            store.current("student")
        assert store.have("student") == {}


class TestHeld:
    def test_only_tensors_of_the_newest_versions_are_held(self, backend):
        store = WeightStore(backend, Pool("rollouts", [], LIMIT_S))  # publishing needs no worker
        first = state(1.0)
        store.publish(export("teacher", 1, first, {}))
        for version in range(1, 5):
            full = state(10.0 * version, like=first, changed=KEYS[1:2])
            store.publish(export("student", version, full, store.have("student")))
            assert len(refs(store)) == 2  # the first state, and the newest delta on it
        assert set(store._locations) == {digest(t) for t in [*first.values(), full[KEYS[1]]]}
        store.publish(export("teacher", 2, full, {}))
        store.publish(export("student", 5, full, store.have("student")))
        assert len(refs(store)) == 1

    def test_a_full_state_is_assembled_from_deltas(self, backend):
        store = WeightStore(backend, Pool("rollouts", [], LIMIT_S))
        first = state(1.0)
        store.publish(export("teacher", 1, first, {}))
        second = state(9.0, like=first, changed=KEYS[2:])
        store.publish(export("teacher", 2, second, store.have("teacher")))
        full = store._full("teacher")
        assert (
            full.version == 2 and {k: digest(t) for k, t in full.tensors.items()} == full.manifest
        )
        rollout = CheckingRollout()
        assert rollout.load(full).tensors == 3

    def test_a_tensor_that_was_damaged_in_the_store_is_not_loaded(self, backend, store, handles):
        weights = export("teacher", 1, state(1.0), {})
        store.publish(weights)
        damaged = backend.put(
            replace(weights, tensors={**weights.tensors, KEYS[1]: weights.tensors[KEYS[1]] + 1})
        )
        store._locations = {digest: (damaged, key) for digest, (_, key) in store._locations.items()}
        with pytest.raises(
            WeightsDamaged,
            match="^weights: teacher version 1 is damaged in the store: "
            f"1 tensors, first {KEYS[1]}$",
        ):
            store.refill(handles)
        assert [handle.held() for handle in handles] == [{}, {}]

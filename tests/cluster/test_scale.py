"""Scaling: rollout workers join and leave a pool that stays in use."""

import json

import pytest

from cluster import scale
from cluster.runtime.local_backend import LocalBackend
from cluster.runtime.pool import Pool
from cluster.scale import Scaler
from cluster.weights import WeightStore
from sleep_rl.contracts.errors import InputError
from sleep_rl.journal.journal import Journal, read
from sleep_rl.runs.run_dir import FILE, alone
from tests.fakes.exports import KEYS, export, state
from tests.fakes.processes import LIMIT_S, until
from tests.fakes.undocumented import undocumented


class ScaledPool:
    """A pool with a store, a journal and a scaler, as the crew has them."""

    def __init__(self, backend, tmp_path, count, most=8, **worker):
        def spawn(number):
            return backend.spawn(
                "tests.fakes.rollouts:CheckingRollout", worker, name=f"rollout-{number}"
            )

        def check(count):
            if count > most:
                raise InputError(f"rollout: {count} actors requested, at most {most} fit")

        handles = [spawn(i) for i in range(count)]
        backend.ready(handles)
        self.pool = Pool("rollouts", handles, LIMIT_S)
        self.store = WeightStore(backend, self.pool)
        self.journal = Journal(tmp_path / "metrics.jsonl")
        self.scaler = Scaler(backend, self.pool, self.store, self.journal, spawn, check)
        self.path = tmp_path / "metrics.jsonl"

    def until(self, requested, count):
        until(lambda: self.scaler.step(requested) or len(self.pool.workers) == count)

    def names(self):
        return [handle.name for handle in self.pool.workers]

    def records(self, kind):
        records = read(self.path)
        assert undocumented(records) == []
        return [r for r in records if r["kind"] == kind]


def test_a_new_worker_joins_with_the_newest_version_of_every_state(backend, tmp_path):
    scaled = ScaledPool(backend, tmp_path, 1)
    first = state(1.0)
    scaled.store.push(export("teacher", 1, first, {}))
    scaled.store.push(
        export("student", 2, state(5.0, like=first, changed=KEYS[:1]), scaled.store.have("student"))
    )
    scaled.until(2, 2)
    assert scaled.names() == ["rollout-0", "rollout-1"]
    assert scaled.pool.workers[1].held() == {"teacher": 1, "student": 2}
    assert scaled.pool.workers[1].value("student", KEYS[0]) == 160.0
    scaled.store.push(export("student", 3, state(9.0), scaled.store.have("student")))
    assert [handle.held()["student"] for handle in scaled.pool.workers] == [3, 3]
    scaled.until(1, 1)
    scaled.until(2, 2)
    assert scaled.names() == ["rollout-0", "rollout-2"]  # names are not reused
    assert [(r["worker"], r["joined"], r["workers"]) for r in scaled.records("scaled")] == [
        ("rollout-1", True, 2),
        ("rollout-1", False, 1),
        ("rollout-2", True, 2),
    ]


def test_the_last_worker_stays_and_the_same_target_changes_nothing(tmp_path):
    with LocalBackend() as backend:
        scaled = ScaledPool(backend, tmp_path, 3)
        scaled.scaler.step(None)
        scaled.scaler.step(3)
        assert (
            scaled.names() == ["rollout-0", "rollout-1", "rollout-2"]
            and scaled.records("scaled") == []
        )
        scaled.scaler.step(1)
        assert scaled.names() == ["rollout-0"]
        assert [handle.name for handle in scaled.pool.remove(1)] == []


def test_a_target_that_does_not_fit_is_recorded_once(tmp_path):
    with LocalBackend() as backend:
        scaled = ScaledPool(backend, tmp_path, 1, most=2)
        for _ in range(3):
            scaled.scaler.step(4)
        assert scaled.names() == ["rollout-0"]
        assert [r["reason"] for r in scaled.records("failure")] == [
            "rollout: 4 actors requested, at most 2 fit"
        ]
        scaled.scaler.step(2)
        assert len(scaled.names()) == 2


def test_a_worker_that_does_not_verify_never_joins(tmp_path):
    with LocalBackend() as backend:
        scaled = ScaledPool(backend, tmp_path, 1, lies=True)
        scaled.store.publish(export("teacher", 2, state(1.0), {}))
        scaled.scaler.step(2)
        assert scaled.names() == ["rollout-0"]
        assert [r["reason"] for r in scaled.records("failure")] == [
            "worker rollout-1: requested was teacher version 2, loaded was teacher version 1"
        ]


def test_a_request_is_read_back_from_the_folder_of_a_live_run(tmp_path):
    (tmp_path / FILE).write_text("{}")
    assert scale.requested(tmp_path) is None
    with alone(tmp_path):
        assert scale.request(tmp_path, "rollouts=3") == 3 == scale.requested(tmp_path)
        assert scale.request(tmp_path, "rollouts=1") == 1 == scale.requested(tmp_path)
    assert json.loads((tmp_path / scale.FILE).read_text()) == {"rollouts": 1}


@pytest.mark.parametrize(
    "text, message",
    [
        ("rollouts=0", "scale: rollouts=N with N at least 1, got rollouts=0"),
        ("learners=2", "got learners=2"),
        ("rollouts", "got rollouts$"),
        (
            "rollouts=2",
            r"this run has no process "
            r".*rollouts.workers=2 resumes it with as many",
        ),
    ],
)
def test_an_invalid_scaling_request_is_an_input_error(text, message, tmp_path):
    (tmp_path / FILE).write_text("{}")
    with pytest.raises(InputError, match=message):
        scale.request(tmp_path, text)
    with pytest.raises(InputError, match="expected the folder of a run"):
        scale.request(tmp_path / "none", "rollouts=2")

"""Rollout workers that join and leave while others go on."""

import json
import time

import pytest

from cluster import scale
from cluster.runtime.local_backend import LocalBackend
from cluster.runtime.pool import Pool
from cluster.runtime.ray_backend import RayBackend
from cluster.scale import Scaler
from cluster.weights import WeightStore
from sleep_rl.contracts.errors import InputError
from sleep_rl.journal.journal import Journal, read
from sleep_rl.runs.run_dir import FILE, alone
from tests.fakes.exports import KEYS, export, state
from tests.fakes.undocumented import undocumented


@pytest.fixture(params=["local", pytest.param("ray", marks=pytest.mark.stack)])
def backend(request):
    with LocalBackend() if request.param == "local" else RayBackend(cpus=2) as backend:
        yield backend


class Crowd:
    """A pool with a store, a journal and a scaler, as the crew has them."""

    def __init__(self, backend, tmp_path, count, most=8, **worker):
        def spawn(number):
            return backend.spawn(
                "tests.fakes.workers:CheckingRollout", worker, name=f"rollout-{number}"
            )

        def check(asked):
            if asked > most:
                raise InputError(f"rollout: {asked} actors asked, the cluster has room for {most}")

        handles = [spawn(i) for i in range(count)]
        backend.ready(handles)
        self.pool = Pool("rollouts", handles, 60)
        self.store = WeightStore(backend, self.pool)
        self.journal = Journal(tmp_path / "metrics.jsonl")
        self.scaler = Scaler(backend, self.pool, self.store, self.journal, spawn, check)
        self.path = tmp_path / "metrics.jsonl"

    def until(self, wanted, count):
        deadline = time.monotonic() + 60
        while len(self.pool.workers) != count:
            self.scaler.step(wanted)
            assert time.monotonic() < deadline
            time.sleep(0.05)

    def names(self):
        return [handle.name for handle in self.pool.workers]

    def records(self, kind):
        records = read(self.path)
        assert undocumented(records) == []
        return [r for r in records if r["kind"] == kind]


def test_a_new_worker_joins_with_the_newest_version_of_everything(backend, tmp_path):
    crowd = Crowd(backend, tmp_path, 1)
    first = state(1.0)
    crowd.store.push(export("teacher", 1, first, {}))
    crowd.store.push(
        export("student", 2, state(5.0, like=first, changed=KEYS[:1]), crowd.store.have("student"))
    )
    crowd.until(2, 2)
    assert crowd.names() == ["rollout-0", "rollout-1"]
    assert crowd.pool.workers[1].held() == {"teacher": 1, "student": 2}
    assert crowd.pool.workers[1].value("student", KEYS[0]) == 160.0
    crowd.store.push(export("student", 3, state(9.0), crowd.store.have("student")))
    assert [handle.held()["student"] for handle in crowd.pool.workers] == [3, 3]
    crowd.until(1, 1)
    crowd.until(2, 2)
    assert crowd.names() == ["rollout-0", "rollout-2"]  # a name is never used again
    assert [(r["worker"], r["joined"], r["workers"]) for r in crowd.records("scaled")] == [
        ("rollout-1", True, 2),
        ("rollout-1", False, 1),
        ("rollout-2", True, 2),
    ]


def test_one_stays_and_nothing_asked_changes_nothing(tmp_path):
    with LocalBackend() as backend:
        crowd = Crowd(backend, tmp_path, 3)
        crowd.scaler.step(None)
        crowd.scaler.step(3)
        assert (
            crowd.names() == ["rollout-0", "rollout-1", "rollout-2"]
            and crowd.records("scaled") == []
        )
        crowd.scaler.step(1)
        assert crowd.names() == ["rollout-0"]
        assert [handle.name for handle in crowd.pool.remove(1)] == []


def test_what_the_cluster_cannot_place_is_said_once_and_the_run_goes_on(tmp_path):
    with LocalBackend() as backend:
        crowd = Crowd(backend, tmp_path, 1, most=2)
        for _ in range(3):
            crowd.scaler.step(4)
        assert crowd.names() == ["rollout-0"]
        assert [r["reason"] for r in crowd.records("failure")] == [
            "rollout: 4 actors asked, the cluster has room for 2"
        ]
        crowd.scaler.step(2)
        assert len(crowd.names()) == 2


def test_a_worker_that_does_not_verify_never_joins(tmp_path):
    with LocalBackend() as backend:
        crowd = Crowd(backend, tmp_path, 1, lies=True)
        crowd.store.publish(export("teacher", 2, state(1.0), {}))
        crowd.scaler.step(2)
        assert crowd.names() == ["rollout-0"]
        assert [r["reason"] for r in crowd.records("failure")] == [
            "worker rollout-1: asked to load teacher version 2, reports teacher version 1"
        ]


def test_the_wish_reaches_a_run_that_goes_on(tmp_path):
    (tmp_path / FILE).write_text("{}")
    assert scale.wanted(tmp_path) is None
    with alone(tmp_path):
        assert scale.ask(tmp_path, "rollouts=3") == 3 == scale.wanted(tmp_path)
        assert scale.ask(tmp_path, "rollouts=1") == 1 == scale.wanted(tmp_path)
    assert json.loads((tmp_path / scale.FILE).read_text()) == {"rollouts": 1}


@pytest.mark.parametrize(
    "request_, says",
    [
        ("rollouts=0", "scale: rollouts=N with N at least 1, got rollouts=0"),
        ("learners=2", "got learners=2"),
        ("rollouts", "got rollouts$"),
        (
            "rollouts=2",
            r"no process lives in this run "
            r".*rollouts.workers=2 goes on with as many",
        ),
    ],
)
def test_a_wish_that_cannot_be_met_is_refused_in_one_line(request_, says, tmp_path):
    (tmp_path / FILE).write_text("{}")
    with pytest.raises(InputError, match=says):
        scale.ask(tmp_path, request_)
    with pytest.raises(InputError, match="expected the folder of a run"):
        scale.ask(tmp_path / "none", "rollouts=2")

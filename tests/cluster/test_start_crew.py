"""The start of a crew: how long it waits for nodes."""

import pytest

from cluster import crew
from cluster.runtime.local_backend import LocalBackend
from cluster.worker_specs import CrewSpec
from sleep_rl.contracts.errors import InputError
from sleep_rl.journal.journal import Journal
from tests.fakes.configs import toy


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

"""The probe of the doctor: a push and a step on small workers."""

import json
import os
import re
import sys
from pathlib import Path

import pytest

from actors.environment import cpu_environment
from cluster.doctor import doctor, processes
from sleep_rl.contracts.errors import InputError

ROOT = Path(__file__).parents[3]


def test_the_probe_writes_its_error_as_the_result(tmp_path, monkeypatch):
    from cluster.doctor import probe

    def refuse(*_):
        raise InputError("cluster: two\nlines")

    monkeypatch.setattr(probe, "RayBackend", refuse)
    probe.main("ray", "cpu", str(tmp_path))
    assert json.loads((tmp_path / doctor.RESULT).read_text()) == {
        "ok": False,
        "message": "cluster: two\nlines",
    }
    assert (
        probe.config_of(True, tmp_path).rollouts.gpus
        + probe.config_of(True, tmp_path).learners.gpus
        < 1
    )


@pytest.mark.slow
@pytest.mark.stack
def test_the_probe_passes_on_the_local_backend(tmp_path):
    """In a process of its own, which it cannot share with the vLLM engines of other tests."""
    environment = {**os.environ, **cpu_environment(1), "PYTHONPATH": str(ROOT)}
    with open(tmp_path / "log", "w") as log:
        exit_code = processes.run_process(
            [sys.executable, "-m", "cluster.doctor.probe", "local", "cpu", str(tmp_path)],
            600,
            environment,
            log,
        )
    assert exit_code == 0, (tmp_path / "log").read_text()
    result = json.loads((tmp_path / doctor.RESULT).read_text())
    assert result["ok"] and re.search(
        r"loss \d+\.\d+\), pushed [1-9]\d* tensors in .* verified "
        r"to \de-\d+ "
        r"nats",
        result["message"],
    ), result

"""The W&B client's own process: what it defines and logs, and its end."""

import threading
from types import SimpleNamespace

import pytest

from cluster.tracking.client import Client


class RecordingRun:
    """Records what is defined and logged."""

    offline = False

    def __init__(self):
        self.defined = {}
        self.rows = []

    def define_metric(self, name, hidden=False, step_metric=None):
        self.defined[name] = step_metric

    def log(self, row, step, commit):
        self.rows.append(row)


def test_a_baseline_of_any_name_has_its_curve_over_its_own_steps(tmp_path):
    run = RecordingRun()
    client = Client(run, tmp_path, "n1", artifacts=False)
    for step in range(2):
        for method in ("newest_day", "sft"):
            client.log({"kind": "baseline", "t": 1.0, "method": method, "step": step, "loss": 0.5})
    assert run.rows == [
        {f"{method}/loss": 0.5, f"{method}/step": position}
        for position in (1, 2)
        for method in ("newest_day", "sft")
    ]
    assert run.defined["newest_day/*"] == "newest_day/step" in run.defined


def test_the_last_bytes_may_come_after_the_end_of_the_run(tmp_path):
    """wandb-core can still be writing when `finish` returns."""
    file = tmp_path / "run.wandb"
    file.write_bytes(b":W&B")
    late = threading.Timer(0.3, file.write_bytes, [b"x" * 99])
    run = SimpleNamespace(
        offline=True,
        settings=SimpleNamespace(sync_file=str(file)),
        finish=lambda exit_code: late.start(),
    )
    client = Client(run, tmp_path, "n1", artifacts=False)
    client._sent = 99
    client.end(0)
    late.join()
    client._sent = 100  # as if the disk were full
    with pytest.MonkeyPatch.context() as patch, pytest.raises(OSError, match="99 of at least 100"):
        patch.setattr("cluster.tracking.client.FLUSH_S", 0.1)
        run.finish = lambda exit_code: None
        client.end(0)

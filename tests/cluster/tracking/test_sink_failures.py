"""Failures of the W&B sink with the real client: recorded once, and never a reason to wait."""

import os
import resource
import signal
import socket
import time
from contextlib import suppress
from pathlib import Path

import psutil
import pytest

from cluster.tracking.sink import WandbSink
from sleep_rl.journal.journal import Journal, read
from tests.fakes.processes import LIMIT_S, has_ended, until
from tests.fakes.wandb_files import folders, sink_of

pytestmark = pytest.mark.stack  # real W&B clients in processes of their own


def recorded_failure(folder: Path, sink: WandbSink, wait: bool = True) -> str:
    """Return the reason of the one sink_failed record; the other records must be complete."""
    journal = Journal(folder / "m.jsonl", [sink])
    journal.log("wake", step=1)
    if wait:
        assert sink._exited.wait(LIMIT_S)
    for step in (2, 3):
        journal.log("wake", step=step)
    journal.close()
    records = read(folder / "m.jsonl")
    assert [r["step"] for r in records if r["kind"] == "wake"] == [1, 2, 3]
    [failed] = [r for r in records if r["kind"] == "sink_failed"]
    assert failed["sink"] == "W&B"
    return failed["reason"]


def test_a_missing_key_is_recorded_once(tmp_path, monkeypatch):
    for name in ("WANDB_API_KEY", "WANDB_MODE", "WANDB_IDENTITY_TOKEN_FILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    monkeypatch.setenv("WANDB_CONFIG_DIR", str(tmp_path))
    assert "there is no API key: set WANDB_API_KEY" in recorded_failure(
        tmp_path, sink_of(tmp_path, "online")
    )


def test_a_missing_package_is_recorded_once(tmp_path, monkeypatch):
    (tmp_path / "wandb.py").write_text("raise ModuleNotFoundError('No module named wandb')")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    assert "could not start: ModuleNotFoundError: No module named wandb" in recorded_failure(
        tmp_path, sink_of(tmp_path / "run")
    )


def test_an_unwritable_folder_is_recorded_at_the_start(tmp_path):
    (tmp_path / "file").write_text("")
    assert "could not start: Not a directory" in recorded_failure(
        tmp_path, sink_of(tmp_path / "file"), wait=False
    )


@pytest.mark.parametrize(
    "listens", [False, True], ids=["no network", "a server that never answers"]
)
def test_a_server_without_response_is_recorded_once(tmp_path, monkeypatch, listens):
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        if listens:
            server.listen()
        monkeypatch.delenv("WANDB_MODE", raising=False)
        monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
        monkeypatch.setenv("WANDB_BASE_URL", f"http://127.0.0.1:{server.getsockname()[1]}")
        monkeypatch.setenv("WANDB_CONFIG_DIR", str(tmp_path))
        sink = sink_of(tmp_path, "online", start_seconds=2)
        assert not sink._exited.is_set(), "the constructor must not wait for W&B"
        assert "could not start" in recorded_failure(tmp_path, sink)
    assert "0" * 40 not in (tmp_path / "m.jsonl").read_text()


def test_a_full_disk_is_recorded_once(tmp_path):
    """No file of the client can grow beyond 64 KiB; wandb drops the rest and reports nothing."""
    hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
    sink = sink_of(tmp_path)
    resource.prlimit(sink._process.pid, resource.RLIMIT_FSIZE, (1 << 16, hard))
    journal = Journal(tmp_path / "m.jsonl", [sink])
    for step in range(1000):
        journal.log("seed", night=1, step=step, **{f"value {i}": i / 7 for i in range(5)})
    journal.close()
    failed = [r for r in read(tmp_path / "m.jsonl") if r["kind"] == "sink_failed"]
    assert (
        len(failed) == 1
        and "is the disk full?" in failed[0]["reason"]
        and len(read(tmp_path / "m.jsonl")) == 1001
    )


def core_of(sink: WandbSink) -> psutil.Process:
    """The client's process wandb-core, which writes and uploads."""

    def found():
        for child in psutil.Process(sink._process.pid).children():
            with suppress(psutil.Error):  # wandb also starts children that end at once
                if "wandb-core" in " ".join(child.cmdline()) and folders(sink._log.parents[1]):
                    return child

    return until(found)


@pytest.mark.parametrize("who", ["client", pytest.param("wandb-core", marks=pytest.mark.slow)])
def test_a_client_that_hangs_does_not_delay_the_run_and_is_killed(tmp_path, who):
    sink = sink_of(tmp_path, stall_seconds=1, close_seconds=1)
    journal = Journal(tmp_path / "m.jsonl", [sink])
    core = core_of(sink)
    os.kill(sink._process.pid if who == "client" else core.pid, signal.SIGSTOP)
    for step in range(500):
        # more than the pipe between the two holds
        journal.log("seed", night=1, step=step, text="x" * 500)
    if who == "client":
        until(lambda: (started := sink._write_started) and time.monotonic() - started > 1)
    else:  # the client itself still takes what it is told
        time.sleep(1.5)
    journal.log("seed", night=1, step=500)
    journal.close()
    records = read(tmp_path / "m.jsonl")
    assert [r["step"] for r in records if r["kind"] == "seed"] == list(range(501))
    [failed] = [r["reason"] for r in records if r["kind"] == "sink_failed"]
    assert "its client read nothing for" in failed or (
        who == "wandb-core" and "uploads the rest" in failed
    )
    assert sink._process.poll() is not None
    until(lambda: has_ended(core.pid))


def test_a_client_that_dies_is_recorded_once(tmp_path):
    sink = sink_of(tmp_path)
    core_of(sink)
    sink._process.kill()
    assert "its client ended with exit code -9" in recorded_failure(tmp_path, sink)

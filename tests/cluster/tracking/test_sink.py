"""The W&B sink with the real client in offline mode, checked in wandb's files; and its failures."""

import json
import os
import resource
import signal
import socket
import struct
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import psutil
import pytest
from PIL import Image

from cluster.tracking.sink import WandbSink
from sleep_rl.journal.journal import Journal, read
from tests.fakes.processes import LIMIT_S, command, has_ended, kill_after, start, until

pytestmark = pytest.mark.stack  # real W&B clients in processes of their own

ROOT = Path(__file__).parents[3]
CONFIG = {
    "steps": 200,
    "model": {"d_low": 64},
    "max_new_tokens": 24,
    "wandb": {"api_key": "s3cr3t"},
}


def records_of(folder: Path) -> list:
    """Records of a client's .wandb file: LevelDB's log format (blocks of 32 KiB, 7-byte chunk
    headers) of protobufs.
    """
    from wandb.proto.wandb_internal_pb2 import Record

    (path,) = folder.glob("*.wandb")
    data = path.read_bytes()
    at = 7  # bytes of the file header
    whole = b""
    records = []
    while at + 7 <= len(data):
        if 32768 - at % 32768 < 7:  # a block's rest that is too short for a header
            at += 32768 - at % 32768
            continue
        _, length, part = struct.unpack("<IHB", data[at : at + 7])
        whole += data[at + 7 : at + 7 + length]
        at += 7 + length
        if part in (1, 4):  # a full record, or the last chunk of one
            records.append(Record.FromString(whole))
            whole = b""
    return records


def folders(run: Path) -> list[Path]:
    """The client's folders of a run, the oldest first."""
    return sorted(run.glob("wandb/offline-run-*"))


def rows(folder: Path) -> list[dict]:
    return [
        {"/".join(i.nested_key) or i.key: json.loads(i.value_json) for i in r.history.item}
        for r in records_of(folder)
        if r.HasField("history")
    ]


def curve(folder: Path, x: str, y: str) -> list[tuple]:
    return [(row[x], row[y]) for row in rows(folder) if y in row]


def summary(folder: Path) -> dict:
    return {
        "/".join(u.nested_key) or u.key: json.loads(u.value_json)
        for r in records_of(folder)
        if r.HasField("summary")
        for u in r.summary.update
    }


def sink_of(folder: Path, mode: str = "offline", **more) -> WandbSink:
    limits = dict.fromkeys(("start_seconds", "stall_seconds", "close_seconds"), LIMIT_S)
    return WandbSink("sleep", mode, **{"dir": folder, "config": {}, **limits, **more})


def first_night(journal: Journal) -> None:
    journal.log("evaluate", after="base", method="sleep", row={"known": 0.99}, open_book=None)
    journal.log("wake", day="day 1", step=12, loss=2.5, updates=2, seconds=1)
    journal.log(
        "completion",
        when="before",
        day="day 1",
        question="q1",
        prompt="Q",
        answer="a",
        completion="b",
        score=0.0,
    )
    journal.log("evaluate", after="day 1", method="sleep", row={}, open_book={"day 1": 0.97})
    journal.log("written", day="day 1", night=1, sender=0, new=3, examples=["one", "two"])
    for step, loss in ((0, 1.5), (1, 1.25)):
        journal.log(
            "seed",
            day="day 1",
            night=1,
            sender=0,
            step=step,
            steps=2,
            loss=loss,
            grad_norm=float("nan"),
        )
    journal.log("push", name="student", version=1, bytes=786432, seconds=0.01)
    journal.log(
        "dream",
        night=1,
        round=1,
        task="t",
        number=0,
        text="I dreamed",
        importance=0.5,
        kept=True,
        tau_before=0.25,
        taus=[0.75],
        reward=1,
        gain=0.5,
        held_out=0.25,
        reason="",
    )
    journal.log(
        "dreamed",
        night=1,
        round=1,
        written=1,
        kept=1,
        rewarded=1,
        failed=0,
        tau_before=0.25,
        gain=0.5,
        gain_rewarded=0.5,
        gain_held_out=0.25,
    )
    journal.log("seed", day="dreams", night=1, sender=-1, step=0, steps=1, loss=0.75)
    journal.log(
        "evaluate",
        after="night 1",
        method="sleep",
        row={"known": 0.9, "day 1": 0.94},
        deeper={"two-hop": 0.5},
    )
    journal.log(
        "completion",
        when="after",
        day="day 1",
        question="q1",
        prompt="Q",
        answer="a",
        completion="a",
        score=1.0,
    )
    journal.log("failure", where="reward", reason="timed out", count=3)
    journal.log("saved", night=1, path="memory/night-1")


def second_night(journal: Journal) -> None:
    journal.log("wake", day="day 2", step=12, loss=2.0, updates=2, seconds=1)
    journal.log("seed", day="day 2", night=2, sender=0, step=0, steps=2, loss=0.5)
    journal.log(
        "evaluate", after="night 2", method="sleep", row={"known": 0.8, "day 1": 0.9, "day 2": 0.95}
    )
    journal.log(
        "completion",
        when="after",
        day="day 2",
        question="q2",
        prompt="Q",
        answer="d",
        completion="c",
        score=0.0,
    )


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run that is killed in its second night and resumed after the first one."""
    folder = tmp_path_factory.mktemp("tracking")
    (folder / "memory" / "night-1").mkdir(parents=True)
    (folder / "memory" / "night-1" / "memory.safetensors").write_bytes(b"weights")
    options = {
        "config": CONFIG,
        "name": "n1",
        "group": "g1",
        "run_id": "abc123",
        "commit": "c0ffee",
        "artifacts": True,
    }
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("WANDB_MODE", "offline")
        killed = sink_of(folder, "online", **options)
        journal = Journal(folder / "metrics.jsonl", [killed])
        first_night(journal)
        keep = journal.size()
        second_night(journal)
        killed._lines.put(None)  # as when the driver is killed
        until(lambda: not killed._lines.qsize())
        killed._process.stdin.close()
        assert killed._exited.wait(LIMIT_S)
        journal = Journal(
            folder / "metrics.jsonl", [sink_of(folder, "online", **options)], keep=keep
        )
        second_night(journal)
        journal.log("done", seconds=12.5, status="ok", reason="")
        journal.close()
    return folder


def test_numbers_are_logged_over_the_axis_of_their_phase(run):
    first, _ = folders(run)
    assert curve(first, "consolidate/step", "consolidate/seed/loss")[:2] == [(1, 1.5), (2, 1.25)]
    assert curve(first, "dream/step", "dream/dreamed/gain") == [(1, 0.5)]
    assert curve(first, "dream/step", "dream/seed/loss") == [(2, 0.75)], (
        "training on dreams is not part of consolidation"
    )
    assert curve(first, "wake/day", "wake/loss") == [(1, 2.5), (2, 2.0)]
    assert curve(first, "evaluate/night", "evaluate/sleep/known") == [(0, 0.99), (1, 0.9), (2, 0.8)]
    assert curve(first, "evaluate/night", "evaluate/open book/day 1") == [(1, 0.97)]
    assert curve(first, "evaluate/night", "evaluate/sleep/two-hop") == [(1, 0.5)]
    [(minutes, size)] = curve(first, "workers/minutes", "workers/push/bytes")
    assert size == 786432 and 0 <= minutes < 1
    steps = [row["_step"] for row in rows(first)]
    assert steps == sorted(set(steps))


def test_every_phase_declares_its_x_axis(run):
    records = records_of(folders(run)[0])
    globs = {
        r.metric.glob_name: r.metric.step_metric
        for r in records
        if r.HasField("metric") and r.metric.glob_name
    }
    assert globs == {
        "wake/*": "wake/day",
        "consolidate/*": "consolidate/step",
        "dream/*": "dream/step",
        "evaluate/*": "evaluate/night",
        "workers/*": "workers/minutes",
    }


def test_a_resumed_run_continues_after_its_kept_records(run):
    first, second = folders(run)
    assert {r.run.run_id for f in (first, second) for r in records_of(f) if r.HasField("run")} == {
        "abc123"
    }
    assert curve(second, "consolidate/step", "consolidate/seed/loss") == [(3, 0.5)]
    assert curve(second, "wake/day", "wake/loss") == [(2, 2.0)]
    assert curve(first, "consolidate/step", "consolidate/seed/loss")[2:] == [(3, 0.5)], (
        "the repeated step has the same point"
    )
    again = {row["_step"] for row in rows(second)} & {row["_step"] for row in rows(first)}
    assert len(again) == 3, "repeated records have the same W&B step, so that W&B drops them"
    assert summary(second)["retention/sleep/day 2"] == 0.95


def test_wandb_sync_finds_both_processes_of_a_run(run):
    found = subprocess.run(
        [sys.executable, "-m", "wandb", "sync", "--dry-run", str(run / "wandb")],
        capture_output=True,
        text=True,
        timeout=LIMIT_S,
        env={**os.environ, "WANDB_DIR": str(run)},
    )
    assert "Would sync 2 run(s)" in found.stderr + found.stdout
    codes = [r.exit.exit_code for f in folders(run) for r in records_of(f) if r.HasField("exit")]
    assert codes == [1, 0], "the killed process failed, the resumed one did not"


def test_the_retention_matrix_is_an_image_per_night(run):
    first, second = folders(run)
    pictures = [
        {name.removeprefix("retention/matrix/"): value for name, value in row.items()}
        for f in (first, second)
        for row in rows(f)
        if "retention/matrix/path" in row
    ]
    assert [p["caption"] for p in pictures] == ["after night 1", "after night 2", "after night 2"]
    for folder, picture in zip((first, first, second), pictures, strict=True):
        with Image.open(folder / "files" / picture["path"]) as image:
            assert (
                image.format == "PNG"
                and image.width > 200
                and len(image.convert("RGB").getcolors(1 << 20)) > 10
            )
    assert pictures[1]["sha256"] == pictures[2]["sha256"] != pictures[0]["sha256"]


def test_samples_and_dreams_are_logged_as_tables(run):
    first, second = folders(run)

    def table(folder, name):
        last = [row[f"{name}/path"] for row in rows(folder) if f"{name}/path" in row][-1]
        content = json.loads((folder / "files" / last).read_text())
        return [dict(zip(content["columns"], line, strict=True)) for line in content["data"]]

    assert [(r["when"], r["completion"], r["score"]) for r in table(first, "samples/answers")] == [
        ("before", "b", 0.0),
        ("after", "a", 1.0),
    ]
    assert [(r["night"], r["text"]) for r in table(first, "samples/written")] == [
        (1, "one"),
        (1, "two"),
    ]
    [dream] = table(first, "samples/dreams")
    assert (dream["text"], dream["importance"], dream["reward"]) == ("I dreamed", 0.5, 1)
    assert (dream["gain"], dream["held_out"]) == (0.5, 0.25)
    assert [r["completion"] for r in table(second, "samples/answers")] == ["b", "a", "c"], (
        "earlier rows stay"
    )


def test_the_memory_of_a_night_is_an_artifact_if_configured(run):
    [artifact] = [
        r.artifact
        for r in records_of(folders(run)[0])
        if r.HasField("artifact") and r.artifact.type == "memory"
    ]
    assert artifact.name == "n1-memory" and sorted(artifact.aliases) == ["latest", "night-1"]
    assert json.loads(artifact.metadata) == {
        "night": 1,
        "accuracies": {"known": 0.9, "day 1": 0.94},
    }
    [entry] = artifact.manifest.contents
    assert entry.path == "memory.safetensors" and entry.size == 7
    assert entry.local_path == str(run / "memory" / "night-1" / "memory.safetensors"), (
        "no second copy"
    )


def test_the_summary_has_retention_failures_and_status(run):
    first, second = map(summary, folders(run))
    assert first["failures"] == 3 and first["retention/sleep/day 1"] == 0.9
    assert second["retention/sleep/after"] == "night 2"
    assert second["done/status"] == "ok" and second["done/seconds"] == 12.5


def test_config_and_commit_are_logged_without_secrets(run):
    (start, *_) = [r.run for r in records_of(folders(run)[0]) if r.HasField("run")]
    assert (start.run_id, start.project, start.display_name, start.run_group) == (
        "abc123",
        "sleep",
        "n1",
        "g1",
    )
    config = {u.key: json.loads(u.value_json) for u in start.config.update}
    assert (
        config["steps"] == 200
        and config["model"] == {"d_low": 64}
        and config["max_new_tokens"] == 24
    )
    assert config["wandb"] == {}
    assert config["commit"] == start.git.commit == "c0ffee" and start.git.remote_url == ""
    files = [f for f in run.rglob("*") if f.is_file()]
    assert any(f.suffix == ".wandb" for f in files) and not any(
        b"s3cr3t" in f.read_bytes() for f in files
    )
    assert not any(f.name == "wandb-metadata.json" for f in files), (
        "the command line is not recorded"
    )


def test_a_sink_without_failures_records_none(run):
    assert not [r for r in read(run / "metrics.jsonl") if r["kind"] == "sink_failed"]


@pytest.mark.slow
@pytest.mark.stack
def test_the_curves_of_a_killed_and_resumed_run_are_continuous(tmp_path):
    life = start(tmp_path, "life", "local")
    folder = tmp_path / "life"
    life["args"].append("wandb.mode=offline")
    kill_after(subprocess.Popen(**life), folder / "metrics.jsonl", 45)
    again = subprocess.run(**command("resume", str(folder)), timeout=LIMIT_S)
    assert again.returncode == 0, again.stdout
    first, second = folders(folder)
    records = read(folder / "metrics.jsonl")
    want = [r["loss"] for r in records if r["kind"] == "seed"]
    points = [curve(part, "consolidate/step", "consolidate/seed/loss") for part in (first, second)]
    assert dict(points[0] + points[1]) == pytest.approx(dict(enumerate(want, start=1)))
    assert points[0] and points[1] and points[1][0][0] > 1, "it does not begin again at 1"
    assert all(dict(points[0])[x] == pytest.approx(y) for x, y in points[1] if x in dict(points[0]))
    nights = {
        x
        for part in (first, second)
        for x, _ in curve(part, "evaluate/night", "evaluate/sleep/known")
    }
    assert nights == {0, 1, 2} and not [r for r in records if r["kind"] == "sink_failed"]


# ---- failures


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

"""The W&B sink, with the real client in offline mode: what it wrote is read back from its file."""

import json
import struct
import sys
import threading
import time
from pathlib import Path

import pytest

from cluster.tracking import WandbSink
from sleep_rl.metrics import Journal, read


def written(folder: Path) -> list:
    """Records of the client's .wandb file: LevelDB's log format (blocks of 32 KiB, 7-byte chunk headers) of protobufs."""
    from wandb.proto.wandb_internal_pb2 import Record

    (path,) = folder.glob("wandb/offline-run-*/*.wandb")
    data, at, whole, records = path.read_bytes(), 7, b"", []  # 7 bytes of file header
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


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """One offline run of the real client, driven through a journal."""
    folder = tmp_path_factory.mktemp("tracking")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("WANDB_MODE", "offline")
        config = {"steps": 200, "model": {"d_low": 64}, "max_new_tokens": 24, "wandb": {"api_key": "s3cr3t"}}
        sink = WandbSink("sleep", "online", name="n1", group="g1", dir=folder / "new", config=config, run_id="abc123")
        assert sink.failed == ""
        journal = Journal(folder / "metrics.jsonl", [sink])
        for step, loss in ((1, 1.5), (2, 1.25)):
            journal.log("seed", day="day 1", night=1, step=step, loss=loss, grad_norm=float("nan"))
        journal.log("push", name="student", version=1, bytes=786432, seconds=0.01)
        journal.log("evaluate", after="base", method="sleep", row={"known": 0.99}, open_book={"day 1": 0.97})
        journal.log("evaluate", after="night 1", method="sleep", row={"known": 0.9, "day 1": 0.94}, open_book=None)
        journal.log("failure", where="reward", reason="timed out", count=3)
        journal.log("done", seconds=12.5, status="ok", reason="")
        journal.close()
    for _ in range(100):  # offline, finish returns before the client's own process has written everything
        records = written(folder / "new")
        if any(r.HasField("exit") for r in records):
            return folder, records
        time.sleep(0.1)
    raise AssertionError(f"the client did not write the end of its run: {records}")


def test_curves_have_one_axis_per_kind(run):
    _, records = run
    rows = [{"/".join(i.nested_key) or i.key: json.loads(i.value_json) for i in r.history.item} for r in records if r.HasField("history")]
    seed = [{k: v for k, v in row.items() if k.startswith("seed/")} for row in rows if "seed/loss" in row]
    assert seed == [{"seed/night": 1, "seed/step": 1, "seed/loss": 1.5, "seed/record": 1},
                    {"seed/night": 1, "seed/step": 2, "seed/loss": 1.25, "seed/record": 2}]
    assert [row["push/bytes"] for row in rows if "push/record" in row] == [786432]
    evaluations = [row for row in rows if "evaluate/record" in row]
    assert [(e["evaluate/record"], e["evaluate/sleep/known"]) for e in evaluations] == [(1, 0.99), (2, 0.9)]
    assert evaluations[0]["evaluate/open_book/day 1"] == 0.97
    globs = {r.metric.glob_name: r.metric.step_metric for r in records if r.HasField("metric") and r.metric.glob_name}
    assert globs["seed/*"] == "seed/record" and globs["push/*"] == "push/record" and len(globs) == 7


def test_the_summary_holds_retention_failures_and_the_end(run):
    _, records = run
    summary = {"/".join(u.nested_key) or u.key: json.loads(u.value_json)
               for r in records if r.HasField("summary") for u in r.summary.update}
    assert summary["retention/sleep/day 1"] == 0.94 and summary["retention/sleep/known"] == 0.9
    assert summary["retention/sleep/after"] == "night 1"
    assert summary["failures"] == 3 and summary["done/status"] == "ok" and summary["done/seconds"] == 12.5


def test_identity_and_configuration_without_secrets(run):
    folder, records = run
    (start,) = [r.run for r in records if r.HasField("run")]
    assert (start.run_id, start.project, start.display_name, start.run_group) == ("abc123", "sleep", "n1", "g1")
    config = {u.key: json.loads(u.value_json) for u in start.config.update}
    assert config["steps"] == 200 and config["model"] == {"d_low": 64} and config["max_new_tokens"] == 24 and config["wandb"] == {}
    files = [f for f in folder.rglob("*") if f.is_file()]
    assert any(f.suffix == ".wandb" for f in files) and not any(b"s3cr3t" in f.read_bytes() for f in files)
    assert not any(f.name == "wandb-metadata.json" for f in files), "the command line is not recorded"


def test_the_journal_has_no_complaint_about_a_healthy_sink(run):
    folder, _ = run
    assert [r["kind"] for r in read(folder / "metrics.jsonl")] == ["seed", "seed", "push", "evaluate", "evaluate", "failure", "done"]


def test_without_a_key_the_sink_is_off_and_the_run_goes_on(tmp_path, monkeypatch):
    for name in ("WANDB_API_KEY", "WANDB_MODE", "WANDB_IDENTITY_TOKEN_FILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    monkeypatch.setenv("WANDB_CONFIG_DIR", str(tmp_path))
    sink = WandbSink("sleep", "online", dir=tmp_path, config={})
    journal = Journal(tmp_path / "m.jsonl", [sink])
    journal.log("wake", step=1)
    journal.close()
    failed, wake = read(tmp_path / "m.jsonl")
    assert failed["sink"] == "W&B" and "no API key: set WANDB_API_KEY" in failed["reason"] and wake["kind"] == "wake"


def test_without_the_package_the_sink_is_off(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)  # import raises
    sink = WandbSink("sleep", "offline", dir=tmp_path, config={})
    assert sink.failed.startswith("could not start: ModuleNotFoundError") and sink.close() is None


class FakeRun:
    """Stands for a client whose server died."""

    dir = "/runs/wandb/run-1/files"

    def __init__(self, finish):
        self.finish = finish

    def log(self, values):
        raise ConnectionError("broken pipe")


def sink_of(finish, monkeypatch, tmp_path, close_seconds=0.2):
    monkeypatch.setattr("cluster.tracking._start", lambda *a, **k: FakeRun(finish))
    return WandbSink("sleep", "offline", dir=tmp_path, config={}, close_seconds=close_seconds)


def test_a_dead_server_never_blocks_the_end(tmp_path, monkeypatch):
    hang = threading.Event()
    journal = Journal(tmp_path / "m.jsonl", [sink_of(hang.wait, monkeypatch, tmp_path)])
    began = time.monotonic()
    journal.close()
    assert 0.2 <= time.monotonic() - began < 2
    assert read(tmp_path / "m.jsonl")[0]["reason"] == "TimeoutError: no end after 0.2 s; `wandb sync /runs/wandb/run-1` uploads the rest"
    (thread,) = [t for t in threading.enumerate() if t.name == "wandb-finish"]
    assert thread.daemon, "or the interpreter would wait for it"
    hang.set()
    thread.join(5)


def test_an_error_at_the_end_reaches_the_journal(tmp_path, monkeypatch):
    def finish():
        raise ValueError("upload refused")

    Journal(tmp_path / "m.jsonl", [sink_of(finish, monkeypatch, tmp_path)]).close()
    assert read(tmp_path / "m.jsonl")[0]["reason"] == "ValueError: upload refused"


def test_an_error_while_logging_switches_the_sink_off(tmp_path, monkeypatch):
    journal = Journal(tmp_path / "m.jsonl", [sink_of(lambda: None, monkeypatch, tmp_path)])
    for step in (1, 2):
        journal.log("seed", step=step)
    kinds = [(r["kind"], r.get("reason")) for r in read(tmp_path / "m.jsonl")]
    assert kinds == [("seed", None), ("sink_failed", "ConnectionError: broken pipe"), ("seed", None)]

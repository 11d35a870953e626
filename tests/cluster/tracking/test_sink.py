"""The W&B sink with the real client in offline mode, checked in wandb's files."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from sleep_rl.journal.journal import Journal, read
from tests.fakes.processes import LIMIT_S, command, kill_after, start, until
from tests.fakes.wandb_files import curve, folders, records_of, rows, sink_of, summary

pytestmark = pytest.mark.stack  # real W&B clients in processes of their own

ROOT = Path(__file__).parents[3]
CONFIG = {
    "steps": 200,
    "model": {"d_low": 64},
    "max_new_tokens": 24,
    "wandb": {"api_key": "s3cr3t"},
}


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

"""What the live page says of the workers: activities, restarts, last lines of logs."""

import pytest

from sleep_rl.contracts.records import peer_name
from sleep_rl.watch.page import PAGE
from sleep_rl.watch.workers import ROLES
from tests.fakes.watched_runs import CONFIG, begin, seed


def test_workers_have_activities_restarts_and_last_log_lines(tmp_path, watch):
    journal = begin(tmp_path)
    journal.log(
        "sample",
        weights="student",
        tokens=800,
        sequences=400,
        failed=0,
        tokens_per_second=7320.1,
        seconds=0.1,
    )
    journal.log(
        "push",
        name="student",
        version=12,
        bytes=1,
        tensors=1,
        seconds=0.02,
        workers=2,
        probe_gap=0.0,
        pause=0.01,
    )
    seed(journal, 1, 2)
    journal.log("restarted", worker="rollout-1", reason="died")
    journal.log("restarted", worker="all workers", reason="learner lost")
    journal.log("scaled", worker="rollout-2", joined=True, workers=3)
    journal.log("scaled", worker="rollout-0", joined=False, workers=2)
    (tmp_path / "logs").mkdir()
    ended = b"\x1b[31mloading\x1b[0m 10%\rloading 100%\x00 \xff\n\n"
    (tmp_path / "logs" / "rollout-1.log").write_bytes(b"a\n" * 5000 + ended)
    (tmp_path / "logs" / "stacks.log").write_text("Thread 1")
    (tmp_path / "logs" / "learner-0.log").write_text("")
    (tmp_path / "logs" / "stolen.log").symlink_to("/etc/hostname")
    crew = {role["role"]: role for role in watch().state()["workers"]}
    assert list(crew) == ["rollout", "learner", "reward", "files"]
    assert [activity["text"] for activity in crew["rollout"]["activities"]] == [
        "verified version 12 of the student",
        "sampled 400 sequences (student), 7,320 tokens a second",
    ]
    workers = {w["name"]: w for role in crew.values() for w in role["workers"]}
    assert list(workers) == [
        "rollout-0",
        "rollout-1",
        "rollout-2",
        "learner-0",
        "reward-0",
        "stacks",
    ]
    assert [workers[f"rollout-{i}"]["left"] for i in range(3)] == [True, False, False]
    assert (workers["rollout-1"]["restarts"], crew["learner"]["restarts"]) == (1, 1)
    log = workers["rollout-1"]["log"]
    written = (tmp_path / "logs" / "rollout-1.log").stat().st_mtime
    assert log["line"] == "loading 100% \ufffd" and log["t"] == pytest.approx(written, abs=0.01)
    assert workers["learner-0"]["log"]["line"] == "" and workers["reward-0"]["log"] is None
    assert [activity["text"] for activity in crew["learner"]["activities"]] == [
        "consolidation, step 3 of 4, loss 1.200"
    ]
    assert crew["reward"]["activities"][0]["text"] == "mean reward 0.80"


def test_workers_of_model_teachers_have_role_peer(tmp_path, watch):
    begin(tmp_path, {**CONFIG, "model": {"teachers": ["A", "B"]}})
    [role] = [role for role in watch().state()["workers"] if role["role"] == "peer"]
    assert [worker["name"] for worker in role["workers"]] == [peer_name(1), peer_name(2)]
    assert all(f"{name}: '" in PAGE for name in (*ROLES, "files"))  # each has a heading


def test_growing_log_is_read_again(tmp_path, watch):
    begin(tmp_path)
    client = watch()
    log = tmp_path / "logs" / "rollout-0.log"
    log.parent.mkdir()
    for text in ("one", "two"):
        with open(log, "a") as file:
            file.write(f"{text}\n")
        [rollouts] = [role for role in client.state()["workers"] if role["role"] == "rollout"]
        assert rollouts["workers"][0]["log"]["line"] == text

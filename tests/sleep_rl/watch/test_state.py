"""The state of a run on its live page."""

import json
import re
import time

import pytest

from sleep_rl.journal.journal import Journal
from sleep_rl.watch.state import QUIET_S
from tests.fakes.watched_runs import CONFIG, begin, evaluated, seed


def test_state_follows_the_run(tmp_path, watch):
    journal = begin(tmp_path)
    client = watch()
    state = client.state()
    assert (state["name"], state["text"], state["curves"], state["alive"]) == (
        tmp_path.name,
        "Running",
        "",
        True,
    )
    assert state["facts"] == {"task": "world", "model": "tiny", "seed": "7", "commit": "3f2a9c1"}
    assert (
        "No evaluation after a night yet" in state["parts"]["retention"]
        and client.asked[-1] == tmp_path
    )
    evaluated(journal, "base", known=1.0)
    seed(journal, 1, 0, 1)
    state = client.state()
    assert client.curve("Seeding loss", "loss") == [(0, 1.0), (1, 1.1)]
    assert state["phase"]["text"] == "Night 1 of 2: consolidation"
    assert (state["phase"]["step"], state["phase"]["steps"]) == (2, 4)
    assert re.fullmatch(r"[\d.]+ s", state["phase"]["left"])
    seed(journal, 1, 2, 3)
    evaluated(journal, "night 1", known=0.9, **{"day 1": 0.75})
    seed(journal, 2, 0)
    state = client.state()
    assert client.curve("Seeding loss", "loss") == [
        (0, 1.0),
        (1, 1.1),
        (2, 1.2),
        (3, 1.3),
        (4, None),
        (4, 2.0),
    ]
    assert client.chart("Seeding loss").nights == ((0, "night 1"), (4, "night 2"))
    assert ">0.75</td>" in state["parts"]["retention"] and state["read"] == state["size"]
    # one step has no pace
    assert "left" not in state["phase"] and state["phase"]["text"] == "Night 2 of 2: consolidation"


@pytest.mark.parametrize(("task", "text"), [("world", "Night 1 of 3"), ("documents", "Night 1")])
def test_number_of_nights_defaults_to_the_task(tmp_path, watch, task, text):
    config = CONFIG | {"task": {"name": task, "days": None}}
    journal = begin(tmp_path, config)
    client = watch()
    seed(journal, 1, 0, 1)
    assert client.state()["phase"]["text"] == f"{text}: consolidation"


def test_status_of_running_quiet_stopped_and_ended_runs(tmp_path, watch):
    journal = begin(tmp_path)
    client = watch()
    seed(journal, 1, 0)
    assert (client.state()["status"], client.state()["text"]) == ("alive", "Running")
    with open(tmp_path / "metrics.jsonl", "a") as file:
        file.write(json.dumps({"t": time.time() - QUIET_S - 1, "kind": "flow"}) + "\n")
    assert (client.state()["status"], client.state()["text"]) == (
        "quiet",
        "No record for more than 2:00 min",
    )
    client.alive = False
    state = client.state()
    assert (state["status"], state["alive"]) == ("failed", False)
    # as of an evaluation, which cannot be resumed
    (tmp_path / "run.json").rename(tmp_path / "aside")
    assert (client.state()["status"], client.state()["text"]) == (
        "idle",
        "No process works in this folder",
    )
    (tmp_path / "aside").rename(tmp_path / "run.json")
    assert (
        state["text"]
        == f"Stopped: no process works in this run; sleep-rl resume {tmp_path} continues it"
    )
    journal.log("done", seconds=75, status="failed", reason="loss is nan at step 3")
    assert client.state()["text"] == "Failed after 1:15 min: loss is nan at step 3"
    journal.log("done", seconds=75, status="ok", reason=None)
    assert (client.state()["status"], client.state()["text"]) == ("ok", "Finished in 1:15 min")
    assert "left" not in client.state()["phase"]


def test_truncated_journal_resets_the_state(tmp_path, watch):
    journal = begin(tmp_path)
    client = watch()
    seed(journal, 1, 0, 1)
    keep = journal.size()
    seed(journal, 1, 2, 3)
    journal.log("failure", where="reward", reason="timed out", count=3)
    before = client.state()["curves"]
    assert len(client.curve("Seeding loss", "loss")) == 4
    journal.cut(keep)
    seed(journal, 1, 2, reward_abs=0.5)
    state = client.state()
    assert (
        client.curve("Seeding loss", "loss") == [(0, 1.0), (1, 1.1), (2, 1.2)]
        and state["parts"]["failures"] == ""
    )
    assert client.curve("Imitation reward", "edit distance") == [(2, 0.5)]
    assert state["curves"] != before


def test_invalid_records_are_counted_and_skipped(tmp_path, watch):
    journal = begin(tmp_path)
    journal.close()
    senseless = [
        {"kind": "evaluate"},
        {"kind": "evaluate", "after": "base", "method": "sleep", "row": {"known": "much"}},
        {"kind": "seed", "night": 1, "step": "one"},
        {"kind": "seed", "night": [], "step": None},
        {"kind": "push", "name": []},
        {"kind": "run", "config": []},
        {"kind": "completion", "day": 1},
        {"kind": "dream"},
        {"kind": "scaled"},
        {"kind": "baseline", "method": {}, "step": 1},
        {"kind": "failure", "count": "many"},
        {"kind": "__class__"},
        {"kind": "written", "new": "a", "unconditional": None, "examples": 5},
        {"kind": "done", "seconds": "x"},
    ]
    with open(tmp_path / "metrics.jsonl", "a") as file:
        file.writelines(json.dumps({"t": 1.0, **record}) + "\n" for record in senseless)
        file.write('{"t": 1, "ki\n')
    seed(Journal(tmp_path / "metrics.jsonl"), 1, 0)
    with open(tmp_path / "metrics.jsonl", "a") as file:
        # not ended yet: neither read nor counted
        file.write('{"t": 1, "kind": "seed", "step"')
    client = watch()
    state = client.state()
    assert client.curve("Seeding loss", "loss") == [(0, 1.0)]
    # one of them is sound, of a kind that nobody knows, and one more is torn
    assert state["left_out"] == len(senseless) - 1 + 1


def test_state_of_a_long_run_is_small(tmp_path, watch):
    journal = begin(tmp_path)
    for night in range(1, 41):
        seed(journal, night, *range(100), of=100)
        for i in range(30):
            journal.log(
                "completion",
                when="after",
                day=f"day {night}",
                question=f"q{i}",
                prompt="p",
                answer="a",
                completion="c",
                score=1,
            )
            journal.log(
                "dream",
                night=night,
                round=1,
                task="t",
                number=i,
                text="d" * 50,
                reason="",
                kept=True,
                reward=1,
                gain=0.1,
            )
    client = watch()
    read = []
    add = client.server.run_state.add
    client.server.run_state.add = lambda record: read.append(record) or add(record)
    client.state()
    status, _, body = client.ask()
    assert status == 200 and len(body) < 150_000
    assert len(read) == 1 + 40 * 160
    client.state()
    assert len(read) == 1 + 40 * 160  # nothing is read twice

"""The journal: crashes, a full disk, failing sinks, values that are not finite."""

import json
import math

import numpy as np
import pytest

from sleep_rl.config.secrets import without_secrets
from sleep_rl.contracts.errors import InputError, RunError
from sleep_rl.journal.journal import Journal, read, read_entries
from sleep_rl.journal.schema import METRICS, SeedStep, Torn, Unknown, WakePhase
from tests.fakes.sinks import Listener
from tests.fakes.undocumented import undocumented


def test_log_writes_before_it_returns(tmp_path):
    journal = Journal(tmp_path / "new" / "metrics.jsonl")
    journal.log("wake", day="day 1", step=3, loss=np.float32(0.5), seconds=0.25)
    line = (tmp_path / "new" / "metrics.jsonl").read_text()
    record = json.loads(line)
    assert line.endswith("}\n") and record["t"] > 1.7e9
    assert {k: v for k, v in record.items() if k != "t"} == {
        "kind": "wake",
        "day": "day 1",
        "step": 3,
        "loss": 0.5,
        "seconds": 0.25,
    }


def test_nonfinite_values_become_null_and_are_named(tmp_path):
    journal = Journal(tmp_path / "m.jsonl")
    journal.log("seed", step=0, loss=math.nan, lr=1e-3, grad_norm=np.float64("inf"))
    journal.log("evaluate", after="base", method="sleep", row={"known": 1.0, "day 1": -math.inf})
    text = (tmp_path / "m.jsonl").read_text()
    assert "NaN" not in text and "Infinity" not in text
    seed, evaluate = read(tmp_path / "m.jsonl")
    assert (seed["loss"], seed["lr"], seed["grad_norm"], seed["nonfinite"]) == (
        None,
        1e-3,
        None,
        ["loss", "grad_norm"],
    )
    assert evaluate["row"] == {"known": 1.0, "day 1": None} and evaluate["nonfinite"] == [
        "row.day 1"
    ]


def test_unserialisable_value_is_named(tmp_path):
    with pytest.raises(TypeError, match=r"'sampler'.*object"):
        Journal(tmp_path / "m.jsonl").log("seed", sampler=object())


def test_torn_lines_become_records_and_do_not_damage_later_ones(tmp_path):
    path = tmp_path / "m.jsonl"
    Journal(path).log("wake", step=1)
    with open(path, "ab") as file:
        file.write(b'{"t": 1.0, "kind": "se' + "é".encode()[:1])  # cut inside a character
    assert [r["kind"] for r in read(path)] == ["wake", "torn"]
    Journal(path).log("wake", step=2)
    first, torn, second = read(path)
    assert (first["step"], torn["line"], second["step"]) == (1, 2, 2)
    assert torn["text"].startswith('{"t": 1.0, "kind": "se')


@pytest.mark.parametrize("line", ["[1, 2]", "3", '{"t": 1}', '{"kind": 5}'])
def test_json_without_kind_is_torn(tmp_path, line):
    (tmp_path / "m.jsonl").write_text(line + "\n")
    assert [r["kind"] for r in read(tmp_path / "m.jsonl")] == ["torn"]


def test_raising_sink_is_reported_once_and_dropped(tmp_path):
    broken = Listener("W&B", raises=OSError("no\nroute"))
    good = Listener()
    journal = Journal(tmp_path / "m.jsonl", [broken, good])
    journal.log("wake", step=1)
    journal.log("wake", step=2)
    journal.close()
    records = read(tmp_path / "m.jsonl")
    assert [r["kind"] for r in records] == ["wake", "sink_failed", "wake"]
    assert (records[1]["sink"], records[1]["reason"]) == ("W&B", "OSError: no route")
    assert broken.heard == ["wake"] and not broken.closed
    assert sorted(good.heard) == ["sink_failed", "wake", "wake"] and good.closed


def test_failed_sink_is_reported_and_never_called(tmp_path):
    dead = Listener("W&B", failed="no API key")
    journal = Journal(tmp_path / "m.jsonl", [dead])
    journal.log("wake", step=1)
    journal.close()
    assert [(r["kind"], r.get("reason")) for r in read(tmp_path / "m.jsonl")] == [
        ("sink_failed", "no API key"),
        ("wake", None),
    ]
    assert dead.heard == [] and not dead.closed


def test_failure_of_close_is_reported_to_earlier_sinks(tmp_path):
    console = Listener("console")
    slow = Listener("W&B", raises_on_close=TimeoutError("no end after 1 s"))
    Journal(tmp_path / "m.jsonl", [console, slow]).close()
    assert console.heard == ["sink_failed"] and console.closed
    assert read(tmp_path / "m.jsonl")[0]["reason"] == "TimeoutError: no end after 1 s"


def test_resume_resets_sinks_to_kept_records(tmp_path):
    journal = Journal(tmp_path / "m.jsonl")
    journal.log("wake", step=1)
    keep = journal.size()
    journal.log("wake", step=2)
    listener = Listener()
    journal = Journal(tmp_path / "m.jsonl", [listener], keep=keep)
    assert listener.recalled == [1]
    for step in (2, 3):
        journal.log("wake", step=step)
    journal.cut(keep)  # workers were lost: what they did since is done again
    assert listener.recalled == [1] and listener.heard == ["wake", "wake"]
    fresh = Listener()
    Journal(tmp_path / "other.jsonl", [fresh])
    assert fresh.recalled is None


def test_full_disk_raises_run_error_with_path():
    journal = Journal("/dev/full")  # every write fails with ENOSPC
    with pytest.raises(RunError) as caught:
        journal.log("wake", step=1)
    assert str(caught.value) == "cannot write the run's journal /dev/full: No space left on device"


def test_unusable_paths_raise_run_error(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(RunError, match=r"cannot write the run's journal .*file/m.jsonl"):
        Journal(tmp_path / "file" / "m.jsonl")
    with pytest.raises(InputError, match=r"No such file or directory: .*/none"):
        read(tmp_path / "none")


def test_config_is_written_without_secrets(tmp_path):
    config = {
        "wandb": {"api_key": "s3", "project": "p"},
        "max_new_tokens": 8,
        "hfToken": "s3",
        "list": [{"PASSWORD": "s3", "a": 1}],
        "stop_token": "s3",
        "tokens_per_step": 4,
        "path": tmp_path,
    }
    Journal(tmp_path / "m.jsonl").log("run", config=config, task="world")
    assert "s3" not in (tmp_path / "m.jsonl").read_text()
    assert read(tmp_path / "m.jsonl")[0]["config"] == {
        "wandb": {"project": "p"},
        "max_new_tokens": 8,
        "list": [{"a": 1}],
        "tokens_per_step": 4,
        "path": str(tmp_path),
    }
    assert without_secrets({"monkey": 1, "keyboard": 2, "client-secret": 3}) == {
        "monkey": 1,
        "keyboard": 2,
    }


def test_every_field_has_a_meaning_and_unknown_ones_are_found():
    assert all(
        meaning and isinstance(unit, str)
        for fields in METRICS.values()
        for meaning, unit in fields.values()
    )
    assert METRICS["sample"]["tokens_per_second"][1] == "tokens/s"
    records = [
        {"t": 1, "kind": "wake", "loss": 1.0, "nonfinite": []},
        {"t": 1, "kind": "wake", "los": 1.0},
        {"kind": "new", "a": 1},
    ]
    assert undocumented(records) == ["new.a", "wake.los"]


def test_read_entries_returns_typed_records(tmp_path):
    journal = Journal(tmp_path / "m.jsonl")
    journal.log("wake", day="day 1", step=3, of_tomorrow=1)
    journal.log("seed", step=0, loss=math.nan, night=2)
    journal.log("of_tomorrow", a=1)
    with open(tmp_path / "m.jsonl", "ab") as file:
        file.write(b"torn\n")
    wake, seed, unknown, torn = read_entries(tmp_path / "m.jsonl")
    assert isinstance(wake, WakePhase) and (wake.day, wake.step, wake.loss) == ("day 1", 3, None)
    assert isinstance(seed, SeedStep) and (seed.night, seed.loss) == (2, None)
    assert seed.nonfinite == ["loss"] and seed.t > 1.7e9
    assert isinstance(unknown, Unknown) and unknown.kind == "of_tomorrow"
    assert isinstance(torn, Torn) and (torn.line, torn.text) == (4, "torn")
    assert [r["kind"] for r in read(tmp_path / "m.jsonl")] == [
        "wake",
        "seed",
        "of_tomorrow",
        "torn",
    ]

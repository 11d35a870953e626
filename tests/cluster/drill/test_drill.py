"""The drill: when faults are injected, what they do, and which results pass."""

import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import torch

from cluster.drill import drill as drilling
from cluster.drill import faults, scenarios
from cluster.drill.drill import drill
from cluster.drill.scenarios import PHASES, DrillRow, Fault, reached
from cluster.runtime.ray_backend import RayBackend
from sleep_rl.contracts.errors import InputError, RunError
from sleep_rl.contracts.records import STUDENT, TEACHER, Weights
from tests.fakes.drilled_runs import ScriptedRun
from tests.fakes.processes import LIMIT_S, until

DRILL = str(Path(__file__).parents[3] / "configs" / "drill.yaml")
NIGHT = [
    {"kind": "wake"},
    {"kind": "evaluate", "method": "sleep", "row": {}},
    {"kind": "push", "name": TEACHER},
    {"kind": "push", "name": STUDENT},
    {"kind": "written"},
    {"kind": "seed"},
    {"kind": "push", "name": STUDENT},
    {"kind": "night"},
]
BASE = {"kind": "evaluate", "method": "sleep", "row": {"known": 1.0}}


def journal(nights):
    return [
        BASE,
        *(
            {**record, "night": night}
            for night in range(1, nights + 1)
            for record in [*NIGHT, BASE]
        ),
    ]


def test_reached_finds_the_begin_of_each_phase_in_the_journal():
    whole = journal(2)
    first = {
        (phase, night): next(n for n in range(len(whole) + 1) if reached(whole[:n], phase, night))
        for night in (1, 2)
        for phase in PHASES
    }
    ends = {key: whole[n - 1]["kind"] for key, n in first.items()}
    assert (
        [ends[phase, 1] for phase in PHASES]
        == [ends[phase, 2] for phase in PHASES]
        == ["evaluate", "push", "seed", "night"]
    )
    assert list(first.values()) == sorted(first.values()) and whole[first["wake", 1] - 1] is BASE
    assert (
        whole[first["writing", 2] - 1]["name"] == STUDENT
        and first["wake", 2] == first["evaluation", 1] + 1
    )
    assert not reached(journal(1), "wake", 3)


def test_flipped_byte_changes_one_byte_of_one_push(monkeypatch):
    put = []
    monkeypatch.setattr(RayBackend, "put", lambda self, value: put.append(value))
    monkeypatch.setattr(faults.FlippedByte, "pushes", 0)
    backend = object.__new__(faults.FlippedByte)
    sent = [
        Weights(name, n, {}, {"b": torch.ones(3), "a": torch.ones(2).bfloat16()})
        for n, name in enumerate((STUDENT, TEACHER, STUDENT, STUDENT))
    ]
    for value in [*sent, "something else"]:
        backend.put(value)
    changed = [
        n
        for n, (a, b) in enumerate(zip(sent, put, strict=False))  # one more was put
        if not torch.equal(a.tensors["a"], b.tensors["a"])
    ]
    assert (
        changed == [2]
        and put[4] == "something else"
        and all(torch.equal(w.tensors["b"], torch.ones(3)) for w in put[:4])
    )
    before, after = (w.tensors["a"].view(torch.uint8).tolist() for w in (sent[2], put[2]))
    assert sum(a != b for a, b in zip(before, after, strict=True)) == 1


WRITER = """
import sys, time
print("ready", flush=True)
sys.stdin.readline()
try:
    open(sys.argv[1], "wb", buffering=0).write(b"x")
except OSError as error:
    print(error.strerror, flush=True)
"""


def test_no_more_disk_makes_writes_fail(tmp_path):
    child = subprocess.Popen(
        [sys.executable, "-c", WRITER, str(tmp_path / "file")],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert child.stdout.readline() == "ready\n"
    faults.no_more_disk(psutil.Process(child.pid))
    assert (
        child.communicate("\n", timeout=LIMIT_S)[0] == "File too large\n"
        and (tmp_path / "file").read_bytes() == b""
    )


def test_freeze_stops_a_process_without_ending_it():
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(3600)"])
    process = psutil.Process(child.pid)
    faults.freeze(process)
    until(lambda: process.status() == psutil.STATUS_STOPPED, child)
    assert child.poll() is None
    faults.kill(process)
    assert child.wait(LIMIT_S) == -9


def test_a_worker_without_a_process_is_named(tmp_path):
    with pytest.raises(
        RunError, match=r"^drill: no process on this machine writes .*logs/rollout-7.log$"
    ):
        faults.worker(tmp_path, "rollout-7")


WANT = ({"night-1": b"same"}, {"known": 1.0})


@pytest.mark.parametrize(
    "worker, code, memory, result, passed",
    [
        ("rollout-0", 0, b"same", "rollout-0 restarted after 0 s; same bytes", True),
        (
            "all workers",
            0,
            b"same",
            "all workers restarted after 0 s; same bytes",
            True,
        ),
        ("rollout-1", 0, b"same", "the worker was not used again; same bytes", True),
        (
            "rollout-0",
            0,
            b"other",
            "rollout-0 restarted after 0 s; different memory",
            False,
        ),
        (
            "rollout-0",
            1,
            b"same",
            "rollout-0 restarted after 0 s; exit 1: sleep-rl: the loss is nan",
            False,
        ),
    ],
)
def test_a_row_has_the_reaction_and_whether_the_outcome_is_the_expected_one(
    worker, code, memory, result, passed, monkeypatch, tmp_path
):
    hit = []
    records = [*journal(1), {"kind": "restarted", "worker": worker, "t": time.time() + 0.3}]
    monkeypatch.setattr(scenarios, "DrilledRun", lambda *_: ScriptedRun(records, code, memory))
    fault = Fault("kill rollout-0", "seeding", 1, lambda folder: hit.append(folder) or "rollout-0")
    [row] = scenarios._recovery("kills", [fault])("config", [], tmp_path, WANT)
    assert hit == [Path("runs/x")] and (row.result, row.passed) == (result, passed)
    missed = Fault("kill rollout-0", "seeding", 9, fault.inject)
    [row] = scenarios._recovery("kills", [missed])("config", [], tmp_path, WANT)
    assert (
        not row.passed and row.result.startswith("the run ended before the fault") and len(hit) == 1
    )


@pytest.mark.parametrize("passed", [True, False])
def test_the_table_has_every_row_and_a_failed_one_raises(passed, monkeypatch, tmp_path):
    rows = [
        DrillRow("kill a", "wake, night 1", "fine", True),
        DrillRow("flip a byte", "push 2", "not detected", passed),
    ]
    monkeypatch.setattr(
        drilling, "DrilledRun", lambda *_: ScriptedRun([{"kind": "done", "seconds": 9.0}])
    )
    monkeypatch.setattr(drilling, "scenarios", lambda config: [lambda *_: iter(rows)])
    printed = []
    if passed:
        table = drill(DRILL, [f"run.dir={tmp_path}"], printed.append)
        assert table.splitlines()[0].split() == [
            "fault",
            "where",
            "result",
        ] and table.endswith("2 of 2 passed")
    else:
        with pytest.raises(RunError, match=r"^drill: 1 of 2 rows failed: flip a byte \(push 2\)$"):
            drill(DRILL, [f"run.dir={tmp_path}"], printed.append)
        assert any(line.startswith("fault") for line in printed)
    assert (tmp_path / "drill-drill").is_dir()


def test_a_drill_needs_the_ray_backend(tmp_path):
    with pytest.raises(
        InputError,
        match=r"^drill: cluster.backend ray is needed, where workers are processes, got local$",
    ):
        drill(DRILL, ["cluster.backend=local", f"run.dir={tmp_path}"])
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
@pytest.mark.stack
def test_a_run_recovers_from_a_flipped_byte_and_a_full_disk(tmp_path, monkeypatch):
    monkeypatch.setattr(drilling, "scenarios", lambda config: [scenarios._flip, scenarios._disk])
    monkeypatch.chdir(Path(__file__).parents[3])
    table = drill(DRILL, [f"run.dir={tmp_path}", "task.days=2"])
    assert table.endswith("2 of 2 passed")

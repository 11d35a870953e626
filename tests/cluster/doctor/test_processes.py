"""Deadlines of the doctor's checks, and the processes that it starts."""

import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from cluster.doctor import processes
from cluster.doctor.finding import Finding
from tests.fakes.doctor import assert_finding
from tests.fakes.processes import LIMIT_S, as_at_a_terminal, has_ended, until

ROOT = Path(__file__).parents[3]


def test_a_check_that_hangs_or_raises_is_a_finding():
    given_up = threading.Event()
    [late] = processes.with_deadline(0.2, "run.dir", given_up.wait)
    assert not given_up.is_set()
    given_up.set()
    assert_finding(late, False, "no answer within 0.2 s")
    [failed] = processes.with_deadline(LIMIT_S, "ports", lambda: {}["gone"])
    assert_finding(failed, False, "the check failed (KeyError: 'gone')")
    assert (
        processes.with_deadline(
            LIMIT_S, "x", lambda: [Finding("a", True, ""), Finding("b", True, "")]
        )[1].name
        == "b"
    )


def test_a_process_is_ended_with_its_children_at_the_deadline(tmp_path):
    marker = tmp_path / "pid"
    code = f"sleep {LIMIT_S} & echo $! > {marker}; wait"
    for limit_s in (1, 30, 900):  # on a busy machine it may not have come that far
        answer, finding = processes.query_process(
            ["/bin/sh", "-c", code], "devices", "torch", limit_s, os.environ
        )
        assert answer is None
        assert_finding(
            finding, False, "torch cannot be imported", f"did not end within {limit_s} s"
        )
        if marker.exists() and marker.read_text():
            break
    until(lambda: has_ended(int(marker.read_text())))


def test_a_process_that_fails_is_a_finding():
    answer, finding = processes.query_process(
        [sys.executable, "-c", "raise SystemExit('libcudart.so is missing')"],
        "devices",
        "torch",
        30,
        os.environ,
    )
    assert answer is None
    assert_finding(
        finding, False, "exited with code 1: libcudart.so is missing", "-c 'import torch'"
    )
    code = "print('noise'); print('{\"a\": 1}')"
    assert processes.query_process([sys.executable, "-c", code], "x", "torch", 30, os.environ) == (
        {"a": 1},
        None,
    )
    _, finding = processes.query_process(
        [sys.executable, "-c", "print('noise')"], "x", "torch", 30, os.environ
    )
    assert_finding(finding, False, "exited with code 0: noise")


def test_ctrl_c_ends_the_doctor_and_its_processes(tmp_path):
    """The probe's process is in a session of its own, which a terminal's ctrl-C does not reach."""
    child = "import os, sys, time; open(sys.argv[1], 'w').write(str(os.getpid())); time.sleep(3600)"
    code = (
        "import sys; from cluster.doctor.processes import run_process; "
        "run_process([sys.executable, '-c', *sys.argv[1:]], 3600, {}, sys.stdout)"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code, child, str(tmp_path / "pid")],
        stderr=subprocess.DEVNULL,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        preexec_fn=as_at_a_terminal,
    )
    until(lambda: (tmp_path / "pid").exists() and (tmp_path / "pid").read_text(), process)
    process.send_signal(signal.SIGINT)
    assert process.wait(LIMIT_S) == -signal.SIGINT
    with pytest.raises(ProcessLookupError):
        os.kill(int((tmp_path / "pid").read_text()), 0)

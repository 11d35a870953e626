"""The doctor: the whole command, on a machine with and without faults."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from cluster.doctor import doctor, machine
from cluster.doctor.finding import Finding
from sleep_rl.cli.main import main
from tests.fakes.doctor import CUDA, Machine
from tests.fakes.processes import LIMIT_S

ROOT = Path(__file__).parents[3]


def test_a_finding_is_one_line():
    assert (
        str(Finding("run.dir", True, "runs can\nbe written"))
        == "ok     run.dir: runs can be written"
    )
    assert str(Finding("ports", False, "taken")) == "to do  ports: taken"


@pytest.fixture
def computer(monkeypatch, tmp_path):
    return Machine(monkeypatch, tmp_path)


def test_a_machine_without_faults_prints_ok_for_each_check(computer):
    code, lines = computer.doctor()
    assert (code, lines[-1]) == (0, "all is ok"), lines
    names = [line[7:].split(":")[0] for line in lines[:-1]]
    assert names == [
        "python",
        "packages",
        "machine",
        "devices",
        "ports",
        "cluster",
        "shared memory",
        "run.dir",
        "run.cache",
        "temporary files",
        "open files",
        "processes",
        "wandb",
        "hub cache",
        "hub",
        "vllm plugin",
        "probe",
    ]
    assert lines[-2] == "ok     probe: on ray, cpu: verified"
    assert computer.commands[1] == ["-m", "actors.plugin_check"] and computer.commands[2][:4] == [
        "-m",
        "cluster.doctor.probe",
        "ray",
        "cpu",
    ]
    assert not Path(computer.commands[2][4]).exists()


def test_ports_are_not_checked_for_a_run_that_joins_a_cluster(computer, monkeypatch):
    monkeypatch.setattr(machine, "is_bound", lambda port: True)
    monkeypatch.setattr(machine, "ray_here", lambda: None)
    assert "to do  ports: in use by another process than Ray" in " ".join(
        computer.doctor(quick=True)[1]
    )
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1")
    lines = computer.doctor(quick=True)[1]
    assert "ok     ports: not checked: runs join 127.0.0.1:1" in lines
    assert "to do  cluster: nothing answers at 127.0.0.1:1" in " ".join(lines)


def test_quick_skips_the_probe(computer):
    code, lines = computer.doctor(quick=True)
    assert code == 0 and "probe" not in " ".join(lines) and len(computer.commands) == 2


def test_the_probe_uses_the_machines_gpus_and_the_configs_backend(computer):
    computer.torch = CUDA
    code, lines = computer.doctor()
    assert code == 1 and "the build for CPUs, but this machine has 2 GPUs" in lines[-3]
    computer.vllm["platform"] = "cuda"
    computer.commands.clear()
    assert computer.doctor(str(ROOT / "configs" / "demo.yaml"), ["cluster.backend=local"])[0] == 0
    assert computer.commands[2][2:4] == ["local", "gpu"]


def test_a_failed_probe_keeps_its_files(computer):
    computer.result = {"ok": False, "message": "weights: differ by 2 nats"}
    code, lines = computer.doctor()
    assert (
        code == 1
        and lines[-1] == "1 to do"
        and "weights: differ by 2 nats (its output: /tmp/doctor-" in lines[-2]
    )
    folder = Path(computer.commands[2][4])
    assert (folder / "probe.log").read_text() == "boom\n"
    computer.result = None
    computer.exit_code = -9
    assert "exited with code -9: boom" in computer.doctor()[1][-2]
    computer.exit_code = None
    assert "did not end within 900 s: boom" in computer.doctor()[1][-2]
    for command in computer.commands:
        if "cluster.doctor.probe" in command:
            shutil.rmtree(command[4])


def test_a_missing_vllm_plugin_skips_the_probe(computer, monkeypatch):
    computer.vllm["missing"] = ["SleepQwen3ForCausalLM"]
    code, lines = computer.doctor()
    assert (
        code == 1
        and "does not know SleepQwen3ForCausalLM" in lines[-3]
        and "skipped until" in lines[-2]
    )
    monkeypatch.setattr(doctor.importlib.metadata, "entry_points", lambda group: [])
    assert "entry point sleep_rl is not installed" in computer.doctor()[1][-3]


def test_a_config_is_planned_and_its_needs_are_checked(computer):
    demo = str(ROOT / "configs" / "demo.yaml")
    code, lines = computer.doctor(demo, quick=True)
    assert code == 0 and "ok     config: run demo: task world, 3 nights -> runs/demo" in lines
    for override, start in (
        ("sleep.stepps=3", "to do  config: command line: unknown key sleep.stepps"),
        ("model.base=./none", "to do  config: model.base"),
        ("wandb.mode=online", "to do  wandb: wandb.mode is online"),
        ("cluster.address=127.0.0.1:1", "to do  cluster: nothing answers at 127.0.0.1:1"),
        ("rollouts.gpus=1", "to do  devices: the config needs 2 GPUs"),
        ("run.dir=/proc/none", "to do  run.dir: /proc/none"),
    ):
        code, lines = computer.doctor(demo, [override], quick=True)
        assert code == 1 and any(line.startswith(start) for line in lines), (override, lines)
    code, lines = computer.doctor("none.yaml", quick=True)
    assert code == 1 and "to do  config: cannot read none.yaml: No such file or directory" in lines


def test_the_command_passes_config_overrides_and_quick(monkeypatch, capsys):
    calls = []
    monkeypatch.setattr(
        doctor, "doctor", lambda *args: calls.append(args[:3]) or args[3]("a line") or 1
    )
    for argv in ([], ["x.yaml", "--quick", "a.b=1"], ["--quick", "x.yaml", "a.b=1"]):
        assert main(["doctor", *argv]) == 1
    assert calls == [(None, [], False), ("x.yaml", ["a.b=1"], True), ("x.yaml", ["a.b=1"], True)]
    assert capsys.readouterr().out == "a line\n" * 3


@pytest.mark.stack
@pytest.mark.slow
def test_the_doctor_passes_on_this_machine(tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "sleep_rl", "doctor"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=LIMIT_S,
        env={**os.environ, "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"},
    )
    assert (done.returncode, done.stderr) == (0, ""), done.stdout
    assert re.search(r"^ok     vllm plugin: vLLM [\d.]+ on \w+ knows SleepLlama", done.stdout, re.M)
    assert re.search(
        r"^ok     probe: on ray, \w+: expanded, sampled 4 completions, scored them, "
        r"one step \(loss [\d.]+\), "
        r"pushed \d+ "
        r"tensors in [\d.]+ s, verified to \de-\d+ nats$",
        done.stdout,
        re.M,
    )

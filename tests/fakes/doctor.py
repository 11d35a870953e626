"""What the doctor's checks find: results in place of processes, and what a finding must say."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from cluster.doctor import doctor, machine, processes
from cluster.doctor.finding import GB

CPU = {"version": "2.13.0+cpu", "cuda": None, "gpus": []}
CUDA = {"version": "2.13.0", "cuda": "12.9", "gpus": [["H100", 80 * GB], ["H100", 80 * GB]]}


def assert_finding(finding, ok, *words):
    assert finding.ok == ok, finding
    for word in words:
        assert word in finding.message, finding
    return finding


class Machine:
    """Replaces the processes that the doctor starts by their results."""

    def __init__(self, monkeypatch, tmp_path):
        self.commands = []
        self.torch = CPU
        self.vllm = {"version": "0.32.0", "platform": "cpu", "missing": [], "found": ["SleepX"]}
        self.result = {"ok": True, "message": "verified"}
        self.exit_code = 0
        self.output = "boom\n"
        monkeypatch.setattr(processes, "run_process", self.run)
        monkeypatch.setattr(machine, "nvidia_driver", lambda: None)
        monkeypatch.setattr(machine, "is_bound", lambda port: False)
        for name in ("RAY_ADDRESS", "WANDB_API_KEY"):
            monkeypatch.delenv(name, raising=False)
        monkeypatch.setenv("HF_HUB_OFFLINE", "1")
        monkeypatch.setenv("HOME", str(tmp_path))
        monkeypatch.chdir(tmp_path)

    def run(self, command, limit_s, environment, out):
        assert command[0] == sys.executable and limit_s > 0 and "PATH" in environment
        self.commands.append(command[1:])
        if command[1:3] == ["-m", "cluster.doctor.probe"]:
            assert Path(command[5]).is_dir()
            out.write(self.output)
            if self.result:
                (Path(command[5]) / doctor.RESULT).write_text(json.dumps(self.result))
            return self.exit_code
        out.write(json.dumps(self.torch if command[1] == "-c" else self.vllm) + "\n")
        return 0

    def doctor(self, path=None, overrides=(), quick=False):
        lines = []
        code = doctor.doctor(path, overrides, quick, lines.append)
        assert all(
            "\n" not in line and (line.startswith(("ok     ", "to do  "))) for line in lines[:-1]
        )
        assert code == int(any(line.startswith("to do") for line in lines))
        return code, lines

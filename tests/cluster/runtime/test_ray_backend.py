"""The local and the Ray backend: calls, errors, timeouts, resources, logs."""

import re
import subprocess
import sys
import traceback

import numpy as np
import pytest
import torch

from cluster.runtime.handle import WorkerDied, WorkerTimeout, settle, wait_all
from cluster.runtime.local_backend import LocalBackend
from cluster.runtime.ray_backend import RayBackend
from cluster.runtime.ray_channel import RayPending
from cluster.runtime.resources import ResourceRequest, check
from cluster.runtime.watchdog import STACKS, Watchdog
from sleep_rl.contracts.errors import InputError, RunError
from tests.fakes.processes import LIMIT_S, until
from tests.fakes.workers import Echo

ECHO = "tests.fakes.workers:Echo"


@pytest.mark.stack
def test_an_address_without_a_cluster_is_an_input_error(monkeypatch):
    import ray

    def init(**_):
        raise AssertionError("ray.init retries for minutes where nothing listens")

    monkeypatch.setattr(ray, "init", init)
    monkeypatch.setattr(ray, "is_initialized", lambda: False)  # whatever another test started
    with pytest.raises(
        InputError, match=r"^cluster.address: a running Ray cluster, got 127.0.0.1:9: "
    ):
        RayBackend("127.0.0.1:9")


def test_an_out_of_memory_kill_is_worker_died(monkeypatch):
    import ray
    from ray.exceptions import OutOfMemoryError

    def get(object_ref, timeout):
        assert object_ref == "reference" and timeout == 1.0
        raise OutOfMemoryError(
            "Memory on the node (IP: 10.0.0.1) was 22.90GB / 23.54GB (0.97), "
            "above 0.95.\nRefer to the "
            "documentation on how to address the out of memory issue: "
            "https://..."
        )

    monkeypatch.setattr(ray, "get", get)
    with pytest.raises(WorkerDied) as died:
        RayPending("critic-0", "try_out", "reference").outcome(1.0, 600.0)
    assert str(died.value) == (
        "worker critic-0 died during try_out: the memory of its node was "
        "nearly full (22.90GB of 23.54GB), "
        "and Ray killed it"
    )


def endless(backend, tmp_path):
    """Arguments of an Echo.sleep that no load makes look short: on Ray it ends once there is a file
    `end` in the folder, in this process after half a second.
    """
    return (0.5,) if isinstance(backend, LocalBackend) else (0.0, str(tmp_path / "end"))


@pytest.fixture
def log_dir(ray_log_dir):
    return ray_log_dir


@pytest.fixture(scope="module")
def echo(backend):
    handle = backend.spawn(ECHO, {"greeting": "hi"}, name="echo-0", env={"SLEEP_TEST": "3"})
    backend.ready([handle])
    return handle


@pytest.mark.stack
def test_ranks_are_reserved_together_or_the_start_fails(backend, only_ray):
    from ray.util import placement_group_table

    ranks = backend.spawn_ranks(ECHO, {"greeting": "hi"}, name="rank", world_size=2, cpus=0.5)
    backend.ready(ranks)
    assert [rank.greet("you", mark="!") for rank in ranks] == ["hi you!"] * 2
    [group] = [g for g in placement_group_table().values() if g["state"] == "CREATED"]
    assert list(group["bundles"].values()) == [{"CPU": 0.5}] * 2 and group["strategy"] == "PACK"
    before = backend.start_timeout_s
    backend.start_timeout_s = 1.0
    try:
        with pytest.raises(
            RunError, match=r"1.5 CPU and 0 GPU for each of big-0, big-1 were not free within 1 s"
        ):
            backend.spawn_ranks(ECHO, {"greeting": "hi"}, name="big", world_size=2, cpus=1.5)
    finally:
        backend.start_timeout_s = before
        for rank in ranks:
            rank.kill()


class TestCalls:
    def test_a_blocking_call_and_a_pending_call_return_the_result(self, echo):
        assert echo.greet("Ann", mark="!") == "hi Ann!"
        pending = echo.start(Echo.greet, "Bob")
        assert pending.result(LIMIT_S) == "hi Bob." == pending.result(LIMIT_S)

    def test_spawn_takes_a_class_instead_of_a_path(self, backend):
        handle = backend.spawn(Echo, {}, name="echo-class")
        assert handle.greet("Ann") == "hello Ann."

    def test_the_environment_of_a_worker_is_set(self, echo):
        assert echo.env("SLEEP_TEST") == ["3"]

    def test_wait_all_returns_results_in_order(self, echo):
        pendings = [echo.start(Echo.greet, str(i)) for i in range(5)]
        assert wait_all(pendings, LIMIT_S, "greetings") == [f"hi {i}." for i in range(5)]

    def test_a_worker_receives_the_value_of_a_ref(self, backend, echo):
        ref = backend.put({"a": np.ones(1000, np.float32)})
        assert echo.total(ref) == echo.total(arrays=ref) == 1000.0
        assert backend.get(ref)["a"].shape == (1000,)

    @pytest.mark.parametrize(
        "tensor",
        [
            torch.arange(6.0).reshape(2, 3).bfloat16(),
            torch.tensor(3),
            torch.zeros(0, 2),
            torch.arange(12).reshape(3, 4).T,
            torch.tensor([True, False]),
        ],
    )
    def test_tensors_keep_dtype_shape_and_values(self, echo, tensor):
        got = echo.back([tensor])[0]
        assert got.dtype == tensor.dtype and got.shape == tensor.shape and torch.equal(got, tensor)

    def test_numpy_arrays_arrive_read_only_and_tensors_as_copies(self, backend, echo, only_ray):
        """No reader can change what another reader of the same object sees."""
        ref = backend.put({"a": np.zeros(1 << 18, np.uint8)})
        with pytest.raises(RunError, match="read-only"):
            echo.overwrite(ref)
        ref = backend.put({"a": torch.zeros(1 << 18)})
        echo.overwrite(ref)
        assert echo.total(ref) == 0.0


class TestErrors:
    def test_input_and_run_errors_keep_type_and_message(self, echo):
        with pytest.raises(InputError, match=r"^key: allowed 1, got 2$"):
            echo.input_error()
        with pytest.raises(RunError, match=r"^loss is NaN at step 3$"):
            echo.run_error()

    def test_another_exception_names_worker_and_method(self, echo):
        with pytest.raises(
            RunError, match=r"^worker echo-0: type_error failed: TypeError: an odd$"
        ) as caught:
            echo.type_error()
        assert "workers.py" in "".join(traceback.format_exception(caught.value))

    def test_an_unknown_method_is_a_run_error(self, echo):
        with pytest.raises(RunError, match="worker echo-0: nothing failed: AttributeError"):
            echo.nothing()

    def test_ready_raises_the_constructors_error(self, backend):
        handle = backend.spawn(ECHO, {"refuse": "model.base: no such folder"}, name="echo-refused")
        with pytest.raises(InputError, match=r"^model.base: no such folder$"):
            backend.ready([handle])
        with pytest.raises(
            RunError, match=r"^worker echo-refused did not start: model.base: no such folder$"
        ):
            handle.greet("Ann")

    def test_an_unknown_class_is_a_run_error(self, backend):
        with pytest.raises(
            RunError,
            match="worker odd: start failed: ModuleNotFoundError: No module named 'nowhere'",
        ):
            backend.ready([backend.spawn("nowhere:Class", {}, name="odd")])

    def test_a_timeout_names_worker_method_and_seconds(self, backend, echo, tmp_path):
        late = endless(backend, tmp_path)
        with pytest.raises(
            WorkerTimeout,
            match=r"^worker echo-0: sleep did not return within 0.2 s .cluster.call_timeout_s.$",
        ):
            echo.start(Echo.sleep, *late).result(0.2)
        with pytest.raises(
            WorkerTimeout,
            match=r"^a nap: worker echo-0: sleep did not return "
            r"within 0.2 s .cluster.call_timeout_s.$",
        ):
            wait_all([echo.start(Echo.sleep, *late)], 0.2, "a nap")
        (tmp_path / "end").touch()
        assert echo.greet("Ann") == "hi Ann."

    def test_a_timeout_names_its_config_key_and_the_log(self, backend, tmp_path):
        handle = backend.spawn(ECHO, {}, name="echo-late")
        backend.ready([handle])
        pending = handle.start(Echo.sleep, *endless(backend, tmp_path))
        pending.watchdog = Watchdog(folder=str(tmp_path))
        with pytest.raises(WorkerTimeout, match=r"\(cluster.call_timeout_s\)$"):
            pending.result(0.2)
        (tmp_path / "end").touch()
        (tmp_path / "echo-late.log").write_text("its output")
        pending.method = "start"
        assert str(pending.timeout_error(3)).endswith(
            f"within 3 s (cluster.start_timeout_s); see {tmp_path / 'echo-late.log'}"
        )

    def test_settle_keeps_results_beside_errors(self, echo):
        results = settle(
            [
                echo.start(Echo.greet, "Ann"),
                echo.start(Echo.run_error),
                echo.start(Echo.greet, "B"),
            ],
            LIMIT_S,
        )
        assert results[0] == "hi Ann." and results[2] == "hi B."
        assert isinstance(results[1], RunError)

    def test_a_dead_worker_raises_worker_died_until_it_is_restarted(self, backend, only_ray, capfd):
        handle = backend.spawn(ECHO, {}, name="mortal")
        first = handle.pid()
        with pytest.raises(
            WorkerDied, match=r"^worker mortal died during die: Worker unexpectedly exits"
        ):
            handle.die()
        with pytest.raises(WorkerDied, match=r"^worker mortal died during greet"):
            handle.greet("Ann")
        handle.restart()
        handle.ready()
        assert handle.greet("Ann") == "hello Ann." and handle.pid() != first
        assert "".join(capfd.readouterr()) == ""  # Ray prints nothing on the console


class TestGroups:
    def test_ranks_get_one_rendezvous_address(self, backend):
        size = 1 if isinstance(backend, LocalBackend) else 2
        ranks = backend.spawn_ranks(
            ECHO, {}, name="learner", world_size=size, env={"OMP_NUM_THREADS": "1"}
        )
        backend.ready(ranks)
        seen = [
            h.env("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT") for h in ranks
        ]
        assert [h.name for h in ranks] == [f"learner-{i}" for i in range(size)]
        assert [row[:3] for row in seen] == [[str(i), "0", str(size)] for i in range(size)]
        assert len({tuple(row[3:]) for row in seen}) == 1 and int(seen[0][4]) > 0


class TestRay:
    def test_preflight_names_the_missing_resource(self, backend, only_ray):
        backend.preflight([ResourceRequest("rollouts", 2, cpus=1), ResourceRequest("learners", 1)])
        with pytest.raises(
            InputError, match=r"^rollouts: 4 actors x 1 GPU = 4 GPU requested, the cluster has 0$"
        ):
            backend.preflight([ResourceRequest("rollouts", 4, gpus=1)])
        with pytest.raises(
            InputError,
            match=r"^rollouts: 2 actors x 1 CPU \+ rewards: 1 actors "
            r"x 0.1 CPU = 2.1 CPU requested, "
            "the cluster has 2$",
        ):
            backend.preflight(
                [ResourceRequest("rollouts", 2, cpus=1), ResourceRequest("rewards", 1, cpus=0.1)]
            )

    def test_a_second_refusal_requests_nodes_from_the_autoscaler_once(
        self, backend, only_ray, monkeypatch
    ):
        import ray.autoscaler.sdk

        lines = []
        bundles_requested = []
        monkeypatch.setattr(backend, "watchdog", Watchdog(lines.append))
        monkeypatch.setattr(
            ray.autoscaler.sdk,
            "request_resources",
            lambda bundles: bundles_requested.append(bundles),
        )
        monkeypatch.setattr(backend, "_autoscaling", False)
        for expected in ([], [3 * [{"CPU": 1}]], [3 * [{"CPU": 1}]]):
            with pytest.raises(InputError, match=r"the cluster has 2$"):
                backend.preflight(
                    [ResourceRequest("rollout", 3, cpus=1), ResourceRequest("reward", 1)]
                )
            assert bundles_requested == expected
        # not once per attempt
        assert lines == [
            "requested: 3 rollout x 1 CPU, 1 reward x 0 CPU = 3 CPU; available: 1 node with 2 CPU"
        ]

    @pytest.mark.parametrize(
        "requests, wrong",
        [
            ([ResourceRequest("a", 2, cpus=2), ResourceRequest("b", 2, cpus=1)], ""),
            (
                [ResourceRequest("b", 2, cpus=1), ResourceRequest("a", 2, cpus=2)],
                "",
            ),  # the order of the requests does not matter
            (
                [ResourceRequest("a", 3, cpus=2)],
                "a: 2 CPU and 0 GPU for each of 3 actors requested; actor 3 fits on no node beside "
                "the others; nodes: 3 CPU and 1 GPU, 3 CPU and 0 GPU",
            ),
            ([ResourceRequest("a", 1, cpus=2), ResourceRequest("g", 1, cpus=2, gpus=1)], ""),
            (
                [ResourceRequest("a", 2, cpus=2), ResourceRequest("g", 1, cpus=2, gpus=1)],
                "a: 2 CPU and 0 GPU for each of 2 actors requested; actor 2",
            ),
        ],
    )
    def test_workers_must_fit_on_single_nodes(self, requests, wrong):
        nodes = [{"CPU": 3.0, "GPU": 1.0}, {"CPU": 3.0}]
        if not wrong:
            return check(requests, nodes)
        with pytest.raises(InputError) as error:
            check(requests, nodes)
        assert str(error.value).startswith(wrong)

    def test_the_output_of_a_worker_goes_to_its_log(self, backend, only_ray, log_dir, capfd):
        handle = backend.spawn(ECHO, {}, name="talker", env={})
        handle.say("something")
        with pytest.raises(RunError):
            handle.type_error()
        log = (log_dir / "talker.log").read_text()
        assert log.startswith("something\nchild something\n") and "TypeError: an odd" in log
        assert "".join(capfd.readouterr()) == ""

    def test_a_timeout_dumps_stacks(self, backend, only_ray, log_dir, tmp_path, monkeypatch):
        watchdog = Watchdog(folder=str(log_dir / "driver"))
        monkeypatch.setattr(backend, "watchdog", watchdog)
        monkeypatch.setattr(backend, "call_timeout_s", 2.0)
        quick, slow = (backend.spawn(ECHO, {}, name=f"{name}-waiter") for name in ("quick", "slow"))
        backend.ready([quick, slow])
        answer = quick.start(Echo.greet, "Ann")
        assert answer.result(LIMIT_S) == "hello Ann."
        results = settle([answer, slow.start(Echo.sleep, *endless(backend, tmp_path))], 2.0)
        assert results[0] == "hello Ann." and isinstance(results[1], WorkerTimeout)
        driver = (log_dir / "driver" / STACKS).read_text()
        assert "slow-waiter: sleep" in driver and "in settle" in driver  # the caller's stack
        until(lambda: "in sleep" in (log_dir / "slow-waiter.log").read_text())
        assert "workers.py" in (log_dir / "slow-waiter.log").read_text()  # the worker's stack
        (tmp_path / "end").touch()

    def test_a_long_wait_is_reported(self, backend, only_ray, echo, tmp_path, monkeypatch):
        lines = []

        def say(line):
            lines.append(line)
            if len(lines) == 3:
                (tmp_path / "end").touch()

        watchdog = Watchdog(say, lambda: "night 2: seeding", str(tmp_path), every_s=0.4)
        monkeypatch.setattr(backend, "watchdog", watchdog)
        quick = echo.start(Echo.greet, "Ann")
        assert quick.result(LIMIT_S) == "hi Ann."
        late = echo.start(Echo.sleep, *endless(backend, tmp_path))
        assert settle([quick, late], LIMIT_S) == ["hi Ann.", None]
        for line in lines:
            assert re.fullmatch(
                r"night 2: seeding: waited [\d.:]+ \w+ for 1 of 2 calls "
                r"\(echo-0 sleep\); "
                r"timeout 1:00:00 h",
                line,
            )

    def test_a_worker_without_gpus_sees_none(self, echo, only_ray):
        assert echo.env("CUDA_VISIBLE_DEVICES") == [""]

    def test_a_second_ray_backend_is_refused(self, backend, only_ray):
        with pytest.raises(RunError, match="one RayBackend at a time"):
            RayBackend()


def test_local_backend_restores_the_environment_and_never_imports_ray():
    code = (
        "import os, sys; from cluster.runtime.local_backend import LocalBackend\n"
        "with LocalBackend() as backend:\n"
        "    handle = backend.spawn('io:StringIO', {}, name='x', env={'SLEEP_X': '1'}); "
        "handle.write('abc')\n"
        "    assert handle.getvalue() == 'abc' and os.environ['SLEEP_X'] == '1'\n"
        "assert 'SLEEP_X' not in os.environ and 'ray' not in sys.modules and 'torch' not in "
        "sys.modules"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], timeout=LIMIT_S, capture_output=True, text=True
    )
    assert (done.returncode, done.stderr) == (0, "")

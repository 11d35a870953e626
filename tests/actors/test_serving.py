"""`sleep-rl serve`: options, swaps of nights in a running server, errors."""

import asyncio
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import urllib.error
import urllib.request
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from actors.serving.weight_swap import NightSwapper, SwapTimeout
from sleep_rl.cli.main import main
from sleep_rl.contracts.errors import InputError, RunError
from sleep_rl.journal.journal import Journal
from sleep_rl.model import checkpoints, memory_folder
from sleep_rl.model.memory import tensors_of
from sleep_rl.model.tensor_digest import digest
from sleep_rl.runs.resolve import ResolvedModel, nights, resolve_model
from tests.fakes.models import LEVELS, fill_memory
from tests.fakes.processes import LIMIT_S, as_at_a_terminal, until

PROMPT = list(range(20, 40))


def sleep_once(run: Path, base: str, night: int) -> torch.nn.Module:
    """Write the memory of a night with random weights; return its model."""
    model = checkpoints.load(base, LEVELS["dense"])
    fill_memory(model, seed=night)
    memory_folder.save_memory(model, str(run / "memory" / f"night-{night}"), base)
    return model


@pytest.fixture
def run(base_checkpoint, tmp_path) -> Path:
    """A run after its first night."""
    Journal(tmp_path / "run" / "metrics.jsonl").close()
    sleep_once(tmp_path / "run", base_checkpoint(), 1)
    return tmp_path / "run"


# ---- finding, refusing


def test_a_run_resolves_to_its_newest_complete_night(run, base_checkpoint):
    assert resolve_model(str(run)) == ResolvedModel(str(run / "memory" / "night-1"), run, 1)
    for night in (10, 9):
        sleep_once(run, base_checkpoint(), night)
    for name in ("night-11-rejected", "night-12.writing-77", "night-x"):
        shutil.copytree(run / "memory" / "night-1", run / "memory" / name)
    shutil.copytree(run / "memory" / "night-1", run / "memory" / "night-13")
    (run / "memory" / "night-13" / memory_folder.MEMORY).unlink()
    assert list(nights(run)) == [1, 9, 10] and resolve_model(str(run)).night == 10
    assert resolve_model(str(run / "memory" / "night-9")) == ResolvedModel(
        str(run / "memory" / "night-9"), run, 9
    )
    assert resolve_model(str(run / "memory" / "night-11-rejected")).night is None
    assert (
        resolve_model(base_checkpoint()) == ResolvedModel(base_checkpoint())
        and resolve_model(str(run)).name == "run"
    )
    for part, night in (("model", 10), ("checkpoint", 0)):
        shutil.copytree(base_checkpoint(), run / part)
        assert resolve_model(str(run / part)) == ResolvedModel(str(run / part), run, night)


def test_invalid_arguments_are_one_line_before_vllm_is_imported(
    run, base_checkpoint, tmp_path, capsys
):
    (tmp_path / "empty").mkdir()
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        for line, message in (
            (
                [str(run), "--port", port],
                f"--port {port}: cannot listen there: Address already in use",
            ),
            ([str(run), "--port", "70000"], "0-65535"),
            ([str(run), "--host", ""], "every interface"),
            ([str(run), "max_model_len"], "expected OPTION=VALUE, got max_model_len"),
            (
                [str(run / "memory" / "night-1"), "--follow"],
                "--follow: expected the folder of a run",
            ),
            ([str(tmp_path / "none")], "no such folder"),
            ([str(tmp_path / "empty")], "none of them"),
            ([base_checkpoint()], "a sleep checkpoint is needed"),
        ):
            assert main(["serve", *line]) == 2
            error = capsys.readouterr().err
            assert message in error and error.count("\n") == 1, error


@pytest.mark.stack
def test_options_override_the_defaults_on_cpu(sleep_checkpoint):
    from actors.serving.vllm_options import parse_options

    def arguments(*options):
        return parse_options(sleep_checkpoint(), "127.0.0.1", 8000, "it", options)

    plain = arguments()
    assert (plain.host, plain.served_model_name, plain.allowed_origins, plain.dtype) == (
        "127.0.0.1",
        ["it"],
        [],
        "float32",
    )
    assert (
        plain.enforce_eager
        and plain.max_model_len == 256
        and plain.kv_cache_memory_bytes == 64 << 20
    )
    assert plain.worker_extension_cls == "actors.memory_access.MemoryAccess"
    chosen = arguments(
        "enforce_eager=false",
        "max-model-len=64",
        "served_model_name=other",
        "dtype=bfloat16",
        "api_key=x",
    )
    assert (chosen.enforce_eager, chosen.max_model_len, chosen.served_model_name) == (
        False,
        64,
        ["other"],
    )
    assert (chosen.dtype, chosen.api_key) == ("bfloat16", ["x"])


@pytest.mark.stack  # imports vLLM
@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("no_such=1", "unrecognized arguments: --no-such=1"),
        ("max_model_len=x", "max-model-len"),
        ("worker_cls=a.b", "worker_cls cannot be set"),
        ("data_parallel_size=2", "data_parallel_size cannot be set"),
        ("max_model_len=100000", "max_model_len (100000) is greater"),
    ],
)
def test_invalid_options_are_one_line(option, message, sleep_checkpoint):
    from actors.serving.server import run_server
    from actors.serving.vllm_options import parse_options

    with pytest.raises(InputError) as error:
        arguments = parse_options(sleep_checkpoint(), "127.0.0.1", 8000, "it", [option])
        asyncio.run(run_server(arguments, None, ResolvedModel(sleep_checkpoint()), False, print))
    assert message in str(error.value) and "\n" not in str(error.value)


# ---- swapping


class FakeClient:
    """An engine of one rank, which asserts that no request is in flight during a write. The writes
    with a number in `break_at`, from 0, are damaged.
    """

    def __init__(self, model: torch.nn.Module, break_at: tuple[int, ...] = ()):
        self.tensors = {k: t.clone() for k, t in tensors_of(model).items()}
        self.break_at = break_at
        self.paused = False
        self.in_flight = 0  # requests, counted by the test
        self.version = ""
        self.writes = 0
        self.cached = True

    async def collective_rpc(self, method, args=(), kwargs=None):
        await asyncio.sleep(0)
        if method == "memory_read":
            return [save_file(self.tensors, kwargs["path"])]
        if method == "memory_digests":
            return [{key: digest(self.tensors[key]) for key in args[0]}]
        assert method == "memory_write" and self.paused and not self.in_flight and not self.cached
        for key, tensor in load_file(kwargs["path"]).items():
            assert (
                tensor.dtype == self.tensors[key].dtype and tensor.shape == self.tensors[key].shape
            )
            self.tensors[key] = tensor + 1 if self.writes in self.break_at else tensor
        self.writes += 1
        return [None]

    async def pause_generation(self, mode, clear_cache):
        assert mode == "abort" and clear_cache
        self.paused = True
        self.cached = False

    async def resume_generation(self):
        self.paused = False

    async def update_weight_version(self, label):
        self.version = label

    def holds(self, model: torch.nn.Module) -> bool:
        return all(
            torch.equal(self.tensors[key], tensor) for key, tensor in tensors_of(model).items()
        )


class Swapping:
    """A NightSwapper over a fake engine that holds night 1 of a run."""

    def __init__(self, run, base, break_at=(), drain_s=5.0):
        self.first = sleep_once(run, base, 1)
        self.second = sleep_once(run, base, 2)
        self.client = FakeClient(self.first, break_at)
        self.ended: list[int] = []
        self.log: list[str] = []
        self.swapper = NightSwapper(
            self.client,
            resolve_model(str(run / "memory" / "night-1")),
            stop_server=lambda: self.ended.append(1),
            drain_s=drain_s,
        )

    def go(self, body):
        async def all_of_it():
            await self.swapper.read_memory()
            return await asyncio.wait_for(body(), LIMIT_S)

        return asyncio.run(all_of_it())


def test_a_swap_waits_for_requests_in_flight_and_blocks_new_ones(run, base_checkpoint):
    swap = Swapping(run, base_checkpoint())
    order = []

    async def ask(name, seconds):
        async with swap.swapper.request_lock.shared():
            swap.client.in_flight += 1
            began = swap.swapper.label
            await asyncio.sleep(seconds)
            order.append((name, began, swap.swapper.label))
            swap.client.in_flight -= 1

    async def body():
        slow = asyncio.create_task(ask("slow", 0.3))
        await asyncio.sleep(0.05)
        taking = asyncio.create_task(swap.swapper.swap_to(2))
        await asyncio.sleep(0.1)
        late = asyncio.create_task(ask("late", 0))
        await asyncio.gather(slow, taking, late)

    swap.go(body)
    assert order == [("slow", "night-1", "night-1"), ("late", "night-2", "night-2")]
    assert (
        swap.client.holds(swap.second)
        and swap.client.version == "night-2"
        and not swap.client.paused
    )


def test_a_swap_times_out_when_requests_do_not_end(run, base_checkpoint):
    swap = Swapping(run, base_checkpoint(), drain_s=0.1)

    async def body():
        async with swap.swapper.request_lock.shared():
            with pytest.raises(SwapTimeout, match=r"1 requests were still in flight after 0.1 s"):
                await swap.swapper.swap_to(2)
        async with swap.swapper.request_lock.shared():  # new requests are admitted again
            assert swap.swapper.label == "night-1" and swap.client.holds(swap.first)
        assert await swap.swapper.swap_to(2) and not await swap.swapper.swap_to(2)

    swap.go(body)
    assert swap.client.holds(swap.second) and swap.client.writes == 1


def test_a_damaged_write_restores_the_previous_night(run, base_checkpoint):
    swap = Swapping(run, base_checkpoint(), break_at=(0,))

    async def body():
        with pytest.raises(RunError, match="in the model differs from what was written"):
            await swap.swapper.swap_to(2)

    swap.go(body)
    assert (
        swap.client.holds(swap.first)
        and swap.swapper.label == "night-1"
        and not swap.ended
        and not swap.client.paused
    )


def test_a_memory_that_cannot_be_restored_ends_the_server(run, base_checkpoint):
    swap = Swapping(run, base_checkpoint(), break_at=(0, 1))

    async def body():
        with pytest.raises(RunError, match="night-1 could not be restored"):
            await swap.swapper.swap_to(2)

    swap.go(body)
    # no request is answered
    assert (
        swap.ended == [1]
        and "differs from what was written" in swap.swapper.failure
        and swap.client.paused
    )


def test_a_night_with_other_levels_is_refused_without_blocking_requests(run, base_checkpoint):
    swap = Swapping(run, base_checkpoint())
    other = checkpoints.load(base_checkpoint(), LEVELS["two levels"])
    memory_folder.save_memory(other, str(run / "memory" / "night-3"), base_checkpoint())

    async def body():
        async with swap.swapper.request_lock.shared():
            for number, message in (
                (3, "its levels are not those"),
                (7, r"one of the run's nights \(1, 2, 3\)"),
            ):
                with pytest.raises(InputError, match=message):
                    await swap.swapper.swap_to(number)

    swap.go(body)
    assert swap.client.holds(swap.first) and swap.client.writes == 0


def test_follow_swaps_in_each_newest_night_once_and_skips_damaged_ones(run, base_checkpoint):
    swap = Swapping(run, base_checkpoint())

    async def logged(text):
        while not any(text in line for line in swap.log):
            await asyncio.sleep(0.01)

    async def body():
        following = asyncio.create_task(swap.swapper.follow(swap.log.append, every_s=0.02))
        await logged("night 2 is served")  # it existed before the engine
        third = sleep_once(run, base_checkpoint(), 3)
        await logged("night 3 is served")
        assert swap.client.holds(third)
        await swap.swapper.swap_to(1)  # stays until there is a newer night
        shutil.copytree(run / "memory" / "night-1", run / "memory" / "night-4-rejected")
        (run / "memory" / "night-4").mkdir()
        (run / "memory" / "night-4" / memory_folder.MEMORY).write_bytes(b"half")
        shutil.copy(run / "memory" / "night-1" / memory_folder.POINTER, run / "memory" / "night-4")
        await logged("warning: night 4 cannot be loaded, night-1 is still served")
        await asyncio.sleep(0.1)
        assert swap.client.holds(swap.first)
        fourth = sleep_once(run, base_checkpoint(), 4)  # as when a resumed run writes it again
        await logged("night 4 is served")
        assert swap.client.holds(fourth)
        following.cancel()

    swap.go(body)
    assert len(swap.log) == 4


# ---- the real server


def ask(url: str, path: str, body: dict | None = None) -> tuple[str | None, dict]:
    """Return (night in the header, JSON of the response)."""
    request = urllib.request.Request(
        url + path,
        None if body is None else json.dumps(body).encode(),
        {"Content-Type": "application/json"},
    )
    with urllib.request.urlopen(request, timeout=LIMIT_S) as answer:
        return answer.headers.get("x-sleep-rl-night"), json.load(answer)


def greedy(model: torch.nn.Module, count: int) -> list[int]:
    ids = list(PROMPT)
    with torch.no_grad():
        for _ in range(count):
            ids.append(int(model(torch.tensor([ids])).logits[0, -1].argmax()))
    return ids[len(PROMPT) :]


class Server:
    """`sleep-rl serve RUN --follow` in a process of its own; its output goes to files."""

    def __init__(self, run: Path, folder: Path):
        self.log = folder / "log"
        self.errors = folder / "errors"
        options = ["--port", "0", "--follow", "max_num_seqs=4", "block_size=32"]
        with self.log.open("w") as out, self.errors.open("w") as err:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "sleep_rl", "serve", str(run), *options],
                stdout=out,
                stderr=err,
                env={**os.environ, "TMPDIR": str(folder)},
                preexec_fn=as_at_a_terminal,
            )
        self.url = ""

    def wait_for(self, condition, name: str):
        """Return the value of `condition` once it is true; fail when the server ends first."""
        try:
            return until(condition, self.process)
        except AssertionError:
            pytest.fail(f"{name}: {self.log.read_text()}{self.errors.read_text()}")

    def wait_until_it_answers(self) -> None:
        greeting = re.compile(
            r"run \(night-1\) answers at (http://127\.0\.0\.1:\d+)/v1, and follows its run"
        )
        self.url = self.wait_for(lambda: greeting.search(self.log.read_text()), "start")[1]

    def ask(self, path: str, body: dict | None = None) -> tuple[str | None, dict]:
        """Return (night in the header, JSON of the response)."""
        return ask(self.url, path, body)

    def complete(self) -> tuple[str | None, list[int]]:
        """Return (night in the header, 24 greedy tokens after PROMPT)."""
        body = {
            "prompt": PROMPT,
            "max_tokens": 24,
            "temperature": 0,
            "ignore_eos": True,
            "return_token_ids": True,
        }
        night, answer = self.ask("/v1/completions", body)
        return night, answer["choices"][0]["token_ids"]

    def kill(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()


@pytest.mark.stack
@pytest.mark.slow
def test_a_real_server_swaps_nights_and_follows_its_run(run, base_checkpoint, tmp_path):
    first = checkpoints.load(str(run / "memory" / "night-1"))
    server = Server(run, tmp_path)
    try:
        server.wait_until_it_answers()
        assert server.ask("/v1/models")[1]["data"][0]["id"] == "run"
        assert server.complete() == ("night-1", greedy(first, 24))
        assert server.ask("/v1/night") == (None, {"night": 1, "nights": [1]})
        second = sleep_once(run, base_checkpoint(), 2)
        both = {"night": 2, "nights": [1, 2]}
        server.wait_for(lambda: server.ask("/v1/night")[1] == both, "night 2")
        assert server.complete() == ("night-2", greedy(second, 24))
        assert greedy(first, 24) != greedy(second, 24)
        assert server.ask("/v1/night", {"night": 1})[1]["night"] == 1
        assert server.complete() == ("night-1", greedy(first, 24))
        with pytest.raises(urllib.error.HTTPError) as refused:
            server.ask("/v1/night", {"night": 5})
        assert refused.value.code == 400
        error = json.load(refused.value)["error"]
        assert "(1, 2)" in error["message"] and error["type"] == "InputError"
        server.process.send_signal(signal.SIGINT)
        assert server.process.wait(timeout=LIMIT_S) == 0
    finally:
        server.kill()
    assert server.log.read_text().splitlines()[-1] == "ended"
    assert "Traceback" not in server.errors.read_text()
    assert not list(tmp_path.glob("sleep_rl-serve-*"))

"""`sleep-rl serve`: errors before the engine starts, and a real server that follows its run."""

import asyncio
import json
import os
import re
import signal
import socket
import subprocess
import sys
import urllib.error
import urllib.request
from pathlib import Path

import pytest
import torch

from sleep_rl.cli.main import main
from sleep_rl.contracts.errors import InputError
from sleep_rl.model import checkpoints
from sleep_rl.runs.resolve import ResolvedModel
from tests.fakes.processes import LIMIT_S, as_at_a_terminal, until
from tests.fakes.serving import sleep_once

PROMPT = list(range(20, 40))


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

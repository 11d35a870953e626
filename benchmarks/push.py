"""Time of a verified weight push to two rollout workers, against copying the same bytes through
shared memory.

    .venv/bin/python benchmarks/push.py            # the embedded model; starts Ray and two vLLM
    engines
    .venv/bin/python benchmarks/push.py --1b       # a random model of 1.2 billion parameters in
    bfloat16 (12 GB of memory)

Prints, as medians over 30 repetitions: (a) put into Ray's shared memory and copied out by the same
two worker processes, nothing else done; (b) the push of the product: digests checked, staged,
copied into the engine, prefix cache reset, read back and compared, and a probe prompt scored by
vLLM against the learner's log-probabilities; (c) for how long workers that were sampling did not,
in a push like (b) that came while requests were under way.
"""

from __future__ import annotations

import statistics
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, Qwen3Config

from cluster.crew import WorkerCrew
from cluster.launch import base_checkpoint, memory_of
from cluster.runtime.ray_backend import RayBackend, wait_all
from sleep_rl.config.schema import Config, Model
from sleep_rl.contracts.errors import RunError
from sleep_rl.contracts.records import STUDENT, TEACHER, Request, Sampling, Weights
from sleep_rl.contracts.roles import Rollout
from sleep_rl.journal.journal import Journal
from sleep_rl.model import checkpoints
from sleep_rl.model.tensor_digest import digest
from sleep_rl.session.console import Console
from sleep_rl.tasks.registry import make_task


class Copier:
    """Copies what arrives into memory of its own: the least that any transport through shared
    memory does.
    """

    def __init__(self) -> None:
        self.own: dict[str, torch.Tensor] = {}

    def take(self, tensors: dict[str, torch.Tensor]) -> int:
        for key, tensor in tensors.items():
            self.own[key] = tensor.clone()
        return len(tensors)


def changed(weights: Weights, by: float) -> Weights:
    """The same modules with new numbers, as a learner would send after a step (no probe: the
    weights are made up).
    """
    tensors = {k: v + by if v.is_floating_point() else v for k, v in weights.tensors.items()}
    return replace(
        weights,
        tensors=tensors,
        probe_T=(),
        probe_logprobs_T=(),
        manifest=weights.manifest | {k: digest(v) for k, v in tensors.items()},
    )


def push_under_way(crew: WorkerCrew, weights: Weights) -> float:
    """Pushes while every rollout worker is sampling; seconds that the slower of them did not
    sample.
    """
    requests = [Request(tuple(range(4, 12)), (), seed) for seed in range(4)]
    version = crew.store.current(STUDENT)
    crew.rollouts.all(
        Rollout.begin, requests, STUDENT, version, Sampling(max_tokens=8, temperature=1.0)
    )
    crew.rollouts.all(Rollout.more, 1e-3)  # a token or so
    crew.store.push(weights)
    pause, copied = (crew.store.metrics[f"push/{key}"] for key in ("pause", "bytes"))
    if copied < sum(v.nbytes for v in weights.tensors.values() if v.is_floating_point()) * len(
        crew.rollouts.workers
    ):
        raise RunError(
            f"a push of {weights.nbytes} bytes in which only {copied} were copied by "
            "all workers measures nothing"
        )
    answers = crew.rollouts.all(Rollout.more, 600.0)
    if {sample.versions_T[-1] for samples in answers for sample in samples} != {weights.version}:
        raise RunError("requests that were under way in a push did not end in the pushed version")
    return pause


def synthetic(base: str, folder: str) -> str:
    """A random checkpoint of 24 layers of 2048 units with the tokenizer of `base`."""
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


def main(repetitions: int = 30) -> None:
    large = "--1b" in sys.argv[1:]
    config, console = (
        Config(model=Model(experts=1, top_k=1, dtype="bfloat16") if large else Model()),
        Console(),
    )
    task = make_task(config)
    base = base_checkpoint(config, task, console)
    with tempfile.TemporaryDirectory() as folder, RayBackend() as backend:
        base = synthetic(base, folder) if large else base
        checkpoint = checkpoints.expand(
            base, f"{folder}/checkpoint", memory_of(config), config.run.seed
        )
        crew = WorkerCrew(
            backend,
            config,
            Journal(Path(folder) / "metrics.jsonl"),
            checkpoint=checkpoint,
            base=base,
            probe_T=tuple(range(4, 16)),
        )
        copiers = [
            backend.spawn(Copier, {}, name=f"copier-{i}", env={"OMP_NUM_THREADS": "1"})
            for i in range(2)
        ]
        backend.ready(copiers)
        crew.push(TEACHER, TEACHER)
        crew.learn.open_night(1)
        crew.push(STUDENT, STUDENT)
        known = crew.store.have(STUDENT)
        blank = {key: "" for key in known if key.split("#")[-1] == "1" or key.endswith("state")}
        copy, plain, probed, pauses = [], [], [], []
        for i in range(repetitions):
            true = crew.learn.export(STUDENT, 100 + 3 * i, known | blank, STUDENT)
            delta = changed(true, 1e-3)
            began = time.perf_counter()
            ref = backend.put(delta.tensors)
            wait_all([copier.start(Copier.take, ref) for copier in copiers], 60, "copying")
            copy.append(time.perf_counter() - began)
            for weights, seconds in (
                (delta, plain),
                (replace(true, version=true.version + 1), probed),
            ):
                began = time.perf_counter()
                crew.store.push(weights)
                seconds.append(time.perf_counter() - began)
            pauses.append(
                push_under_way(crew, replace(changed(true, 2e-3), version=true.version + 2))
            )
        crew.close()
    base_s, plain_s, probe_s = (statistics.median(x) for x in (copy, plain, probed))
    print(
        f"delta: {delta.nbytes:,} bytes in {len(delta.tensors)} tensors, two workers, "
        f"{repetitions} repetitions"
    )
    print(f"copy through shared memory      {base_s * 1e3:7.1f} ms")
    print(f"push, bytes verified            {plain_s * 1e3:7.1f} ms   {plain_s / base_s:.2f} x")
    print(f"push, bytes and probe verified  {probe_s * 1e3:7.1f} ms   {probe_s / base_s:.2f} x")
    print(
        f"pause of sampling in a push     {statistics.median(pauses) * 1e3:7.1f} ms, at most "
        f"{max(pauses) * 1e3:.1f} ms"
    )


if __name__ == "__main__":
    main()

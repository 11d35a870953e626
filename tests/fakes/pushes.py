"""Pushed weights and requests of the tests of a rollout worker."""

from __future__ import annotations

import torch

from sleep_rl.contracts.records import Request, Sampling, Weights
from sleep_rl.model import checkpoints
from sleep_rl.model.memory import memory_levels, tensors_of
from sleep_rl.model.tensor_digest import digest

PROBE = tuple(range(20, 60))
REQUESTS = [Request(tuple(range(n, n + 6)), tuple(range(40, 80)), seed=n) for n in range(5, 9)]
SAMPLING = Sampling(12, 1.0)
NIGHT = "model.layers.0.mlp.memory.0"


@torch.no_grad()
def hf_logprobs(model, ids_T) -> list[float]:
    logprobs_TV = model(torch.tensor([ids_T])).logits[0].log_softmax(-1)
    return logprobs_TV[range(len(ids_T) - 1), list(ids_T[1:])].tolist()


def changed_model(path: str, seed: int) -> torch.nn.Module:
    """Return the checkpoint with random weights in slot 4 of every layer, as after a night."""
    model = checkpoints.load(path)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for level in memory_levels(model).values():
            level.w_out[4].normal_(0, 0.5, generator=generator)
            level.router[4].normal_(0, 0.5, generator=generator)
    return model


def weights_of(model, name: str, version: int, have: dict[str, str] | None = None) -> Weights:
    """Return a learner's export: complete manifest, the tensors that `have` lacks, and a probe."""
    tensors = tensors_of(model)
    manifest = {k: digest(t) for k, t in tensors.items()}
    sent = {k: t.clone() for k, t in tensors.items() if (have or {}).get(k) != manifest[k]}
    return Weights(name, version, manifest, sent, PROBE, tuple(hf_logprobs(model, PROBE)))


def gap(model, worker, name: str, version: int) -> float:
    """Return the largest difference, in nats, between log-probabilities of samples and those of the
    model in transformers.
    """
    gaps = [0.0]
    for sample in worker.sample(REQUESTS, name, version, SAMPLING):
        ids_T = sample.context_T + sample.prompt_T + sample.completion_T
        expected = hf_logprobs(model, ids_T)[-len(sample.completion_T) :]
        gaps += [abs(a - b) for a, b in zip(sample.logprobs_T, expected, strict=True)]
    return max(gaps)

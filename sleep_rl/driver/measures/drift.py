"""Drift: how far the model's distribution has moved from the untouched base's on texts that the
base wrote itself; it needs no data.

KL(base || now) in nats per token, estimated as the mean of log p_base - log p_now over tokens that
were sampled from the base at temperature 1, which is unbiased.
"""

from __future__ import annotations

import random

from sleep_rl.contracts.errors import Failure
from sleep_rl.contracts.records import CHECKPOINT, Ids, Request, Sample
from sleep_rl.session.context import RunContext

TEXTS = 16
TOKENS = 64  # of a text, at most


def sample_texts(run: RunContext) -> list[list]:
    """Sample the held-out texts from the untouched base.

    Returns [context_T, text_T, log-probabilities of the text under the base] of each as plain data.
    In a chat form one half are users' turns, the other half the answers to them.
    """
    codec = run.codec
    chat = codec.form.name == "chat"
    seeds = random.Random(f"drift {run.config.run.seed}")
    context = codec.context(None)
    count = TEXTS // 2 if chat else TEXTS
    first = [Request(codec.opener, context, seeds.getrandbits(31)) for _ in range(count)]
    samples = _sampled(run, first)
    if chat:
        asked = [
            Request(codec.marker, s.context_T + _body(run, s), seeds.getrandbits(31))
            for s in samples
        ]
        samples += _sampled(run, asked)
    texts = [(s.context_T + s.prompt_T, s.completion_T) for s in samples]
    base = run.crew.logprobs([Request(text, context) for context, text in texts], CHECKPOINT)
    run.count_failures("drift", base)
    return [
        [list(context), list(text), list(values)]
        for (context, text), values in zip(texts, base, strict=True)
        if not isinstance(values, Failure)
    ]


def drift(run: RunContext, weights: str) -> float | None:
    """Return KL(base || state `weights`) in nats per token, on the run's drift_texts; None without
    any, or where the state is the workers' own checkpoint.
    """
    texts = run.drift_texts
    if not texts or weights == CHECKPOINT:
        return None
    requests = [Request(tuple(text), tuple(context)) for context, text, _ in texts]
    results = run.crew.logprobs(requests, weights)
    run.count_failures("drift", results)
    gaps = [
        before - after
        for (_, _, base), now in zip(texts, results, strict=True)
        if not isinstance(now, Failure)
        for before, after in zip(base, now, strict=True)
    ]
    return sum(gaps) / len(gaps) if gaps else None


def _sampled(run: RunContext, requests_N: list[Request]) -> list[Sample]:
    tokens = min(TOKENS, run.task.max_new_tokens)
    samples = run.sample(requests_N, CHECKPOINT, tokens, 1.0)
    return [s for s in samples if not isinstance(s, Failure) and s.completion_T]


def _body(run: RunContext, sample: Sample) -> Ids:
    """Return a user's turn without its end token."""
    ids = sample.completion_T
    return ids[:-1] if ids[-1] in run.codec.ends else ids

"""Rehearsed self-replay: the teacher answers prompts of past nights."""

from __future__ import annotations

import math
import random
from dataclasses import replace

from sleep_rl.contracts.errors import Failure
from sleep_rl.contracts.records import Ids, Request, Sample
from sleep_rl.night.answer_filters import kept_answer
from sleep_rl.night.items import Counts
from sleep_rl.night.sequences import Origin, TeacherSequence, filter_complete
from sleep_rl.night.teacher import TeacherSampler
from sleep_rl.text.codec import PromptCodec


def rehearsal_requests(
    codec: PromptCodec, prompts: list[Ids], seeds: random.Random
) -> list[Request]:
    """Return one request per prompt of past nights, without a document."""
    context = codec.context(None)
    return [Request(codec.opener + x, context, seeds.getrandbits(31)) for x in prompts]


def with_prompts(prompts: list[Ids], samples_N: list[Sample | Failure]) -> list[Sample | Failure]:
    """Prepend each rehearsed prompt to its answer, so that the sample is a whole sequence."""
    return [
        sample
        if isinstance(sample, Failure)
        else replace(sample, completion_T=x + sample.completion_T)
        for x, sample in zip(prompts, samples_N, strict=True)
    ]


def rehearse(
    sample: TeacherSampler, prompts: list[Ids], requests: list[Request]
) -> tuple[list[TeacherSequence], dict[str, int]]:
    """Sample the answers; return (sequences, reason -> number of dropped samples)."""
    config = sample.run.config
    temperature = config.rehearsal.temperature
    samples = with_prompts(prompts, sample(requests, temperature=temperature))
    return filter_complete(
        sample.run.codec,
        samples,
        Origin.REHEARSED,
        min_confidence=config.rehearsal.min_confidence,
        temperature=temperature,
    )


def rehearse_with_cuts(
    sample: TeacherSampler, requests: list[Request], counts: Counts
) -> list[TeacherSequence]:
    """Sample the answers in natural language; an answer that runs on is cut behind its last
    complete sentence. Dropped ones are counted.
    """
    config = sample.run.config.rehearsal
    codec = sample.run.codec
    sequences = []
    answers = sample(requests, temperature=config.temperature)
    for request, answer in zip(requests, answers, strict=True):
        answer_T = kept_answer(codec, answer, counts)
        if answer_T is None:
            continue
        probability = math.exp(math.fsum(answer.logprobs_T[: len(answer_T)]))
        if probability < config.min_confidence:
            counts.dropped["unsure"] += 1
            continue
        x_T = request.prompt_T[len(codec.opener) :]
        sequence = TeacherSequence(
            Origin.REHEARSED,
            request.context_T + codec.opener,
            codec.bare,
            x_T + answer_T + codec.eos,
            len(x_T),
            prompt_T=x_T,
            answer_probability=probability,
            temperature=config.temperature,
        )
        sequences.append(sequence)
    return sequences

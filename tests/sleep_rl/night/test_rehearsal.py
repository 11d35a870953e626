"""Rehearsed answers in natural language, with a scripted teacher on real token ids."""

from __future__ import annotations

import math
import random
from dataclasses import replace

import pytest

from sleep_rl.contracts.errors import Failure
from sleep_rl.night.items import Counts
from sleep_rl.night.rehearsal import rehearsal_requests, rehearse_with_cuts
from sleep_rl.night.sequences import Origin
from tests.fakes.configs import changed
from tests.fakes.natural_teacher import FACTS, sampler_of, teacher, texts


def test_rehearsed_answers_that_run_on_are_cut_behind_their_last_sentence():
    run = teacher(rehearsal={"min_confidence": 0.05, "temperature": 0.5})
    form = run.codec.form
    prompts = [form.question(f"What did {who} buy?") for who in (*FACTS, "nobody")]
    replies = iter(("A red seaweed.", "A brass clock. It", "it has no", Failure("rollout", "gone")))
    ended = iter((True, False, False, None))
    counts = Counts()
    sample = run.sampled

    def scripted(request, name, temperature):
        reply = next(replies)
        run.reply = lambda *given: reply
        sampled = sample(request, name, temperature)
        if next(ended) is False:
            return replace(
                sampled,
                completion_T=sampled.completion_T[:-1],
                logprobs_T=sampled.logprobs_T[:-1],
                finish_reason="length",
            )
        return sampled

    run.sampled = scripted
    sampler = sampler_of(run)
    requests = rehearsal_requests(run.codec, prompts, random.Random(0))
    sequences = rehearse_with_cuts(sampler, requests, counts)
    assert [texts(run, s)[3] for s in sequences] == [
        "A red seaweed.<|im_end|>",
        "A brass clock.<|im_end|>",
    ]
    assert [s.prompt_T for s in sequences] == prompts[:2]
    assert {s.temperature for s in sequences} == {0.5} and sequences[0].origin == Origin.REHEARSED
    assert sequences[0].context_T == sequences[0].bare_T == run.codec.bare
    kept = len(sequences[1].sequence_T) - sequences[1].x_length - 1
    assert sequences[1].answer_probability == pytest.approx(math.exp(-0.1 * kept))
    assert counts.journal_fields()["dropped"] == {"no end": 1, "failed": 1}


def test_rehearsed_answers_with_low_confidence_are_dropped():
    """Answers have log-probability -0.1 per token, so that longer ones are less probable."""
    counts = Counts()
    run = teacher()
    answers = ("A clock.", "It is a very old brass clock.")
    tokens = len(run.codec.tokens.plain_ids(answers[0]))
    run.config = changed(run.config, rehearsal={"min_confidence": math.exp(-0.1 * tokens - 0.05)})
    replies = iter(answers)
    run.reply = lambda *given: next(replies)
    form = run.codec.form
    prompts = [form.question(f"What did {who} buy?") for who in ("Edgar Pike", "Ruth Abel")]
    requests = rehearsal_requests(run.codec, prompts, random.Random(0))
    [sequence] = rehearse_with_cuts(sampler_of(run), requests, counts)
    assert texts(run, sequence)[3] == "A clock.<|im_end|>"
    assert counts.journal_fields()["dropped"] == {"unsure": 1}

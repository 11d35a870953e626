"""Likelihood of given answers: it measures knowledge that greedy decoding does not show.

Shape suffix: `_N` questions of one call.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from sleep_rl.contracts.errors import Failure
from sleep_rl.contracts.records import Question, Request
from sleep_rl.session.context import RunContext

Measured = tuple[float | None, float | None]
"""Negative log-likelihood of the gold answer in nats, and whether it beats every wrong answer."""


def likelihoods(
    run: RunContext, questions_N: list[Question], requests_N: list[Request], weights: str
) -> list[Measured]:
    """Return what is measured of each question, in order; None for what cannot be.

    `requests_N`: what the model reads in front of each answer. The gold answer is compared with
    `choices` by log-likelihood per character. Failures are counted.
    """
    texts = [[q.answer, *q.choices] if q.answer else [] for q in questions_N]
    scored = iter(
        log_likelihoods(
            run,
            [
                Request(run.codec.form.answer(text), request.context_T + request.prompt_T)
                for request, answers in zip(requests_N, texts, strict=True)
                for text in answers
            ],
            weights,
        )
    )
    return [_measured(answers, [next(scored) for _ in answers]) for answers in texts]


def log_likelihoods(run: RunContext, requests_N: list[Request], weights: str) -> list[float | None]:
    """Return the log-likelihood in nats of each request's prompt behind its context, None for a
    failure, which is counted.
    """
    if not requests_N:
        return []
    results = run.crew.logprobs(requests_N, weights)
    run.count_failures("logprobs", results)
    return [None if isinstance(result, Failure) else sum(result) for result in results]


def best_choice(texts: Sequence[str], values: list[float | None]) -> int | None:
    """Return the position of the text with the largest log-likelihood per character; None where one
    is unknown.
    """
    if not values or any(value is None for value in values):
        return None
    per_character = list(_per_character(texts, values))
    return per_character.index(max(per_character))


def _per_character(texts: Sequence[str], values: list[float | None]) -> Iterator[float]:
    for text, value in zip(texts, values, strict=True):
        yield value / max(len(text.strip()), 1)


def _measured(texts: list[str], values: list[float | None]) -> Measured:
    if not texts:
        return None, None
    nll = None if values[0] is None else -values[0]
    if len(texts) == 1:
        return nll, None
    best = best_choice(texts, values)
    return nll, None if best is None else float(best == 0)

"""Probes of general ability from the user's files: multiple choice by likelihood, and last words.

A file is jsonl; each row has one of the sets of fields of ROW_FIELDS. It is read as plain text, in
no chat form.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from sleep_rl.contracts.errors import Failure, InputError
from sleep_rl.contracts.records import Request
from sleep_rl.driver.measures.likelihood import best_choice, log_likelihoods
from sleep_rl.driver.measures.selection import subset
from sleep_rl.files import spelled
from sleep_rl.session.context import RunContext
from sleep_rl.tasks.documents.reading import Unreadable, read_rows

WHERE = "evaluate.probes"
ROW_FIELDS = (
    "query, choices and gold; context_options, continuation and gold; or context and continuation"
)
MOST_ROWS = 200
"""Rows of a file that are asked, a fixed random subset; evaluate.questions may ask for fewer."""
QUESTION = "Question:"
ANSWER = "\nAnswer:"
"""Stands behind a query that begins with QUESTION."""


@dataclass(frozen=True)
class ProbeItem:
    """One item: each continuation behind its context, and the position of the right one.

    A last word is one continuation, which is right if greedy decoding begins with it.
    """

    contexts: tuple[str, ...]
    continuations: tuple[str, ...]
    gold: int = 0

    @property
    def last_word(self) -> bool:
        return len(self.continuations) == 1


def name_of(path: str) -> str:
    """Return the column of a file: its name without suffix."""
    return Path(path).stem


def check(paths: Sequence[str], natural: bool = True) -> None:
    """Raise InputError for files that cannot be used, or of one name; and for any file with a task
    that is not in natural language.
    """
    names = [name_of(path) for path in paths]
    if len(set(names)) < len(names):
        raise InputError(f"{WHERE}: files with different names, got {', '.join(names)}")
    if paths and not natural:
        raise InputError(
            f"{WHERE}: [] with a task whose small base knows no other text, got {', '.join(names)}"
        )
    for path in paths:
        read(path)


def read(path: str) -> list[ProbeItem]:
    """Return the rows of a file. Raises InputError."""
    file = Path(spelled(os.path.expanduser(path)))
    try:
        rows = [_row(number, row) for number, row in read_rows(file)]
    except Unreadable as error:
        raise InputError(f"{WHERE}: {path}: {error}") from None
    if not rows:
        raise InputError(f"{WHERE}: {path}: expected at least one row, got none")
    return rows


def probe(run: RunContext, weights: str) -> tuple[dict[str, float], dict[str, int]]:
    """Return (share of right answers, number of answers) by the names of evaluate.probes, of the
    state `weights`. What failed is counted and left out.
    """
    shares = {}
    counts = {}
    for path in run.config.evaluate.probes:
        rows = asked_of(read(path), run.config.evaluate.questions)
        choices = [row for row in rows if not row.last_word]
        words = [row for row in rows if row.last_word]
        right = _choices(run, choices, weights) + _last_words(run, words, weights)
        counts[name_of(path)] = len(right)
        if right:
            shares[name_of(path)] = fmean(right)
    return shares, counts


def asked_of(rows: list[ProbeItem], limit: int | None) -> list[ProbeItem]:
    """Return at most MOST_ROWS rows, or `limit` if that is less."""
    return subset(rows, min(limit or MOST_ROWS, MOST_ROWS), "probes")


def _row(number: int, row: Mapping[str, Any]) -> ProbeItem:
    """Return the item of line `number`. Raises Unreadable."""
    query = row.get("query")
    choices = row.get("choices")
    options = row.get("context_options")
    continuation = row.get("continuation")
    context = row.get("context")
    item = None
    if _text(query) and _texts(choices):
        item = ProbeItem((_asked(query),) * len(choices), tuple(choices), row.get("gold"))
    elif _texts(options) and _text(continuation):
        item = ProbeItem(tuple(options), (continuation,) * len(options), row.get("gold"))
    elif _text(context) and _text(continuation):
        item = ProbeItem((context,), (continuation,))
    if item is None or type(item.gold) is not int or not 0 <= item.gold < len(item.contexts):
        raise Unreadable(
            f"line {number}: expected {ROW_FIELDS}, got {', '.join(map(str, row))[:80]}"
        )
    return item


def _text(value: Any) -> bool:
    return isinstance(value, str) and bool(value.strip())


def _texts(value: Any) -> bool:
    return isinstance(value, list) and len(value) > 1 and all(map(_text, value))


def _asked(query: str) -> str:
    text = query.strip()
    return text + ANSWER if text.startswith(QUESTION) else text


def _requests(run: RunContext, row: ProbeItem) -> list[Request]:
    """Return a request per continuation, whose prompt is the continuation."""
    requests = []
    for context, continuation in zip(row.contexts, row.continuations, strict=True):
        pieces = ("", context.rstrip(), "", f" {continuation.strip()}")
        _, before_T, _, after_T = run.codec.tokens.parts(pieces)
        requests.append(Request(after_T, run.codec.bos + before_T))
    return requests


def _choices(run: RunContext, rows: list[ProbeItem], weights: str) -> list[float]:
    requests = [_requests(run, row) for row in rows]
    flat = [request for of_row in requests for request in of_row]
    values = iter(log_likelihoods(run, flat, weights))
    right = []
    for row in rows:
        best = best_choice(row.continuations, [next(values) for _ in row.continuations])
        if best is not None:
            right.append(float(best == row.gold))
    return right


def _last_words(run: RunContext, rows: list[ProbeItem], weights: str) -> list[float]:
    if not rows:
        return []
    requests = [_requests(run, row)[0] for row in rows]
    tokens = 1 + max(len(request.prompt_T) for request in requests)
    asked = [Request(request.context_T, ()) for request in requests]
    right = []
    for row, sample in zip(rows, run.sample(asked, weights, tokens, 0.0), strict=True):
        if not isinstance(sample, Failure):
            text = run.codec.text(sample.completion_T)
            right.append(float(begins_with(text, row.continuations[0])))
    return right


def begins_with(text: str, word: str) -> bool:
    """Return whether a text begins with a word, and the word ends there."""
    text = text.strip()
    word = word.strip()
    following = text[len(word) : len(word) + 1]
    return text.startswith(word) and not following.isalnum()

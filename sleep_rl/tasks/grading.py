"""Whether a free answer matches the gold one: by its tokens, deterministically, or by a language
model behind an OpenAI-compatible endpoint. Each has its own name, which stands beside every number
that it gives.
"""

from __future__ import annotations

import http.client
import json
import re
import string
import time
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import Sequence

from sleep_rl.contracts.errors import Failure

RECALL = 0.67
ARTICLES = re.compile(r"\b(a|an|the)\b")
PUNCTUATION = str.maketrans(dict.fromkeys(string.punctuation, " "))
TEMPLATE = (
    "Question: {question}\nGold answer: {gold}\nStudent answer: {answer}\n"
    "Does the student answer say the same as the gold answer? Reply with yes or no."
)


def tokens(text: str) -> list[str]:
    """Words as SQuAD compares them: lower case, without punctuation and articles."""
    return ARTICLES.sub(" ", text.lower().translate(PUNCTUATION)).split()


def gold_recall(gold: str, answer: str) -> float:
    """Share of the gold answer's tokens, each counted as often as it stands there, that the answer
    holds.
    """
    wanted, there = Counter(tokens(gold)), Counter(tokens(answer))
    return sum(min(n, there[word]) for word, n in wanted.items()) / max(sum(wanted.values()), 1)


class RecallGrader:
    """`recall`: 1 where the answer holds at least 0.67 of the gold tokens, else 0. Agrees with
    GPT-4.1's verdicts on answers of SQuAD at kappa 0.7, and is stricter than it.
    """

    name = "recall"

    def grade(self, asked_N: Sequence[tuple[str, str, str]]) -> list[float | Failure]:
        """One grade per (question, gold, answer), in order."""
        return [
            float(gold_recall(gold, answer) >= RECALL and bool(tokens(gold)))
            for _, gold, answer in asked_N
        ]


class JudgeGrader:
    """`judge:<model>`: what a language model says through POST <endpoint>/chat/completions, at
    temperature 0.

    A reply counts as yes where it says yes and not no, as no the other way round; anything else, a
    late answer or an endpoint that is down is a Failure with its reason, never a zero. An empty
    answer is wrong without a call.
    """

    def __init__(
        self, endpoint: str, model: str, key: str = "", timeout_s: float = 30.0, tries: int = 2
    ):
        self.name = f"judge:{model}"
        self._url, self._model, self._key = f"{endpoint.rstrip('/')}/chat/completions", model, key
        self._timeout_s, self._tries = timeout_s, tries

    def grade(self, asked_N: Sequence[tuple[str, str, str]]) -> list[float | Failure]:
        """One grade per (question, gold, answer), in order."""
        return [self._one(*asked) if asked[2].strip() else 0.0 for asked in asked_N]

    def _one(self, question: str, gold: str, answer: str) -> float | Failure:
        content = TEMPLATE.format(question=question, gold=gold, answer=answer)
        body = {
            "model": self._model,
            "temperature": 0,
            "max_tokens": 8,
            "messages": [{"role": "user", "content": content}],
        }
        reason = ""
        for attempt in range(self._tries):
            if attempt:
                time.sleep(min(2**attempt, self._timeout_s) / 4)
            try:
                reply = self._post(body)["choices"][0]["message"]["content"]
                return verdict(reply)
            except urllib.error.HTTPError as error:
                reason = f"the judge answered {error.code} {error.reason}"
            except (urllib.error.URLError, OSError, http.client.HTTPException) as error:
                reason = f"the judge cannot be reached ({getattr(error, 'reason', None) or error})"
            except (ValueError, KeyError, IndexError, TypeError, AttributeError):
                reason = "the judge's answer is not that of a chat completion"
        return Failure(reason, self.name)

    def _post(self, body: dict) -> dict:
        headers = {"Content-Type": "application/json"} | (
            {"Authorization": f"Bearer {self._key}"} if self._key else {}
        )
        request = urllib.request.Request(self._url, json.dumps(body).encode(), headers)
        with urllib.request.urlopen(request, timeout=self._timeout_s) as answer:
            return json.loads(answer.read())


def verdict(reply: str) -> float | Failure:
    """1 for yes, 0 for no; a reply that says both or neither is a Failure."""
    words = set(tokens(reply))
    if ("yes" in words) == ("no" in words):
        return Failure(
            f"the judge said neither yes nor no: {' '.join(reply.split())[:60]!r}", "judge"
        )
    return float("yes" in words)


def kappa(a: Sequence[float], b: Sequence[float]) -> float:
    """Cohen's kappa of two series of verdicts in {0, 1}."""
    n = len(a)
    agree = sum(x == y for x, y in zip(a, b, strict=True)) / n
    chance = sum((sum(x == v for x in a) / n) * (sum(y == v for y in b) / n) for v in (0.0, 1.0))
    return (agree - chance) / (1 - chance)

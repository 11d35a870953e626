"""Grade answers against gold answers: by token recall, or by a language model behind an
OpenAI-compatible endpoint.

Shape suffix: `_N` answers of one call.
"""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Sequence

from sleep_rl.contracts.errors import Failure, InputError, one_line

RECALL_THRESHOLD = 0.67
ARTICLES = re.compile(r"\b(a|an|the)\b")
PUNCTUATION = str.maketrans(dict.fromkeys(string.punctuation, " "))
TEMPLATE = (
    "Question: {question}\nGold answer: {gold}\nStudent answer: {answer}\n"
    "Does the student answer say the same as the gold answer? Reply with yes or no."
)


def tokens(text: str) -> list[str]:
    """Return the normalised words, as SQuAD: lower case, without punctuation and articles."""
    return ARTICLES.sub(" ", text.lower().translate(PUNCTUATION)).split()


def gold_recall(gold: str, answer: str) -> float:
    """Return the share of the gold answer's tokens, as a multiset, that the answer contains."""
    gold_counts = Counter(tokens(gold))
    answer_counts = Counter(tokens(answer))
    return (gold_counts & answer_counts).total() / max(gold_counts.total(), 1)


class RecallGrader:
    """Grade 1 if the answer contains at least 0.67 of the gold tokens, else 0.

    Agreement with GPT-4.1 on answers to SQuAD questions is kappa 0.7; this grader is stricter.
    """

    name = "recall"

    def grade(self, answers_N: Sequence[tuple[str, str, str]]) -> list[float | Failure]:
        """Return one grade per (question, gold answer, answer), in order."""
        return [
            float(gold_recall(gold, answer) >= RECALL_THRESHOLD and bool(tokens(gold)))
            for _, gold, answer in answers_N
        ]


class JudgeGrader:
    """Grade by the verdict of a language model at temperature 0, through an OpenAI-compatible
    endpoint.

    A reply with yes and without no gives 1, the reverse 0. Any other reply, a timeout or an
    unreachable endpoint gives a Failure. An empty answer gets 0 without a request. `timeout_s`: per
    request; `retries`: of requests that time out, are refused or end in a server error. Raises
    InputError for an invalid endpoint.
    """

    def __init__(
        self, endpoint: str, model: str, key: str = "", timeout_s: float = 30.0, retries: int = 1
    ):
        import openai  # takes half a second to import and is needed by a judge only

        self.name = f"judge:{model}"
        self._model = model
        try:
            # the client requires a key; a server without keys ignores it
            self._client = openai.OpenAI(
                base_url=endpoint, api_key=key or "EMPTY", timeout=timeout_s, max_retries=retries
            )
        # Boundary: httpx, which the client uses, has its own exceptions for invalid addresses.
        except Exception as error:
            raise InputError(f"judge: an address, got {endpoint!r}: {one_line(error)}") from error

    def grade(self, answers_N: Sequence[tuple[str, str, str]]) -> list[float | Failure]:
        """Return one grade per (question, gold answer, answer), in order."""
        return [
            self._ask(question, gold, answer) if answer.strip() else 0.0
            for question, gold, answer in answers_N
        ]

    def _ask(self, question: str, gold: str, answer: str) -> float | Failure:
        import openai

        content = TEMPLATE.format(question=question, gold=gold, answer=answer)
        try:
            reply = self._client.chat.completions.create(
                model=self._model,
                messages=[{"role": "user", "content": content}],
                temperature=0,
                max_tokens=8,
            )
            return verdict(reply.choices[0].message.content)
        except openai.APIStatusError as error:
            reason = f"the judge answered {error.status_code} {error.response.reason_phrase}"
        except openai.APIConnectionError as error:
            reason = f"the judge cannot be reached ({one_line(error.__cause__ or error)})"
        except (openai.APIError, ValueError, IndexError, TypeError, AttributeError):
            reason = "the judge's reply is not a chat completion"
        return Failure(reason, self.name)


def verdict(reply: str) -> float | Failure:
    """Return 1 for yes and 0 for no; a reply with both or neither is a Failure."""
    words = set(tokens(reply))
    if ("yes" in words) == ("no" in words):
        return Failure(
            f"the judge said neither yes nor no: {' '.join(reply.split())[:60]!r}", "judge"
        )
    return float("yes" in words)

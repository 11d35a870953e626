"""Measures beside the accuracies by day: accuracies by kind of question, likelihoods, and costs of
an answer. One text table that console and page draw.
"""

from __future__ import annotations

from sleep_rl.config.evaluation import CLOSED, GOLD, MEMORY_RETRIEVAL
from sleep_rl.contracts.records import DELETED, KINDS, NEVER_TOLD, UNANSWERABLE
from sleep_rl.journal.retention import ALL_DAYS, AnswerSource, Retention, SourceKind
from sleep_rl.journal.schema import Answers, Evaluation
from sleep_rl.journal.text import NO_VALUE

ANSWERABLE = tuple(kind for kind in KINDS if kind not in UNANSWERABLE)
NEVER = "never"
HEADS = {
    NEVER_TOLD: "never told",
    DELETED: "deleted",
    "old corrected": "old answer",
    "old deleted": "deleted answer",
    "nll": "NLL",
    "recovered": "recovered",
    "choice": "choice",
    "tokens": "prompt tokens",
    "seconds": "s/answer",
    "break_even": "break-even (answers)",
}
"""Column behind those of the kinds -> its head."""
DIGITS = {"nll": ".1f", "drift": ".3f"}
"""Column -> format of its value; others have two digits."""
MEANING = (
    "All days so far. Never told, deleted: share of answers that equal the untouched base's. Old "
    "and deleted answer: share that still gives what a changed or deleted document said. NLL: of "
    "the gold answer, in nats; recovered: share of what the document in context gains. Choice: "
    "gold answer likelier than the wrong ones. Break-even: answers after which reading this "
    "context took longer than the nights."
)


def table(retention: Retention) -> tuple[list[str], list[list[str]]]:
    """Return (head, rows) without columns that have no value; no rows without natural language."""
    rows = []
    for source in retention.sources():
        answers = retention.answers(source)
        if answers is not None:
            rows.append((source.label, answers.after, _cells(retention, source, answers)))
    names = [name for name in (*ANSWERABLE, *HEADS) if any(name in cells for _, _, cells in rows)]
    if not names:
        return [], []
    head = ["method", "after", *(HEADS.get(name, name) for name in names)]
    return head, [
        [label, after, *(cells.get(name, NO_VALUE) for name in names)]
        for label, after, cells in rows
    ]


def recovered(retention: Retention, nll: float | None) -> float | None:
    """Return (closed before - closed after) / (closed before - open), of NLL over all days."""
    before, opened = (_nll(retention.contexts.get(name)) for name in (CLOSED, GOLD))
    if None in (before, opened, nll) or before == opened:
        return None
    return (before - nll) / (before - opened)


def break_even(retention: Retention, answers: Answers) -> float | None:
    """Return the number of answers in this context that take as long as the nights and as many
    answers of the sleeping model; infinite where its answers take longer. None: unknown.
    """
    if "sleep" not in retention.methods or answers.answer_seconds is None:
        return None
    asleep = retention.last("sleep").answer_seconds
    if asleep is None:
        return None
    gain = answers.answer_seconds - asleep
    return retention.night_seconds / gain if gain > 0 else float("inf")


def scores(retention: Retention, answers: Answers) -> dict[str, float]:
    """Return column -> value of what was measured, without costs."""
    values: dict[str, float | None] = dict(answers.kinds or {})
    nll = _nll(answers)
    slept = isinstance(answers, Evaluation)
    if slept:
        values |= answers.as_base or {}
    values |= {f"old {which}": share for which, share in (answers.old_answers or {}).items()}
    values |= {
        "nll": nll,
        "recovered": recovered(retention, nll) if slept else None,
        "choice": (answers.choice or {}).get(ALL_DAYS),
    }
    return {name: value for name, value in values.items() if value is not None}


def _cells(retention: Retention, source: AnswerSource, answers: Answers) -> dict[str, str]:
    """Return column -> text of what was measured."""
    values = scores(retention, answers)
    cells = {name: format(v, DIGITS.get(name, ".2f")) for name, v in values.items()}
    costs = {"tokens": (answers.prompt_tokens, ",.0f"), "seconds": (answers.answer_seconds, ".2f")}
    cells |= {name: format(v, form) for name, (v, form) in costs.items() if v is not None}
    reads = source.kind is SourceKind.CONTEXT and source.name != MEMORY_RETRIEVAL
    questions = break_even(retention, answers) if reads else None
    if questions is not None:
        cells["break_even"] = NEVER if questions == float("inf") else f"{questions:,.0f}"
    return cells


def _nll(answers: Answers | None) -> float | None:
    return (answers.nll or {}).get(ALL_DAYS) if answers else None

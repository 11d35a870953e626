"""Read the user's questions about the documents."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sleep_rl.contracts.errors import InputError
from sleep_rl.contracts.records import KINDS, UNANSWERABLE
from sleep_rl.files import spelled
from sleep_rl.tasks.documents.reading import Unreadable, check_text, read_rows
from sleep_rl.tasks.documents.sources import QUESTIONS, DocumentQuestion

TEXTS = ("question", "answer", "document", "kind", "old_answer")
"""Fields of a row that hold a text."""


def questions(path: str | None, folder: str, where: str) -> tuple[DocumentQuestion, ...]:
    """Return the questions of a jsonl file with rows {"question", "answer"[, "document", "kind",
    "choices", "old_answer"]}. A question of kind never-told or deleted needs no answer.

    `path` None: the file is questions.jsonl in `folder`, and may be missing. `where` names the
    config key in errors. Raises InputError for a file that cannot be read and for a row of another
    form.
    """
    file = Path(spelled(os.path.expanduser(path or folder))) / ("" if path else QUESTIONS)
    if not path and not os.path.isfile(file):
        return ()
    try:
        return tuple(_question(number, row) for number, row in read_rows(file))
    except Unreadable as error:
        raise InputError(f"{where}: {file}: {error}") from None


def _question(number: int, row: Mapping[str, Any]) -> DocumentQuestion:
    """Return the question of line `number`. Raises Unreadable."""
    values = [row.get(name, "") for name in TEXTS]
    choices = row.get("choices", [])
    shown = json.dumps(row, ensure_ascii=False)[:80]
    if not all(isinstance(value, str) for value in values):
        raise Unreadable(f"line {number}: expected texts {_quoted(TEXTS)}, got {shown}")
    question, answer, document, kind, old_answer = (value.strip() for value in values)
    if kind and kind not in KINDS:
        raise Unreadable(f"line {number}: expected a kind of {', '.join(KINDS)}, got {kind[:40]!r}")
    if not question or not (answer or kind in UNANSWERABLE):
        raise Unreadable(
            f"line {number}: expected texts `question` and `answer` (and `document`), got {shown}"
        )
    if not isinstance(choices, list) or not all(isinstance(c, str) for c in choices):
        raise Unreadable(f"line {number}: expected a list of texts in `choices`, got {shown}")
    wrong = tuple(choice.strip() for choice in choices)
    if not all(wrong) or answer in wrong:
        raise Unreadable(
            f"line {number}: expected wrong answers in `choices`, none empty, got {shown}"
        )
    try:
        for text in (question, answer, document, old_answer, *wrong):
            check_text(text)
    except Unreadable as error:
        raise Unreadable(f"line {number}: {error}") from None
    return DocumentQuestion(question, answer, document, kind, wrong, old_answer)


def _quoted(names: tuple[str, ...]) -> str:
    return ", ".join(f"`{name}`" for name in names)

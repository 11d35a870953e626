"""Passages of SQuAD with their questions, from SEAL's json or SQuAD's format."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sleep_rl.contracts.errors import InputError, one_line
from sleep_rl.files import parsed, spelled

OPENER = "\nQuestion:"
MARKER = "\nAnswer:"
DREAM = "\nImplications:"


@dataclass(frozen=True)
class Passage:
    """A passage with its questions."""

    title: str
    context: str
    asked: tuple[tuple[str, str], ...]  # (question, gold answer)
    dreams: tuple[str, ...] = ()  # implications by another model, for training the small base

    @property
    def text(self) -> str:
        """Title and context, as in documents."""
        return f"{self.title}\n{self.context}"


def read_passages(path: str, where: str = "task.squad.path") -> list[Passage]:
    """Read each passage once, in order: from a json file in SEAL's form, a folder saved by
    `datasets`, or a hub dataset in SQuAD's form (its train split).

    Raises InputError, naming the config key `where`, for anything that cannot be read.
    """
    path = spelled(path)
    try:
        is_file = os.path.exists(path) and not os.path.isdir(path)
        rows = parsed(path) if is_file else _load_rows(path)
        if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
            raise ValueError("expected a list of passages, each an object")
        passages = _from_seal(rows) if rows and "questions" in rows[0] else _from_squad(rows)
        if not passages:
            raise ValueError("it has no passage with a question")
    except Exception as error:
        # Boundary: the loaders' errors have no common base class; all concern this input.
        raise InputError(
            f"{where}: a json of passages, a datasets folder or a hub name, got {path}: "
            f"{one_line(error)}"
        ) from error
    return passages


def _load_rows(path: str) -> list[dict]:
    import datasets  # takes seconds to import and is needed for this kind of input only

    if not os.path.isdir(path) and not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", path):
        raise FileNotFoundError("no such file")
    saved = os.path.isfile(Path(path) / "dataset_dict.json")
    loaded = datasets.load_from_disk(path) if saved else datasets.load_dataset(path)
    return list(loaded["train"])


def _from_seal(rows: list[dict]) -> list[Passage]:
    passages = []
    for i, row in enumerate(rows):
        where = f"passage {i}"
        questions = row.get("questions")
        dreams = row.get("completions") or []
        if not isinstance(questions, list) or not _is_texts(dreams):
            raise ValueError(f"{where}: expected lists of questions and completions")
        passages.append(
            Passage(
                _text(row, "title", where),
                _text(row, "context", where),
                tuple((_text(q, "question", where), _text(q, "answer", where)) for q in questions),
                tuple(dreams),
            )
        )
    return [passage for passage in passages if passage.context and passage.asked]


def _from_squad(rows: list[dict]) -> list[Passage]:
    """Group rows, one per question, by passage; a row without an answer is skipped."""
    asked: dict[tuple[str, str], list[tuple[str, str]]] = {}
    for i, row in enumerate(rows):
        where = f"row {i}"
        answers = row.get("answers")
        texts = answers.get("text") if isinstance(answers, dict) else None
        if not isinstance(texts, list):
            raise ValueError(
                f"{where}: expected answers with a list text, got {str(answers)[:60]!r}"
            )
        texts = [text for text in texts if not isinstance(text, str) or text.strip()]
        if not texts:
            continue
        passage = (_text(row, "title", where).replace("_", " "), _text(row, "context", where))
        question = _text(row, "question", where)
        answer = _text({"answer": texts[0]}, "answer", where)
        asked.setdefault(passage, []).append((question, answer))
    return [Passage(title, context, tuple(pairs)) for (title, context), pairs in asked.items()]


def _is_texts(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(item, str) for item in value)


def _text(row: Any, key: str, where: str) -> str:
    """Return the stripped text of a key. Raises ValueError if there is none."""
    value = row.get(key) if isinstance(row, dict) else row
    if not isinstance(row, dict) or not isinstance(value, str):
        raise ValueError(f"{where}: {key}: expected text, got {str(value)[:60]!r}")
    return value.strip()

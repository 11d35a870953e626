"""Styles of answers to questions about a document in context: one YAML file each, in `answers/` or
at a path in the config.

A file has these keys:
    instruction  sentence before the document
    examples     answered questions before it: {document, question, answer}
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from sleep_rl.contracts.errors import InputError
from sleep_rl.text.named_yaml import load_named

FOLDER = Path(__file__).parent / "answers"
REQUIRED = "instruction"
EXAMPLE = ("document", "question", "answer")


@dataclass(frozen=True)
class AnswerStyle:
    """An instruction and answered examples, as (document, question, answer)."""

    instruction: str
    examples: tuple[tuple[str, str, str], ...] = ()


AT_LENGTH = AnswerStyle("Read this document and answer the question.")
"""For answers that may be longer than a sentence."""


@cache
def load_style(name: str) -> AnswerStyle:
    """Return the style with a name in `answers/`, or at the path of a YAML file. Raises
    InputError.
    """
    file, data = load_named(FOLDER, name, "generation.answers", "style of answers")
    return _checked(file, data)


def _checked(file: Path, data: Any) -> AnswerStyle:
    if not isinstance(data, dict) or not {REQUIRED} <= data.keys() <= {REQUIRED, "examples"}:
        raise InputError(f"{file}: instruction and, if wanted, examples, got {_keys(data)}")
    instruction = str(data[REQUIRED] or "").strip()
    if not instruction:
        raise InputError(f"{file}: instruction is a sentence, got an empty one")
    examples = data.get("examples") or ()
    if not isinstance(examples, list | tuple):
        raise InputError(f"{file}: examples is a list, got {examples!r:.60}")
    return AnswerStyle(instruction, tuple(_example(file, example) for example in examples))


def _example(file: Path, example: Any) -> tuple[str, str, str]:
    if not isinstance(example, dict) or set(example) != set(EXAMPLE):
        raise InputError(f"{file}: an example has {', '.join(EXAMPLE)}, got {_keys(example)}")
    document, question, answer = (str(example[part]).strip() for part in EXAMPLE)
    if not (document and question and answer):
        raise InputError(f"{file}: an example has a text in each of its keys, got {example!r:.80}")
    return document, question, answer


def _keys(data: Any) -> str:
    return ", ".join(map(str, data)) if isinstance(data, dict) else repr(data)[:60]


SENTENCE = load_style("sentence")
"""Style of evaluation, whatever a night is written in."""

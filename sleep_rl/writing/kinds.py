"""Kinds of writing about a document: one YAML file each, in `kinds/` or at a path in the config.

A file has these keys:
    about        unit of a question: sentence, phrase (a name, a number, a noun phrase or the end of
                 a sentence), beginning (of a sentence), names (two names of one document), document
    instruction  prompt for the model to generate the question, with the fields of its unit
    examples     few-shot examples of it: {fields, question}
    temperature  of the question's tokens; without it generation.temperature
    questions    in place of both: fixed questions with fields, used in turn
    rename       whether names in the question are replaced by ones that are in no document
    answer       source of the answer: document (the model, with the document in context), base (the
                 model without it), given (the unit itself: the phrase, or the rest of the sentence)
    phrase_answers  whether the phrase alone is learned as an answer as well, with about: phrase; it
                 replaces an answer of the model that is dropped, if it is likelier than other
                 phrases. `questions` of such a kind must have the phrase as their answer
    short        whether the answer is a few words, which are sampled twice
Fields: {title} and {text} of the document; {sentence}; {phrase} with {sentence}, with {gap}, the
sentence without the phrase, and with {asked}, the sentence as a question for it; {beginning};
{first} and {second}.
"""

from __future__ import annotations

import string
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from sleep_rl.contracts.errors import InputError, one_line
from sleep_rl.text.named_yaml import load_named

FOLDER = Path(__file__).parent / "kinds"
KEYS = {
    "about",
    "instruction",
    "examples",
    "temperature",
    "questions",
    "phrase_answers",
    "rename",
    "answer",
    "short",
}
FIELDS = {
    "sentence": {"title", "text", "sentence"},
    "phrase": {"title", "text", "sentence", "phrase", "gap", "asked"},
    "beginning": {"title", "text", "beginning"},
    "names": {"title", "text", "first", "second"},
    "document": {"title", "text"},
}
"""Unit of a question -> fields that its texts may use."""
MOST_TEMPERATURE = 2
ANSWERS = ("document", "base", "given")


@dataclass(frozen=True)
class Kind:
    """One kind of writing; see the module for the fields."""

    name: str
    about: str
    instruction: str = ""
    examples: tuple[tuple[str, str], ...] = ()  # (instruction with its fields, question)
    questions: tuple[str, ...] = ()
    rename: bool = False
    answer: str = "document"
    short: bool = False
    temperature: float | None = None
    phrase_answers: bool = False


@cache
def load_kind(name: str) -> Kind:
    """Return the kind with a name in `kinds/`, or at the path of a YAML file. Raises InputError."""
    file, data = load_named(FOLDER, name, "generation.kinds", "kind of writing")
    return _checked(file, data)


def _checked(file: Path, data: Any) -> Kind:
    if not isinstance(data, dict) or not data.keys() <= KEYS:
        extra = sorted(map(str, data.keys() - KEYS)) if isinstance(data, dict) else data
        raise InputError(f"{file}: keys {', '.join(sorted(KEYS))} are allowed, got {extra!r}")
    about = data.get("about")
    answer = data.get("answer", "document")
    if about not in FIELDS:
        raise InputError(f"{file}: about is one of {', '.join(FIELDS)}, got {about!r}")
    given = {"beginning": ("given",), "phrase": ANSWERS}.get(about, ANSWERS[:2])
    if answer not in given:
        raise InputError(
            f"{file}: with about: {about} answer is one of {', '.join(given)}, got {answer!r}"
        )
    if bool(data.get("instruction")) == bool(data.get("questions")):
        raise InputError(f"{file}: either instruction or questions, got both or none")
    instruction = str(data.get("instruction") or "").strip()
    examples = []
    try:
        for example in data.get("examples") or ():
            asked = instruction.format(**example["fields"])
            examples.append((asked, str(example["question"])))
    except (KeyError, TypeError, ValueError, IndexError) as error:
        raise InputError(
            f"{file}: examples of {{fields, question}} that fit the instruction, got "
            f"{one_line(error)}"
        ) from None
    temperature = data.get("temperature")
    if temperature is not None and not (
        isinstance(temperature, int | float) and 0 <= temperature <= MOST_TEMPERATURE
    ):
        raise InputError(
            f"{file}: temperature is from 0 to {MOST_TEMPERATURE}, got {temperature!r}"
        )
    questions = tuple(map(str, data.get("questions") or ()))
    for text in (instruction, *questions):
        _check_fields(file, text, FIELDS[about])
    return Kind(
        file.stem,
        about,
        instruction,
        tuple(examples),
        questions,
        bool(data.get("rename")),
        answer,
        bool(data.get("short")),
        temperature,
        bool(data.get("phrase_answers")) and about == "phrase",
    )


def _check_fields(file: Path, text: str, allowed: set[str]) -> None:
    try:
        used = {field for _, field, _, _ in string.Formatter().parse(text) if field is not None}
    except ValueError as error:
        raise InputError(f"{file}: {text!r:.60}: {error}") from None
    if not used <= allowed:
        raise InputError(
            f"{file}: fields {', '.join(sorted(allowed))} are allowed, got "
            f"{', '.join(sorted(used - allowed))}"
        )

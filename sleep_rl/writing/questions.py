"""Generated questions: parse, check, and rename to a neighbour."""

from __future__ import annotations

import random
import re
from collections.abc import Sequence

from sleep_rl.tasks.grading import RECALL_THRESHOLD, gold_recall
from sleep_rl.text.forms import END_OF_SENTENCE
from sleep_rl.writing.units import Unit, names

SENTENCE_OR_LINE = re.compile(rf"{END_OF_SENTENCE.pattern}|(?=\n)")
LABEL = re.compile(r"^(?:\s*(?:\d+[.)]|[-*]|(?:question|q)\s*\d*\s*:)\s*)+", re.IGNORECASE)
FEWEST_WORDS = 3
MOST_WORDS = 40
SYLLABLES = (
    ("Bor", "Cal", "Dru", "Fen", "Gal", "Hes", "Jor", "Kel", "Lun", "Mer", "Nor", "Pel", "Ras"),
    ("da", "be", "cki", "do", "fa", "gle", "mi", "na", "ro", "sta", "tho", "va", "wi"),
    ("burg", "dale", "ford", "gren", "holm", "lin", "mont", "nik", "quist", "sen", "stad", "wick"),
)
"""Syllables of random names: first, middle and last."""


def read_question(text: str, *, statement: bool = False) -> str | None:
    """Return the first line of a generated text if it is one question, else None.

    `statement`: an instruction is allowed as well.
    """
    lines = text.strip().split("\n")
    line = LABEL.sub("", lines[0]).strip().strip('"')
    ends = ("?", ".") if statement else ("?",)
    if not line.endswith(ends) or line.count("?") > 1:
        return None
    if not FEWEST_WORDS <= len(line.split()) <= MOST_WORDS:
        return None
    return line


def names_something(question: str, unit: Unit) -> bool:
    """Return whether a question has a name, number or rare word of its source.

    A question such as "When was it founded?" has different answers for different documents.
    """
    source = f"{unit.fields['title']} {unit.source}"
    asked = set(names(f"{question} x x x x")) | set(re.findall(r"\d{2,}", question))
    return any(part.removesuffix("'s") in source for part in asked)


def said_phrases(question: str, answer: str, phrases: Sequence[str]) -> list[str]:
    """Return those of `phrases` that an answer says and the question does not."""
    said = question.lower()
    wanted = [phrase for phrase in phrases if phrase.lower() not in said]
    return [phrase for phrase in wanted if gold_recall(phrase, answer) >= RECALL_THRESHOLD]


def mentions_document(answer: str, source: str) -> bool:
    """Return whether an answer speaks of "the document", and its source does not: without the
    document in context nothing is stated in it.
    """
    return "document" in answer.lower() and "document" not in source.lower()


def first_sentence(text: str) -> int:
    """Return the position of the end of the first sentence or line of a text."""
    start = len(text) - len(text.lstrip())
    match = SENTENCE_OR_LINE.search(text, start)
    return match.end() if match else len(text)


def normalised(question: str) -> str:
    """Return the words of a question in lower case, for the comparison of duplicates."""
    return " ".join(re.findall(r"\w+", question.lower()))


def rename(question: str, unit: Unit, rng: random.Random) -> str | None:
    """Return the question with random names in place of the unit's; None if it has none of them."""
    source = f"{unit.fields['title']} {unit.fields['text']}"
    found = [name for name in names(f"x {question} x x x x") if name in source]
    for name in sorted(found, key=len, reverse=True):
        other = " ".join(_random_name(rng) for _ in name.split())
        question = question.replace(name, other)
    return question if found else None


def _random_name(rng: random.Random) -> str:
    return "".join(rng.choice(part) for part in SYLLABLES)

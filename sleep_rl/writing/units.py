"""What one question is about: a sentence of a document, its beginning, two names, all of it."""

from __future__ import annotations

import random
import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

from sleep_rl.contracts.records import Document

SENTENCE_END = re.compile(r"(?<=[.!?])[\"')\]]*\s+(?=[A-Z0-9\"'(])")
NAME = re.compile(r"\b[A-Z][\w'-]+(?: (?:of |the |de |von )?[A-Z][\w'-]+)*")
CUTS = (0.35, 0.55, 0.75)
"""Shares of a sentence's words after which it is cut (real documents, 135M model)."""
MIN_WORDS = 5  # of a sentence that is asked about
MOST_PAIRS = 64  # of names of one document


@dataclass(frozen=True)
class Unit:
    """One thing to ask about; `rest` is the given answer, empty where the model answers."""

    document: Document
    fields: dict[str, str]
    rest: str = ""

    @property
    def source(self) -> str:
        """The text that a question must name something of."""
        return self.fields.get("sentence") or self.fields["text"]


def units(about: str, document: Document) -> list[Unit]:
    """Return all units of a document, in order. `about`: see sleep_rl.writing.kinds."""
    body = body_of(document)
    fields = {"title": document.title or first_words(body), "text": body}
    if about == "document":
        return [Unit(document, fields)]
    if about == "names":
        pairs = combinations(names(body), 2)
        return [
            Unit(document, {**fields, "first": a, "second": b})
            for _, (a, b) in zip(range(MOST_PAIRS), pairs, strict=False)
        ]
    found = sentences(body)
    if about == "sentence":
        return [Unit(document, {**fields, "sentence": sentence}) for sentence in found]
    cut = [cut_at(sentence, share) for sentence in found for share in CUTS]
    return [
        Unit(document, {**fields, "beginning": beginning}, rest)
        for beginning, rest in dict.fromkeys(cut)
    ]


def draw(units: Sequence[Unit], per_unit: float, rng: random.Random) -> list[Unit]:
    """Return each unit `per_unit` times on average, in the order of the units."""
    drawn = []
    for unit in units:
        count = int(per_unit) + (rng.random() < per_unit % 1)
        drawn += [unit] * count
    return drawn


def body_of(document: Document) -> str:
    """Return a document's text without its header line and without headings."""
    lines = document.text.strip().split("\n")
    if document.title and lines[0].startswith(document.title):
        lines = lines[1:]
    return "\n".join(line for line in lines if not line.startswith("#")).strip()


def sentences(text: str) -> list[str]:
    """Return the sentences of a text that have at least MIN_WORDS words."""
    found = []
    for paragraph in text.split("\n"):
        found += SENTENCE_END.split(paragraph.strip(" -*>|\t"))
    return [sentence for sentence in found if len(sentence.split()) >= MIN_WORDS]


def names(text: str) -> list[str]:
    """Return the names in a text, each once: capitalised words that do not begin a sentence, and
    those of two words or more.
    """
    found: dict[str, None] = {}
    for sentence in sentences(text):
        for match in NAME.finditer(sentence):
            name = match.group().removeprefix("The ")
            if match.start() or " " in name:
                found[name] = None
    return list(found)


def cut_at(sentence: str, share: float) -> tuple[str, str]:
    """Return (beginning, rest) of a sentence, cut between two words."""
    words = sentence.split()
    at = min(max(round(share * len(words)), 2), len(words) - 1)
    return " ".join(words[:at]), " ".join(words[at:])


def first_words(text: str) -> str:
    """Return a title for a text that has none."""
    return " ".join(text.split()[:6])

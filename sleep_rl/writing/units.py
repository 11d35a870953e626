"""Units of a document that questions are about: a sentence, a phrase or the beginning of one, two
names, all of it.
"""

from __future__ import annotations

import random
import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

from sleep_rl.contracts.records import Document

BETWEEN_SENTENCES = re.compile(r"(?<=[.!?])[\"')\]]*\s+(?=[A-Z0-9\"'(])")
NAME = re.compile(r"\b[A-Z][\w'-]+(?: (?:of |de |von )?[A-Z][\w'-]+)*")
FUNCTION_WORDS = (
    "a|after|an|and|are|as|at|be|been|before|behind|by|can|for|from|had|has|have|he|her|his|in|"
    "into|is|it|its|may|must|near|no|not|of|off|on|or|over|she|since|so|than|that|the|their|them|"
    "then|they|this|through|to|under|until|up|was|were|when|which|while|who|whose|will|with"
)
"""English words that begin no name and end a noun phrase."""
LEADING = re.compile(rf"^(?:(?:{FUNCTION_WORDS}) )+", re.IGNORECASE)
NOUN = rf"(?!(?:{FUNCTION_WORDS})\b)[a-z][\w-]*"
NOUN_PHRASE = re.compile(
    rf"\b(?:[Aa]n?|[Tt]he|[Ee]very|[Ee]ach|[Aa]ll|its|his|her|their) ({NOUN}(?: {NOUN}){{0,2}})"
    rf"(?=[,.;:!?)]|$| (?:{FUNCTION_WORDS})\b)"
)
"""An article or pronoun, and up to three words behind which a function word or the end follows."""
NO_UNIT = "a|an|and|at|by|for|from|in|is|of|on|or|the|to|was|with"
NUMBER = re.compile(rf"\b\d[\d.,:]*\d?(?: (?!(?:{NO_UNIT})\b)[a-z]+)?")
CUTS = (0.35, 0.55, 0.75)
"""Shares of a sentence's words after which it is split (tuned on real documents, 135M model)."""
END = " .!?\"')]"
"""Characters at the end of a sentence that belong to none of its phrases."""
GAP = "____"
"""In the place of a phrase that is asked for."""
YEAR = re.compile(r"1\d\d\d|20\d\d")
MIN_WORDS = 5  # of a sentence that is asked about
MOST_PAIRS = 64  # of names of one document


@dataclass(frozen=True)
class Unit:
    """A unit that a question is about."""

    document: Document
    fields: dict[str, str]
    rest: str = ""  # the part of a sentence that is a given answer
    # What may answer a question about a phrase: it, or another name, number or end of its sentence,
    # since a small model asks for another part of the fact, too.
    answers: tuple[str, ...] = ()

    @property
    def source(self) -> str:
        """Text of which a question must name something."""
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
    if about == "phrase":
        return [
            Unit(document, {**fields, **phrase_fields(sentence, phrase)}, phrase)
            for sentence in found
            for phrase in phrases(sentence)
        ]
    if about == "sentence":
        return [Unit(document, {**fields, "sentence": sentence}) for sentence in found]
    cut = [cut_at(sentence, share) for sentence in found for share in CUTS]
    return [
        Unit(document, {**fields, "beginning": beginning}, rest)
        for beginning, rest in dict.fromkeys(cut)
    ]


def phrase_fields(sentence: str, phrase: str) -> dict[str, str]:
    """Return the fields of a phrase of a sentence; `gap` is the sentence without it, `asked` has an
    interrogative in its place, and no end.
    """
    asked = sentence.replace(phrase, _interrogative(phrase), 1).rstrip(" .!?\"')")
    return {
        "sentence": sentence,
        "phrase": phrase,
        "gap": sentence.replace(phrase, GAP, 1),
        "asked": asked[:1].upper() + asked[1:],
    }


def _interrogative(phrase: str) -> str:
    """Return what stands for a phrase in a question."""
    number = NUMBER.fullmatch(phrase)
    if number and YEAR.fullmatch(phrase):
        return "which year"
    if number:
        return f"how many {phrase.partition(' ')[2]}".strip()
    return "who or what" if phrase[:1].isupper() else "what"


def draw(units: Sequence[Unit], per_unit: float, rng: random.Random) -> list[Unit]:
    """Return each unit `per_unit` times in expectation, in order."""
    drawn = []
    for unit in units:
        count = int(per_unit) + (rng.random() < per_unit % 1)
        drawn += [unit] * count
    return drawn


def body_of(document: Document) -> str:
    """Return a document's text without title line and headings."""
    lines = document.text.strip().split("\n")
    if document.title and lines[0].startswith(document.title):
        lines = lines[1:]
    return "\n".join(line for line in lines if not line.startswith("#")).strip()


def sentences(text: str) -> list[str]:
    """Return the sentences of a text with at least MIN_WORDS words."""
    found = []
    for paragraph in text.split("\n"):
        found += BETWEEN_SENTENCES.split(paragraph.strip(" -*>|\t"))
    return [sentence for sentence in found if len(sentence.split()) >= MIN_WORDS]


def names(text: str) -> list[str]:
    """Return the distinct names in a text: capitalised words inside a sentence, and any of two or
    more words.
    """
    found: dict[str, None] = {}
    for sentence in sentences(text):
        for match in NAME.finditer(sentence):
            name = match.group().removeprefix("The ")
            if match.start() == 0:
                name = LEADING.sub("", name)
            if name != match.group() or match.start() or " " in name:
                found[name] = None
    return list(found)


def phrases(sentence: str) -> list[str]:
    """Return what a sentence can be asked for: its names, its numbers with the word after them, its
    end, and its noun phrases.
    """
    found = specific_phrases(sentence)
    for match in NOUN_PHRASE.finditer(sentence.rstrip(END)):
        if not any(match[1] in part or part in match[1] for part in found):
            found.append(match[1])
    return found


def specific_phrases(sentence: str) -> list[str]:
    """Return the phrases of a sentence without its noun phrases, which say less."""
    body = sentence.rstrip(END)
    found = dict.fromkeys(names(sentence))
    numbers = [match.group() for match in NUMBER.finditer(body)]
    for number in numbers:
        if not any(number in name for name in found):
            found[number] = None
    end = cut_at(body, CUTS[-1])[1]
    if not any(part in end or end in part for part in found):
        found[end] = None
    return list(found)


def cut_at(sentence: str, share: float) -> tuple[str, str]:
    """Split a sentence between two words into (beginning, rest)."""
    words = sentence.split()
    at = min(max(round(share * len(words)), 2), len(words) - 1)
    return " ".join(words[:at]), " ".join(words[at:])


def first_words(text: str) -> str:
    """Return the first words of a text, as a title for a text without one."""
    return " ".join(text.split()[:6])

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
BEFORE_NAME = (
    "a|about|after|an|and|as|at|before|behind|below|beside|between|by|during|each|every|for|from|"
    "he|her|his|in|into|it|its|near|of|on|or|over|she|since|so|than|that|the|their|then|they|this|"
    "through|to|under|until|when|where|which|while|who|whose|with"
)
"""English words at the beginning of a sentence that are no part of a name behind them."""
VERBS = "are|can|had|has|have|is|may|must|was|were|will"
OTHER_FUNCTION_WORDS = (
    "above|across|all|along|among|any|around|be|been|far|no|not|off|them|up|without"
)
FUNCTION_WORDS = f"{BEFORE_NAME}|{VERBS}|{OTHER_FUNCTION_WORDS}"
LEADING = re.compile(rf"^(?:(?:{BEFORE_NAME}) )+", re.IGNORECASE)
NOUN = rf"(?!(?:{FUNCTION_WORDS})\b)[a-z][\w-]*"
DETERMINER = "[Aa]n?|[Tt]he|[Ee]very|[Ee]ach|[Aa]ll|[Ii]ts|[Hh]is|[Hh]er|[Tt]heir"
BEHIND_NOUNS = rf"(?=[,.;:!?)]|$| (?:of|{VERBS})\b)"
NOUN_PHRASE = re.compile(
    rf"\b(?:{DETERMINER}) (?:({NOUN}(?: {NOUN}){{1,2}}){BEHIND_NOUNS}"
    rf"|({NOUN})(?=[,.;:!?)]|$| (?:{FUNCTION_WORDS})\b))"
)
"""An article or pronoun, then two or three words up to "of", a verb or the end, since other words
of a sentence are verbs, too; or one word up to any function word.
"""
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
            _phrase_unit(document, fields, sentence, phrase)
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


def _phrase_unit(document: Document, fields: dict[str, str], sentence: str, phrase: str) -> Unit:
    answers = dict.fromkeys([phrase, *specific_phrases(sentence)])
    return Unit(document, {**fields, **phrase_fields(sentence, phrase)}, phrase, tuple(answers))


def phrase_fields(sentence: str, phrase: str) -> dict[str, str]:
    """Return the fields of a phrase of a sentence; `gap` is the sentence without it, `asked` has an
    interrogative in its place, and no end.
    """
    asked = _replaced(sentence, phrase, _interrogative(phrase)).rstrip(END)
    return {
        "sentence": sentence,
        "phrase": phrase,
        "gap": _replaced(sentence, phrase, GAP),
        "asked": asked[:1].upper() + asked[1:],
    }


def _replaced(sentence: str, phrase: str, by: str) -> str:
    """Return a sentence with something in the place of a phrase, which is no part of a word."""
    return re.sub(rf"(?<!\w){re.escape(phrase)}(?!\w)", lambda _: by, sentence, count=1)


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
        nouns = match[1] or match[2]
        if not any(nouns in part or part in nouns for part in found):
            found.append(nouns)
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

"""Questions to write about documents: one item each, planned before anything is generated."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from sleep_rl.contracts.records import Document, Ids
from sleep_rl.text.answer_style import AT_LENGTH, AnswerStyle
from sleep_rl.text.codec import PromptCodec
from sleep_rl.writing.kinds import Kind, load_kind
from sleep_rl.writing.questions import said_phrases
from sleep_rl.writing.units import Unit, draw, units

COMMON = 0.1
"""A phrase that a larger share of all sentences has is not asked for: it identifies no sentence."""
FEW = 3
"""Sentences that may have the same phrase in any case."""


@dataclass
class Counts:
    """Counts of requested and kept texts per kind, and of dropped texts per reason."""

    kinds: dict[str, list[int]] = field(default_factory=dict)  # kind -> [requested, kept]
    dropped: Counter = field(default_factory=Counter)  # reason -> texts
    # kind -> questions that the phrase alone answers, since their own answer was dropped
    by_phrase: Counter = field(default_factory=Counter)
    ends: Counter = field(default_factory=Counter)  # how an answer ended -> answers
    # superseded document -> [prompts about it, those with a new answer]
    changed: dict[str, list[int]] = field(default_factory=dict)
    deleted: dict[str, list[int]] = field(default_factory=dict)

    def journal_fields(self) -> dict[str, Any]:
        """Return the fields of a `written` record."""
        dropped = {reason: count for reason, count in self.dropped.items() if count}
        unlearned = {"changed": self.changed, "deleted": self.deleted}
        unlearned = {what: documents for what, documents in unlearned.items() if documents}
        counts = {
            "kinds": self.kinds,
            "by_phrase": dict(self.by_phrase),
            "dropped": dropped,
            "ends": dict(self.ends),
        }
        return counts | unlearned


@dataclass(frozen=True)
class Item:
    """A question about a unit, with its answer once it has one."""

    kind: Kind
    unit: Unit
    seed: int
    question: str = ""
    answer_T: Ids = ()
    logprob: float = 0.0  # of the answer under the teacher with the document, in nats
    given: bool = False  # whether the answer is not sampled but a part of the sentence

    def given_answer(self, answer_T: Ids) -> Item:
        """Return the item with an answer that is not sampled but a part of the sentence."""
        return replace(self, answer_T=answer_T, given=True)

    def style(self, codec: PromptCodec) -> AnswerStyle:
        """Return the style of its answer with the document in context."""
        at_length = self.kind.answer == "document" and not self.kind.short
        return AT_LENGTH if at_length else codec.style


def planned_items(kinds: dict, documents: Sequence[Document], rng: random.Random) -> list[Item]:
    """Return all items to generate, without questions."""
    items = []
    for name, per_unit in kinds.items():
        kind = load_kind(name)
        for unit in draw(_units(kind, documents), float(per_unit or 0), rng):
            items.append(Item(kind, unit, rng.getrandbits(31)))
    return items


def _units(kind: Kind, documents: Sequence[Document]) -> list[Unit]:
    """Return the units of all documents, without phrases that too many sentences have."""
    found = [unit for document in documents for unit in units(kind.about, document)]
    if kind.about != "phrase":
        return found
    sentences = {unit.fields["sentence"] for unit in found}
    most = max(FEW, COMMON * len(sentences))
    phrases = {(unit.fields["sentence"], unit.fields["phrase"]) for unit in found}
    counts = Counter(phrase for _, phrase in phrases)
    common = {phrase for phrase, count in counts.items() if count > most}
    return [_without(unit, common) for unit in found if unit.fields["phrase"] not in common]


def _without(unit: Unit, common: set[str]) -> Unit:
    return replace(unit, answers=tuple(phrase for phrase in unit.answers if phrase not in common))


def unsaid_items(
    codec: PromptCodec, planned: list[Item], kept: list[Item], rng: random.Random
) -> list[Item]:
    """Return the kinds and phrases of `planned` again, each once, whose phrase the model was asked
    for and no kept answer says.
    """
    said = {
        (item.unit.fields["sentence"], phrase)
        for item in kept
        if item.kind.about == "phrase" and item.kind.answer == "document"
        for phrase in said_phrases(item.question, codec.text(item.answer_T), item.unit.answers)
    }
    again = {}
    for item in planned:
        if item.kind.about != "phrase" or item.kind.answer != "document":
            continue
        key = (item.unit.fields["sentence"], item.unit.fields["phrase"])
        if key not in said:
            again[(item.kind.name, item.unit.document.id, *key)] = item
    return [Item(item.kind, item.unit, rng.getrandbits(31)) for item in again.values()]

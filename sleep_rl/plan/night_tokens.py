"""Tokens of a night in natural language: how much is read, written and learned.

Nothing is tokenized, so that a plan needs no tokenizer: lengths are estimated from the words of the
day's documents, and from the limits of generated texts. The shares of these limits, and of what
passes each filter, are those of SmolLM2-135M-Instruct over configs/example, CHOSEN roughly.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass

from sleep_rl.config.schema import Config
from sleep_rl.contracts.roles import Task
from sleep_rl.night.about_documents import QUESTION_TOKENS
from sleep_rl.night.answer_filters import SHORT_TOKENS
from sleep_rl.night.items import planned_items
from sleep_rl.night.phrase_answers import MOST_CANDIDATES
from sleep_rl.night.plan import Shares
from sleep_rl.writing.kinds import Kind
from sleep_rl.writing.units import Unit

TOKENS_PER_WORD = 1.5
FORM_TOKENS = 8  # of a chat template around question and answer
QUESTION_SHARE = 1 / 3  # of its limit that a question about a sentence takes
TURN_SHARE = 2 / 3  # of the same limit that a user's turn of self-replay takes
WITH_QUESTION = 0.6  # share of the texts about sentences that are questions, and are answered
ASKED_AGAIN = 0.3  # share of them that are answered a second time
CHOSEN = 0.3  # share of the generated ones whose own answer is dropped, so phrases are compared
RETRIED = 0.2  # share of the questions about phrases that are asked once more
READINGS = 3  # of a document by an engine: for answers, second answers and log-probabilities


@dataclass(frozen=True)
class NightTokens:
    """Tokens of one night."""

    read: float  # by the engines, in prompts
    written: float  # by the engines
    taught: float  # through the learner's teacher, which keeps what it computed for the night
    trained: float  # through the student, forward and backward
    once: float = 0.0  # of the distinct sequences that are learned
    row: float = 0.0  # of the student's rows on average


def planned_units(config: Config, task: Task) -> Iterator[tuple[Kind, Unit]]:
    """Yield what is written about the newest day's documents, before anything is dropped."""
    rng = random.Random(config.run.seed)
    planned = planned_items(config.generation.kinds, task.days()[-1].documents, rng)
    yield from ((item.kind, item.unit) for item in planned)
    asked = [item for item in planned if item.kind.instruction and item.kind.about == "phrase"]
    again = round(RETRIED * len(asked))
    yield from ((item.kind, item.unit) for item in rng.choices(asked, k=again) if asked)


def night_tokens(
    config: Config, task: Task, rows: Shares, without_document: int, completions: int
) -> NightTokens:
    """Return the tokens of a night on the newest day's documents.

    `without_document`: sequences without a document; `completions`: samples of the student.
    """
    documents = task.days()[-1].documents
    longest = task.max_new_tokens
    items = list(planned_units(config, task)) if config.replay.share < 1 else []
    about = _about_documents(items, longest)
    document = sum(words_of(d.text) for d in documents)
    turn = TURN_SHARE * QUESTION_TOKENS
    steps = config.sleep.steps
    replay_rows = rows.groups_replay * config.imitation.group_size + rows.teacher_replay
    share = replay_rows / config.sleep.batch
    row = (1 - share) * about.row + share * (turn + longest + FORM_TOKENS)
    reading = config.reading.rows * (about.row + document / max(len(documents), 1))
    distinct = min(steps * (rows.teacher_new + rows.teacher_replay), len(items) + without_document)
    return NightTokens(
        read=READINGS * document + about.read,
        written=about.written + (turn + longest) * without_document + completions * row / 2,
        taught=document + (distinct + completions) * row,
        once=document + (distinct + completions) * row,
        trained=steps * (config.sleep.batch * row + reading),
        row=row,
    )


def _about_documents(items: list[tuple[Kind, Unit]], longest: int) -> NightTokens:
    """Return what engines read and write for the items, without their documents, and the mean
    tokens of a row.

    An engine reads a prompt for each written question; the question with each answer, with two
    answers for their log-probabilities, and with each phrase that is compared.
    """
    read = written = rows = 0.0
    for kind, unit in items:
        question, answer = _lengths(kind, unit, longest)
        answered = WITH_QUESTION if kind.instruction else 1.0
        again = ASKED_AGAIN if kind.short else 0.0
        rows += question + answer + FORM_TOKENS
        written += question if kind.instruction else 0.0
        if kind.answer != "given":
            written += (answered + again) * answer
        read += _prompt(kind, unit) + (answered + again) * question
        read += 2 * answered * (question + answer)
        if kind.phrase_answers and kind.instruction:
            read += CHOSEN * answered * MOST_CANDIDATES * (question + words_of(unit.rest))
    return NightTokens(read, written, taught=0, trained=0, row=rows / max(len(items), 1))


def words_of(text: str) -> float:
    """Return the estimated tokens of a text."""
    return TOKENS_PER_WORD * len(text.split())


def _lengths(kind: Kind, unit: Unit, longest: int) -> tuple[float, float]:
    """Return the tokens of (a question about the unit, its answer)."""
    if kind.instruction:
        question = QUESTION_SHARE * QUESTION_TOKENS
    else:
        question = words_of(kind.questions[0].format(**unit.fields))
    if kind.answer == "given":
        return question, words_of(unit.rest)
    if kind.answer == "base":
        return question, 2 * SHORT_TOKENS
    return question, SHORT_TOKENS if kind.short else longest


def _prompt(kind: Kind, unit: Unit) -> float:
    """Return the tokens of the unit's fields in the prompt for a question. What is the same in all
    prompts of a kind is cached by the engine.
    """
    filled = words_of(kind.instruction.format(**unit.fields))
    return max(filled - words_of(kind.instruction), 0.0)

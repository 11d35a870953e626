"""A night of SmolLM2 over configs/example: its config, the rows of its steps and its prompts.

Rows are the same in every run, and need no engine: questions about the phrases of each piece of a
document, answered with the sentence that has the phrase.
"""

from __future__ import annotations

import random
from dataclasses import replace
from functools import cached_property
from itertools import pairwise

from sleep_rl.config.loader import load
from sleep_rl.config.schema import Config
from sleep_rl.contracts.records import Document, TrainingRow
from sleep_rl.model import packaged_base
from sleep_rl.model.shape import Shape, base_shape
from sleep_rl.night.about_documents import QUESTION_TOKENS
from sleep_rl.night.items import Item, planned_items
from sleep_rl.night.plan import CONTEXT, Shares, fitted, plan_consolidation
from sleep_rl.night.rows import teacher_rows
from sleep_rl.night.sequences import Origin, TeacherSequence, question_sequence
from sleep_rl.tasks.registry import make_task
from sleep_rl.text.codec import PromptCodec
from sleep_rl.writing.units import units

EXAMPLE = (
    "task.documents.path=configs/example/day1",
    "task.documents.known=configs/example/known.jsonl",
)
WORDINGS = (
    'What does "{title}" say about {phrase}?',
    "Tell me about {phrase}.",
    "What do you know about {phrase}?",
    "Which facts are there about {phrase}?",
)
PER_DOCUMENT = 12
"""Sequences about a piece of a document, as many as configs/documents.yaml has written."""
UNCACHED = ("model.memory_layers=all",)
"""Keys of a night in which no layer is computed once per sequence."""


class SmolNight:
    """The night of configs/documents.yaml with `overrides`.

    `uncached`: memory in every layer, and documents that are read anew with every row.
    """

    def __init__(self, overrides: list[str], *, uncached: bool = False):
        added = UNCACHED if uncached else ()
        self.config: Config = load("configs/documents.yaml", [*EXAMPLE, *added, *overrides])
        self.uncached = uncached
        self.task = make_task(self.config)

    @property
    def shape(self) -> Shape:
        """Sizes of the base model."""
        return base_shape(self.config)

    @cached_property
    def base(self) -> str:
        """Path of the base model, dequantised on first use."""
        return packaged_base.resolve(self.config.model.base, self.config.run.cache)

    @cached_property
    def codec(self) -> PromptCodec:
        """Form of the texts."""
        from sleep_rl.text.loading import load_codec

        return load_codec(self.task, self.base, self.config)

    def batches(self, steps: int) -> list[list[TrainingRow]]:
        """Return the rows of `steps` optimizer steps of a first night, all of distinct sequences,
        with the question in the prompt: the loss is on the answers.
        """
        from learners.batch import without_prompt_loss

        plan = plan_consolidation(self.config, 1, CONTEXT, steps, self.task.days()[0])
        plan = fitted(plan, self.config, new=self.config.sleep.batch * steps, rehearsed=0)
        shares = Shares.of(self.config, plan.replay_share, plan.on_policy)
        rng = random.Random(0)
        new = self._about_documents(shares.teacher_new * steps)
        rng.shuffle(new)
        self_replay = self._self_replay(shares.teacher_replay * steps)
        batches = []
        for step in range(steps):
            rows = new[step * shares.teacher_new : (step + 1) * shares.teacher_new]
            rows += self_replay[step * shares.teacher_replay : (step + 1) * shares.teacher_replay]
            rows = [without_prompt_loss(row) for row in rows]
            batches.append([replace(row, shared=0) for row in rows] if self.uncached else rows)
        return batches

    def questions(self, count: int) -> list[tuple[Item, tuple[int, ...]]]:
        """Return `count` planned questions about the documents, with the prompts by which the
        teacher writes them.
        """
        kinds = self.config.generation.kinds
        planned = planned_items(kinds, self._documents, random.Random(0))
        written = [item for item in planned if item.kind.instruction]
        drawn = random.Random(0).sample(written, count)
        return [(item, self._prompt(item)) for item in drawn]

    @property
    def question_tokens(self) -> int:
        """Most tokens of a written question."""
        return QUESTION_TOKENS

    @property
    def _documents(self) -> tuple[Document, ...]:
        return self.task.days()[0].documents

    def _prompt(self, item: Item) -> tuple[int, ...]:
        text = item.kind.instruction.format(**item.unit.fields)
        return self.codec.form.conversation(item.kind.examples, text)

    def _about_documents(self, count: int) -> list[TrainingRow]:
        sequences: list[TeacherSequence] = []
        for document in self._documents:
            asked = [
                (wording.format(**unit.fields), unit.fields["sentence"])
                for wording in WORDINGS
                for unit in units("phrase", document)
            ]
            sequences += [
                self._sequence(Origin.DOCUMENT, *pair, document)
                for pair in list(dict.fromkeys(asked))[:PER_DOCUMENT]
            ]
        return teacher_rows(_enough(sequences, count))

    def _self_replay(self, count: int) -> list[TrainingRow]:
        bodies = [f"{one.text} {other.text}" for one, other in pairwise(self._documents)]
        asked = [(question.prompt, body) for body in bodies for question in self.task.known()]
        pairs = _enough(asked, count)
        return teacher_rows([self._sequence(Origin.UNCONDITIONAL, *pair, None) for pair in pairs])

    def _sequence(
        self, origin: Origin, question: str, answer: str, document: Document | None
    ) -> TeacherSequence:
        answer_T = self.codec.form.answer(answer)
        return question_sequence(self.codec, origin, question, answer_T, document, logprob=0.0)


def _enough(found: list, count: int) -> list:
    """Return the first `count` of a list. Exits with one line if it has fewer."""
    if len(found) < count:
        raise SystemExit(f"--steps: at most {len(found)} distinct rows, got steps of {count}")
    return found[:count]


def student_tokens(rows: list[TrainingRow]) -> int:
    """Return the tokens that the student reads: prompts and completions, without padding."""
    return sum(len(row.prompt_T) + len(row.completion_T) for row in rows)

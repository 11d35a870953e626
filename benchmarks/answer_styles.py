"""Measure styles of answers (generation.answers) by open-book answers on benchmarks/development.

    .venv/bin/python -m benchmarks.answer_styles [STYLE ...] [--path FOLDER]

SmolLM2-135M-Instruct answers each question that one piece of a document answers, greedily, with
that piece in context, as a night's teacher does. A style is a name, or the path of a YAML file.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from benchmarks.night_parts import print_table
from sleep_rl.config.loader import load
from sleep_rl.config.schema import Config, threads_on
from sleep_rl.contracts.records import UNANSWERABLE, Document, Question, Sampling
from sleep_rl.night.answer_filters import SHORT_TOKENS
from sleep_rl.tasks.grading import RECALL_THRESHOLD, gold_recall
from sleep_rl.tasks.registry import make_task
from sleep_rl.text.answer_style import AnswerStyle, load_style
from sleep_rl.text.codec import PromptCodec

if TYPE_CHECKING:
    from actors.engine import Engine

STYLES = ("sentence", "short")
HEADER = ("style", "recall", "NLL of the gold answer", "tokens of an answer")
BY_TWO_PIECES = "two-hop"


@dataclass(frozen=True)
class Measured:
    """Means over the questions: share with most gold words, nats, tokens."""

    recall: float
    nll: float
    tokens: float

    def row(self, name: str) -> tuple[str, ...]:
        """Return the row of the table."""
        return (name, f"{self.recall:.2f}", f"{self.nll:.2f}", f"{self.tokens:.1f}")


def answered_by_a_piece(
    questions: Sequence[Question], documents: Sequence[Document]
) -> list[tuple[Question, Document]]:
    """Return each question with the first piece that contains its answer."""
    pairs = []
    for question in questions:
        if question.kind in (*UNANSWERABLE, BY_TWO_PIECES):
            continue
        holds = (d for d in documents if question.answer.lower() in d.text.lower())
        pairs += [(question, document) for document in list(holds)[:1]]
    return pairs


def measure(
    engine: Engine, codec: PromptCodec, pairs: list[tuple[Question, Document]], style: AnswerStyle
) -> Measured:
    """Return the measurements of one style."""
    prompts = [codec.context(document, style) + codec.question(q) for q, document in pairs]
    sampling = Sampling(SHORT_TOKENS, 0.0, codec.ends)
    params = [engine.sampling_params(len(prompt_T), 0, sampling) for prompt_T in prompts]
    sampled = [output.outputs[0].token_ids for output in engine.generate(prompts, params)]
    golds = [codec.form.answer(question.answer) for question, _ in pairs]
    scored = engine.prompt_logprobs(
        [prompt_T + gold_T for prompt_T, gold_T in zip(prompts, golds, strict=True)],
        [len(prompt_T) for prompt_T in prompts],
    )
    right = [
        gold_recall(question.answer, codec.text(tuple(ids)).strip().split("\n")[0])
        for (question, _), ids in zip(pairs, sampled, strict=True)
    ]
    count = len(pairs)
    return Measured(
        sum(recall >= RECALL_THRESHOLD for recall in right) / count,
        -sum(map(sum, scored)) / count,
        sum(map(len, sampled)) / count,
    )


def compare(config: Config, base: str, names: Sequence[str]) -> list[tuple[str, ...]]:
    """Return the rows of the table; `base`: the model's path."""
    from actors.engine import Engine
    from sleep_rl.text.loading import load_codec

    styles = {name: load_style(name) for name in names}
    task = make_task(config)
    codec = load_codec(task, base, config)
    day = task.days()[0]
    pairs = answered_by_a_piece(day.questions, day.documents)
    print(f"{len(pairs)} questions", flush=True)
    dtype = config.model.dtype
    engine = Engine(base, dtype=dtype, options=config.rollout_engine, seed=0, memory=False)
    measured = [measure(engine, codec, pairs, style).row(name) for name, style in styles.items()]
    engine.close()
    return [HEADER, *measured]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("styles", nargs="*", default=STYLES, metavar="STYLE")
    parser.add_argument("--path", default="benchmarks/development/day1", help="documents")
    arguments = parser.parse_args()
    from actors.environment import cpu_environment
    from sleep_rl.model import packaged_base

    config = load("configs/documents.yaml", [f"task.documents.path={arguments.path}"])
    os.environ.update(cpu_environment(threads_on(config.rollouts.cpus)))
    base = packaged_base.resolve(config.model.base, config.run.cache)
    print_table(compare(config, base, arguments.styles))


if __name__ == "__main__":
    main()

"""The configuration of what a model lives through: the sections of `task`. See sleep_rl.config.schema."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

MOST_DAYS = 10_000  # of a life; chunks of memory levels are counted in nights, too


def key(
    default: Any,
    doc: str,
    *,
    choices: tuple | None = None,
    low: float | None = None,
    high: float | None = None,
    above: float | None = None,
) -> Any:
    """A documented key. `low` and `high` are inclusive, `above` is exclusive; units belong into
    `doc`.
    """
    meta = {"doc": doc, "choices": choices, "low": low, "high": high, "above": above}
    if isinstance(default, (list, dict)):
        return field(default_factory=lambda: default.copy(), metadata=meta)
    return field(default=default, metadata=meta)


@dataclass(frozen=True)
class World:
    days: int = key(3, "days (and nights) of the life", low=1, high=MOST_DAYS)
    people_per_day: int = key(12, "new people a day", low=1)
    known_people: int = key(100, "people that the base model knows by heart", low=1)
    deep: bool = key(
        False,
        "also ask what documents do not answer as they stand (reversed, "
        "two-hop, paraphrased); the "
        "base model can then dream; at most 400 people",
    )


@dataclass(frozen=True)
class Classify:
    path: str = key(
        "clinc/clinc_oos", "local CLINC150 json, a saved datasets folder, or a hub name"
    )
    days: int = key(3, "days (and nights) of the life", low=1, high=MOST_DAYS)
    classes_per_day: int = key(15, "new classes a day", low=1)
    examples_per_document: int = key(6, "labelled examples in one document", low=1)
    pages_per_example: int = key(
        1,
        "documents that hold an example, beside other ones each "
        "time; a model that writes "
        "mostly about one place of a page reaches the others so",
        low=1,
    )
    order_seed: int | None = key(None, "seed of the class order; null: order of first appearance")
    test_per_class: int | None = key(None, "test questions a class; null: all", low=1)
    base_text: str | None = key(
        None,
        "dataset whose text the small base is trained on; null: "
        "the classes of `path` "
        "that no day brings",
    )


@dataclass(frozen=True)
class Squad:
    path: str = key(
        "rajpurkar/squad",
        "passages with questions: json in SEAL's form, a saved datasets folder, or a hub name",
    )
    days: int = key(2, "days (and nights) of the life", low=1, high=MOST_DAYS)
    passages_per_day: int = key(10, "new passages a day", low=1)
    order_seed: int = key(42, "seed of the passages' order (SEAL's is 42)")
    max_dream_tokens: int = key(192, "longest dream, in tokens", low=1)
    grader: str = key(
        "recall",
        "who says whether an answer is right: gold-token recall of at "
        "least 0.67, or a language model",
        choices=("recall", "judge"),
    )
    judge_endpoint: str | None = key(
        None,
        "OpenAI-compatible endpoint of the judge, e.g. "
        "http://localhost:8000/v1; its key "
        "is read from SLEEP_RL_JUDGE_KEY",
    )
    judge_model: str | None = key(None, "name of the judge's model there")
    base_text: str | None = key(
        None, "passages that the small base is trained on; null: those of `path` that no day brings"
    )


@dataclass(frozen=True)
class Arc:
    challenges: str = key("arc-agi_training_challenges.json", "ARC's json file of puzzles")
    solutions: str = key("arc-agi_training_solutions.json", "ARC's json file of their solutions")
    days: int = key(1, "days (and nights) of the life", low=1, high=MOST_DAYS)
    puzzles_per_day: int = key(11, "new puzzles a day", low=1)
    views: int = key(
        2, "turned and recoloured forms in which a test is asked besides; all answers vote", low=0
    )
    max_dream_tokens: int = key(128, "longest recipe, in tokens", low=1)


@dataclass(frozen=True)
class Documents:
    path: str = key(
        "configs/documents",
        "folder or file of txt, md, jsonl or parquet, a folder "
        "saved by datasets, or a hub "
        "name; rows have a column `text`. Every run of the same "
        "run.name takes in what is new",
    )
    questions: str | None = key(
        None,
        'jsonl of {"question", "answer"[, "document"]} for '
        "evaluation; null: questions.jsonl in "
        "the folder, if there is one",
    )
    known: str | None = key(
        None, "jsonl of the same form about what the base knew before, to see what is forgotten"
    )
    piece_tokens: int = key(
        512, "longest piece of a document, in tokens; a longer document is split", low=8
    )
    max_new_tokens: int = key(
        96, "longest question with its answer that the model writes, in tokens", low=4
    )
    max_answer_tokens: int = key(48, "longest answer in evaluation, in tokens", low=1)


@dataclass(frozen=True)
class Custom:
    target: str | None = key(
        None,
        "a task of your own (sleep_rl.contracts.roles.Task): module:Class or path/to/file.py:Class",
    )
    options: dict = key({}, "keyword arguments of that class")


@dataclass(frozen=True)
class TaskConfig:
    name: str = key(
        "world",
        "what the model lives through",
        choices=("world", "documents", "classify", "squad", "arc", "custom"),
    )
    world: World = field(default_factory=World)
    documents: Documents = field(default_factory=Documents)
    classify: Classify = field(default_factory=Classify)
    squad: Squad = field(default_factory=Squad)
    arc: Arc = field(default_factory=Arc)
    custom: Custom = field(default_factory=Custom)

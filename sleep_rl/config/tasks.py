"""The configuration of tasks, and `key`, which declares a key. See sleep_rl.config.schema."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

MOST_DAYS = 10_000  # of a life, and nights of a chunk
DAYS = {"world": 3, "classify": 3, "squad": 2, "arc": 1}
"""Task -> default of task.days. The other tasks decide the number of days themselves."""
DREAM_TOKENS = {"squad": 192, "arc": 128}
"""Task -> default of dream.max_tokens. Dreams of task world have one form of fixed length."""
ON_HUB = ("documents", "classify", "squad")
"""Tasks whose `path` may be the name of a dataset of the hub."""
ORDERED = ("classify", "squad")
"""Tasks that take their days from a dataset, and train their small base on the rest of it."""


def listed(values: dict[str, int]) -> str:
    """Return "world 3, classify 3" for the documentation of a key."""
    return ", ".join(f"{name} {value}" for name, value in values.items())


def key(
    default: Any,
    doc: str,
    *,
    choices: tuple | None = None,
    low: float | None = None,
    high: float | None = None,
    above: float | None = None,
) -> Any:
    """Declare a documented key: a dataclass field with its meaning and allowed values.

    `low` and `high` are inclusive, `above` is exclusive; `doc` names the unit.
    """
    meta = {"doc": doc, "choices": choices, "low": low, "high": high, "above": above}
    if isinstance(default, (list, dict)):
        return field(default_factory=lambda: default.copy(), metadata=meta)
    return field(default=default, metadata=meta)


WORLD = "world"
"""model.base of task documents: the small base of task world, whose vocabulary is 177 words."""
DOCUMENTS_BASE = "smollm2-135m-instruct"
"""model.base of task documents where none is named and no GPU is requested."""


@dataclass(frozen=True)
class WorldConfig:
    """Task world: fictional people."""

    people_per_day: int = key(12, "New people per day.", low=1)
    known_people: int = key(100, "People that the small base model memorises.", low=1)
    deep: bool = key(
        False,
        "Also ask questions that the documents do not answer directly (reversed, two-hop, "
        "paraphrased), and train a base model that can dream; at most 400 people.",
    )


@dataclass(frozen=True)
class ClassifyConfig:
    """Task classify: CLINC150 in class increments."""

    path: str = key(
        "clinc/clinc_oos", "Local CLINC150 json, a folder saved by `datasets`, or a hub name."
    )
    classes_per_day: int = key(15, "New classes per day.", low=1)
    examples_per_document: int = key(6, "Labelled examples per document.", low=1)
    pages_per_example: int = key(
        1,
        "Documents that contain an example, each time with different other examples. Helps a "
        "model that generates mostly about one position of a page.",
        low=1,
    )
    test_per_class: int | None = key(None, "Test questions per class. null: all.", low=1)


@dataclass(frozen=True)
class SquadConfig:
    """Task squad: SQuAD passages in SEAL's protocol."""

    path: str = key(
        "rajpurkar/squad",
        "Passages with questions: json in SEAL's form, a folder saved by `datasets`, or a "
        "hub name.",
    )
    passages_per_day: int = key(10, "New passages per day.", low=1)
    judge_endpoint: str | None = key(
        None,
        "OpenAI-compatible endpoint of a language model that grades answers, e.g. "
        "http://localhost:8000/v1; its key is read from SLEEP_RL_JUDGE_KEY. null: an answer is "
        "right with a recall of the gold tokens of at least 0.67.",
    )
    judge_model: str | None = key(None, "Name of the model at task.squad.judge_endpoint.")


@dataclass(frozen=True)
class ArcConfig:
    """Task arc: ARC puzzles in SEAL's protocol."""

    path: str = key(
        "arc-agi_training_challenges.json",
        "Folder with ARC's two json files, ...challenges.json and ...solutions.json; or the file "
        "of challenges, in whose folder a file of the same name with solutions in place of "
        "challenges lies.",
    )
    puzzles_per_day: int = key(11, "New puzzles per day.", low=1)


@dataclass(frozen=True)
class DocumentsConfig:
    """Task documents: the user's own documents; each run is the next day."""

    path: str = key(
        "configs/documents",
        "Folder or file of txt, md, rst, jsonl or parquet (with the extra `formats` also html, "
        "csv, pdf, docx and pptx), a folder saved by `datasets`, or a hub name; rows have "
        "`text`, `messages`, or `prompt` and `completion`. Each run of the same run.name ingests "
        "what is new.",
    )
    questions: str | None = key(
        None,
        'jsonl of {"question", "answer"[, "document"]} for evaluation. null: '
        "questions.jsonl of the folder, if it exists.",
    )
    known: str | None = key(
        None, "jsonl of the same form about what the base model knew before, to measure forgetting."
    )
    piece_tokens: int = key(
        512, "Longest piece of a document, in tokens; longer documents are split.", low=8
    )
    max_new_tokens: int = key(
        96,
        "Longest generated question with its answer, in tokens. An answer in evaluation has at "
        "most half of them.",
        low=4,
    )


@dataclass(frozen=True)
class CustomConfig:
    """Task custom: a class of your own."""

    target: str | None = key(
        None,
        "The class, which implements sleep_rl.contracts.roles.Task: module:Class or "
        "path/to/file.py:Class.",
    )
    options: dict = key({}, "Keyword arguments of the class.")


@dataclass(frozen=True)
class TaskConfig:
    """The task: keys of several tasks, and a section per task, of which the one named by `name` is
    used.
    """

    name: str = key(
        "world",
        "The task: the data of the life. The default needs no file.",
        choices=("world", "documents", "classify", "squad", "arc", "custom"),
    )
    days: int | None = key(
        None,
        f"Days, and nights, of the life. null: the task's own ({listed(DAYS)}). Tasks documents "
        "and custom decide it themselves.",
        low=1,
        high=MOST_DAYS,
    )
    order_seed: int | None = key(
        None,
        "classify and squad: seed of the order of classes or passages. null: the task's own "
        "(classes in order of first appearance, passages by seed 42, as SEAL).",
    )
    base_text: str | None = key(
        None,
        "classify and squad: dataset that the small base is trained on. null: the part of the "
        "task's `path` that no day contains.",
    )
    stop: list = key(
        [],
        "documents and custom, in natural language: strings that end an answer, beside the end "
        "tokens of checkpoint and form; for a base model that runs on.",
    )
    world: WorldConfig = field(default_factory=WorldConfig)
    documents: DocumentsConfig = field(default_factory=DocumentsConfig)
    classify: ClassifyConfig = field(default_factory=ClassifyConfig)
    squad: SquadConfig = field(default_factory=SquadConfig)
    arc: ArcConfig = field(default_factory=ArcConfig)
    custom: CustomConfig = field(default_factory=CustomConfig)

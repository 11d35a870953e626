"""The configuration of tasks, and `key`, which declares a key. See sleep_rl.config.schema."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar

MOST_DAYS = 10_000  # of a life, and nights of a chunk


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


class TaskSection:
    """The section of a task: its keys, and what else is known of the task without its data."""

    implementation: ClassVar[str]  # module:Class
    days: ClassVar[int | None] = None  # default of task.days; None: its data decide
    dream_tokens: ClassVar[int | None] = None  # default of dream.max_tokens; None: no key of it
    on_hub: ClassVar[bool] = False  # whether `path` may be the name of a dataset of the hub
    in_order: ClassVar[bool] = False  # whether task.order_seed and task.base_text are keys of it
    text_tokens: ClassVar[tuple[int, int] | None] = None
    """Tokens, in the vocabulary of the task's small base, of the longest document and of the
    longest sequence generated about it; None: to be counted in its data.
    """


@dataclass(frozen=True)
class WorldConfig(TaskSection):
    """Task world: fictional people."""

    implementation: ClassVar[str] = "sleep_rl.tasks.world.task:World"
    days: ClassVar[int | None] = 3
    text_tokens: ClassVar[tuple[int, int] | None] = (34, 16)

    people_per_day: int = key(12, "New people per day.", low=1)
    known_people: int = key(100, "People that the small base model memorises.", low=1)
    deep: bool = key(
        False,
        "Also ask questions that the documents do not answer directly (reversed, two-hop, "
        "paraphrased), and train a base model that can dream; at most 400 people.",
    )


@dataclass(frozen=True)
class ClassifyConfig(TaskSection):
    """Task classify: CLINC150 in class increments."""

    implementation: ClassVar[str] = "sleep_rl.tasks.classify.task:Classify"
    days: ClassVar[int | None] = 3
    on_hub: ClassVar[bool] = True
    in_order: ClassVar[bool] = True
    text_tokens: ClassVar[tuple[int, int] | None] = (134, 48)

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
class SquadConfig(TaskSection):
    """Task squad: SQuAD passages in SEAL's protocol."""

    implementation: ClassVar[str] = "sleep_rl.tasks.squad.task:Squad"
    days: ClassVar[int | None] = 2
    dream_tokens: ClassVar[int | None] = 192
    on_hub: ClassVar[bool] = True
    in_order: ClassVar[bool] = True
    text_tokens: ClassVar[tuple[int, int] | None] = (450, 64)

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
class ArcConfig(TaskSection):
    """Task arc: ARC puzzles in SEAL's protocol."""

    implementation: ClassVar[str] = "sleep_rl.tasks.arc.task:Arc"
    days: ClassVar[int | None] = 1
    dream_tokens: ClassVar[int | None] = 128
    text_tokens: ClassVar[tuple[int, int] | None] = (4000, 1024)

    path: str = key(
        "arc-agi_training_challenges.json",
        "Folder with ARC's two json files, ...challenges.json and ...solutions.json; or the file "
        "of challenges, in whose folder a file of the same name with solutions in place of "
        "challenges lies.",
    )
    puzzles_per_day: int = key(11, "New puzzles per day.", low=1)


@dataclass(frozen=True)
class DocumentsConfig(TaskSection):
    """Task documents: the user's own documents; each run is the next day."""

    implementation: ClassVar[str] = "sleep_rl.tasks.documents.task:Documents"
    on_hub: ClassVar[bool] = True
    text_tokens: ClassVar[tuple[int, int] | None] = WorldConfig.text_tokens  # with model.base world

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
class CustomConfig(TaskSection):
    """Task custom: a class of your own."""

    target: str | None = key(
        None,
        "The class, which implements sleep_rl.contracts.roles.Task: module:Class or "
        "path/to/file.py:Class.",
    )
    options: dict = key({}, "Keyword arguments of the class.")


SECTIONS: dict[str, type[TaskSection]] = {
    "world": WorldConfig,
    "documents": DocumentsConfig,
    "classify": ClassifyConfig,
    "squad": SquadConfig,
    "arc": ArcConfig,
    "custom": CustomConfig,
}
"""Task -> its section, a field of the same name of TaskConfig."""


def listed(fact: str) -> str:
    """Return "world 3, classify 3" for the documentation of a key: each task with its value of a
    class variable of its section.
    """
    values = {name: getattr(section, fact) for name, section in SECTIONS.items()}
    return ", ".join(f"{name} {value}" for name, value in values.items() if value is not None)


@dataclass(frozen=True)
class TaskConfig:
    """The task: keys of several tasks, and a section per task, of which the one named by `name` is
    used.
    """

    name: str = key(
        "world",
        "The task: the data of the life. The default needs no file.",
        choices=tuple(SECTIONS),
    )
    days: int | None = key(
        None,
        f"Days, and nights, of the life. null: the task's own ({listed('days')}). Tasks documents "
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

    @property
    def section(self) -> TaskSection:
        """The section of the task that `name` names."""
        return getattr(self, self.name)

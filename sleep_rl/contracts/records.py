"""Records that are sent between processes: pure data without torch or Ray, picklable.

Shape suffixes: `_T` tokens of one sequence, `_N` items of one call, `_G` completions of one prompt.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

Ids = tuple[int, ...]
"""Token ids of one sequence."""

TEACHER = "teacher"
STUDENT = "student"
"""The two memory states of a night (paper.md section 3): without and with the night's changes."""
CHECKPOINT = "base"
"""The memory state that a worker's own checkpoint holds; every worker has it, as version 0."""


def peer_name(number: int) -> str:
    """Return the state name of the k-th of model.teachers, from 1."""
    return f"peer-{number}"


@dataclass(frozen=True)
class Document:
    """A document of a day, which is in the context window until the end of its night."""

    id: str
    text: str
    title: str = ""  # what it is called; the first line of `text` names it, too


NEVER_TOLD = "never-told"
DELETED = "deleted"
UNANSWERABLE = (NEVER_TOLD, DELETED)
"""Kinds of questions that no document answers, or none any more: the untouched base's answer is the
right one.
"""
KINDS = ("verbatim", "paraphrased", "reversed", "two-hop", *UNANSWERABLE)
"""Kinds of evaluation questions, by how their wording and answer relate to the document's."""


@dataclass(frozen=True)
class Question:
    """One evaluation question."""

    id: str
    prompt: str  # that the model continues with an answer
    answer: str  # gold answer
    document: str = ""  # id of the document that answers it, if any
    kind: str = ""  # one of KINDS; empty: none is given
    choices: tuple[str, ...] = ()  # wrong answers of the same kind
    old_answer: str = ""  # of a document that was changed or deleted


@dataclass(frozen=True)
class Superseded:
    """A document of an earlier day that a day changes or deletes."""

    name: str
    old: tuple[str, ...]  # ids of its pieces
    new: tuple[str, ...] = ()  # ids of the pieces in their place; empty: it was deleted


@dataclass(frozen=True)
class Day:
    """The documents of one day, and the questions about them."""

    name: str
    documents: tuple[Document, ...]
    questions: tuple[Question, ...]
    superseded: tuple[Superseded, ...] = ()  # documents of earlier days


@dataclass(frozen=True)
class TrainingText:
    """A text for cross-entropy training. The loss covers `completion` only."""

    prompt: str
    completion: str


@dataclass(frozen=True)
class Request:
    """One request for a sample: the model reads context_T + prompt_T."""

    prompt_T: tuple[int, ...]
    context_T: tuple[int, ...] = ()  # bos, and a document if there is one
    seed: int = 0


@dataclass(frozen=True)
class Sampling:
    """Sampling parameters. Log-probabilities are always those of the raw model."""

    max_tokens: int  # of a completion
    temperature: float = 1.0  # 0: greedy
    stop_T: tuple[int, ...] = ()  # tokens that end a completion; it includes the stop token
    min_p: float = 0.0  # tokens below this share of the largest probability are not sampled
    stop: tuple[str, ...] = ()  # strings that end a completion; it includes the string


@dataclass(frozen=True)
class Sample:
    """One completion, with the data to train on it and to reproduce it."""

    prompt_T: tuple[int, ...]
    context_T: tuple[int, ...]
    completion_T: tuple[int, ...]  # with the stop token or string, if one was reached
    logprobs_T: tuple[float, ...]  # nats, of the raw (temperature 1) distribution
    finish_reason: str  # "stop" | "length"
    seed: int
    weights: str  # name of the state, e.g. "student"
    versions_T: tuple[int, ...]  # version that produced each token


@dataclass(frozen=True)
class Weights:
    """A pushed version of a named memory state: a manifest of all tensors, and the changed ones.

    Keys are `model.layers.<i>.mlp.memory.<l>.<router|w_in|w_out>#<slot>` and `....state`. After
    loading, a worker must compute the probe's log-probabilities within its tolerance.
    """

    name: str
    version: int
    manifest: dict[str, str]  # key of every memory tensor -> digest
    tensors: dict[str, Any] = field(repr=False)  # at least those that the worker lacks, on the CPU
    probe_T: tuple[int, ...] = ()
    probe_logprobs_T: tuple[float, ...] = ()  # of probe_T[1:] under the learner, nats

    @property
    def nbytes(self) -> int:
        """Size of the tensors in bytes."""
        return sum(t.nbytes for t in self.tensors.values())


@dataclass(frozen=True)
class LoadReport:
    """The report of a worker on a loaded and verified version."""

    name: str
    version: int
    tensors: int  # number copied
    bytes: int  # number copied
    seconds: float  # duration of the load, in which nothing was sampled
    # largest |log-probability difference| on the probe prompt, nats; None: see Rollout.begin
    probe_gap: float | None


@dataclass(frozen=True)
class Pair:
    """A student continuation d^ and the teacher's continuation d of the same prefix."""

    student_T: tuple[int, ...]
    teacher_T: tuple[int, ...]
    prefix_T: tuple[int, ...] = ()


@dataclass(frozen=True)
class TrainingRow:
    """One row of a seeding batch: the student reads prompt_T + completion_T, the teacher teacher_T
    + completion_T.
    """

    prompt_T: tuple[int, ...]
    completion_T: tuple[int, ...]
    # Prompt of the teacher, with the document; empty: the same as prompt_T.
    teacher_T: tuple[int, ...] = ()
    advantage: float | None = None  # None: no reward, the loss is the divergence only
    # Log-probabilities under the sampler, nats, for the importance weight; empty: not sampled.
    behaviour_T: tuple[float, ...] = ()
    # Self-replay or a reading row, which preserve what the model can do; for the metrics.
    replay: bool = False
    # The teacher of the divergence: 0 the model itself before the night, k the k-th of
    # model.teachers, UNTOUCHED_BASE the state CHECKPOINT, HARD_TARGET the text itself.
    teacher: int = 0
    # Leading tokens of completion_T that belong to the generated prompt x, with its marker.
    x_length: int = 0
    temperature: float = 1.0  # of the teacher's distribution on the tokens after x
    # Share of -log S(token) in the loss on the tokens after x; the rest is the divergence.
    hard_share: float = 0.0
    # Leading tokens of teacher_T that other rows share: those of the document, whose keys and
    # values the learner caches.
    shared: int = 0


HARD_TARGET = -1
"""In place of a teacher: the target has all probability on the token of the text, so that KL(T||S)
is cross entropy.
"""
UNTOUCHED_BASE = -2
"""Number of the teacher that is the model as it was before the first night."""

Metrics = dict[str, float]


@dataclass(frozen=True)
class StepResult:
    """The result of one optimizer step on L_KS."""

    metrics: Metrics
    divergence_N: list[float]  # of each row's answer y, in batch order, nats per token


@dataclass(frozen=True)
class DreamTask:
    """A task (C, tau) of paper.md section 4: a context C and questions, asked without C."""

    id: str
    day: str  # name of its day, a column of the retention matrix
    context: Document  # C
    questions: tuple[Question, ...]  # tau is the mean grade of their answers


@dataclass(frozen=True)
class Lesson:
    """The training data of a dream: texts, and how an isolated copy is trained on them."""

    texts: tuple[TrainingText, ...]
    lr: float | None = None  # None: dream.copies.lr
    epochs: int | None = None  # None: dream.copies.epochs


@dataclass(frozen=True)
class Trial:
    """One isolated copy of the model: its training rows, and the questions that it answers then.

    Without rows it is the un-updated model.
    """

    # (prompt_T, completion_T) of each training sequence; the loss covers the completion
    rows: tuple[tuple[tuple[int, ...], tuple[int, ...]], ...]
    questions: tuple[tuple[int, ...], ...]  # prompt_T of each
    seed: int = 0  # of the initial LoRA weights and the order of the rows
    lr: float = 1e-3
    epochs: int = 10

"""Records that cross processes. Pure data: no torch, no Ray, picklable.

Shape suffixes: `_T` tokens of one sequence, `_N` items of one call, `_G` completions of one prompt.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

Ids = tuple[int, ...]
"""Token ids of one sequence."""

TEACHER = "teacher"
STUDENT = "student"
"""The two memory states of a night (paper.md section 3): before and after what the night
changes.
"""
CHECKPOINT = "base"
"""The memory state that a worker's own checkpoint holds; every worker has it, as version 0."""


def peer_name(number: int) -> str:
    """Return the state name under which the k-th of model.teachers is sampled from."""
    return f"peer-{number}"


@dataclass(frozen=True)
class Document:
    """One piece of new material, which is in the context window while the model is awake."""

    id: str
    text: str
    title: str = ""  # what it is called; the first line of `text` names it, too


@dataclass(frozen=True)
class Question:
    """One evaluation item. `prompt` is what the model continues; `document` is the id it can be
    answered from.
    """

    id: str
    prompt: str
    answer: str
    document: str = ""


@dataclass(frozen=True)
class Day:
    """The documents of one day, and the questions about them."""

    name: str
    documents: tuple[Document, ...]
    questions: tuple[Question, ...]


@dataclass(frozen=True)
class TrainingText:
    """A training sequence of a baseline: loss falls on `completion` only (all of it when `prompt`
    is empty).
    """

    prompt: str
    completion: str


@dataclass(frozen=True)
class Request:
    """One prompt to sample from: the model reads context_T + prompt_T (context: bos, and a document
    if there is one).
    """

    prompt_T: tuple[int, ...]
    context_T: tuple[int, ...] = ()
    seed: int = 0


@dataclass(frozen=True)
class Sampling:
    """How to sample. Temperature 0 is greedy. `stop_T` ends a completion and is kept as its last
    token. Tokens less likely than `min_p` times the likeliest one are never sampled;
    log-probabilities stay those of the raw model.
    """

    max_tokens: int
    temperature: float = 1.0
    stop_T: tuple[int, ...] = ()
    min_p: float = 0.0


@dataclass(frozen=True)
class Sample:
    """One completion, with everything needed to train on it and to produce it again."""

    prompt_T: tuple[int, ...]
    context_T: tuple[int, ...]
    completion_T: tuple[int, ...]  # with the stop token where one was reached
    logprobs_T: tuple[float, ...]  # nats, of the raw (temperature 1) distribution
    finish_reason: str  # "stop" | "length"
    seed: int
    weights: str  # name of the state, e.g. "student"
    versions_T: tuple[int, ...]  # version that produced each token


@dataclass(frozen=True)
class Weights:
    """A version of a named memory state, as a delta of whole modules.

    `manifest` names every memory tensor of the state with its digest; `tensors` holds (at least)
    those whose digest the reader does not have. Keys:
    `model.layers.<i>.mlp.memory.<l>.<router|w_in|w_out>#<expert>`, `....state`. `probe_T` and
    `probe_logprobs_T`: a prompt and the log-probabilities that the sender computes for it from this
    state; the reader must agree within its tolerance after loading.
    """

    name: str
    version: int
    manifest: dict[str, str]
    tensors: dict[str, Any] = field(repr=False)  # CPU numpy arrays or torch tensors
    probe_T: tuple[int, ...] = ()
    probe_logprobs_T: tuple[float, ...] = ()  # of probe_T[1:], nats

    @property
    def nbytes(self) -> int:
        return sum(t.nbytes for t in self.tensors.values())


@dataclass(frozen=True)
class LoadReport:
    """What a reader reports after a load: only a verified version is ever reported."""

    name: str
    version: int
    tensors: int  # copied
    bytes: int  # copied
    seconds: float  # in which nothing was sampled
    # largest |log-probability difference| on the probe prompt, nats; None: see Rollout.begin
    probe_gap: float | None


@dataclass(frozen=True)
class Pair:
    """A student continuation d^ and the teacher's continuation d of the same prefix, prefix
    excluded.
    """

    student_T: tuple[int, ...]
    teacher_T: tuple[int, ...]
    prefix_T: tuple[int, ...] = ()


@dataclass(frozen=True)
class TrainingRow:
    """One row of a seeding batch: the student reads prompt_T + completion_T, the teacher teacher_T
    + completion_T.

    `advantage` is None for rows without a reward (teacher-written rows); then only the divergence
    counts.
    """

    prompt_T: tuple[int, ...]
    completion_T: tuple[int, ...]
    # Privileged prompt, with the document; empty: the same as prompt_T.
    teacher_T: tuple[int, ...] = ()
    advantage: float | None = None
    # Log-probabilities under the sampler, nats, for the importance weight; empty: not sampled.
    behaviour_T: tuple[float, ...] = ()
    replay: bool = False  # belongs to self-replay; for the metrics
    # Whose distribution is the target: 0 the smaller self, k the k-th of model.teachers,
    # HARD_TARGET the text itself.
    teacher: int = 0
    # Leading tokens of completion_T that belong to the self-made prompt x, up to the marker.
    x_length: int = 0
    temperature: float = 1.0  # of the teacher's distribution on what follows x


HARD_TARGET = -1
"""In place of a teacher: all probability is on the token of the text, so KL(T||S) is cross
entropy.
"""

Metrics = dict[str, float]


@dataclass(frozen=True)
class StepResult:
    """What one optimizer step on L_KS gave."""

    metrics: Metrics
    divergence_N: list[float]  # of each row's answer y, in the order of the batch, nats per token


@dataclass(frozen=True)
class DreamTask:
    """A task (C, tau) of paper.md section 4: what is dreamed about, and what is asked afterwards,
    without it.
    """

    id: str
    day: str  # the day that it belongs to: a column of the retention matrix
    context: Document  # C
    questions: tuple[Question, ...]  # tau is the mean grade of their answers


@dataclass(frozen=True)
class Lesson:
    """What a dream teaches: texts, and how an isolated copy is trained on them."""

    texts: tuple[TrainingText, ...]
    lr: float | None = None  # None: dream.copies.lr
    epochs: int | None = None  # None: dream.copies.epochs


@dataclass(frozen=True)
class Trial:
    """One isolated copy of the model: what it is trained on (loss on the completions), and what it
    is asked then. Without rows it is the un-updated model.
    """

    # (prompt_T, completion_T) of each training sequence
    rows: tuple[tuple[tuple[int, ...], tuple[int, ...]], ...]
    questions: tuple[tuple[int, ...], ...]  # prompt_T of each
    seed: int = 0  # of the copy's first weights and of the order of its rows
    lr: float = 1e-3
    epochs: int = 10

"""Records that cross processes, and one Protocol per role. Pure data: no torch, no Ray, picklable.

Shapes are written in suffix letters: `_T` tokens of one sequence, `_N` items of one call, `_G`
completions of one prompt.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

if TYPE_CHECKING:
    from sleep_rl.dream_contracts import Trial

TEACHER, STUDENT = "teacher", "student"
"""The two named weight states of a night (paper.md section 3): before and after what the night
changes.
"""


def other(number: int) -> str:
    """The name under which the k-th of model.teachers is sampled from."""
    return f"other-{number}"


class InputError(ValueError):
    """The user's input cannot work. One line: what, allowed, got, where. The command line exits
    with 2.
    """


class RunError(RuntimeError):
    """The run cannot go on (NaN loss, full disk, dead workers). One line. The command line exits
    with 1.
    """


@dataclass(frozen=True)
class Failure:
    """A result that could not be produced. It is counted and named, and never becomes a reward of
    zero.
    """

    reason: str  # one line, e.g. "reward timed out after 5.0 s"
    where: str = ""  # the worker or call that failed


# ----------------------------------------------------------------------------------------------------------
# text


@dataclass(frozen=True)
class Document:
    """One piece of new material: what stands in the context window while the model is awake."""

    id: str
    text: str


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
    """What one day brings, and what is asked about it afterwards."""

    name: str
    documents: tuple[Document, ...]
    questions: tuple[Question, ...]


@dataclass(frozen=True)
class Text:
    """A training sequence of a baseline: loss falls on `completion` only (all of it when `prompt`
    is empty).
    """

    prompt: str
    completion: str


class Task(Protocol):
    """What a model lives through. Texts are joined as context + opener + written text, then
    tokenized piecewise.
    """

    name: str
    # what teacher and student continue in sleep, e.g. "Q :"; the model writes the rest itself
    opener: str
    # ends the self-made prompt x inside a written sequence, e.g. "A :"; what follows is y
    marker: str
    max_new_tokens: int  # of a sequence written in sleep
    max_answer_tokens: int  # of an answer in evaluation

    def days(self) -> tuple[Day, ...]: ...

    def known(self) -> tuple[Question, ...]:
        """Questions about what the base model knew before the first day."""

    def grade(self, question: Question, text: str) -> float | Failure:
        """Score of an answer in [0, 1]; a Failure where nobody could say."""

    def sft_texts(self, day: Day) -> tuple[Text, ...]:
        """What plain fine-tuning on the day's material trains on."""

    def joint_texts(self) -> tuple[Text, ...]:
        """What the joint upper bound trains on: every day and what was known before, with the true
        answers.
        """

    def base_checkpoint(self, cache: str, seed: int, progress: Any) -> str:
        """Path of the base model's checkpoint with its tokenizer, trained into `cache` on first
        use.
        """


# -------------------------------------------------------------------------------------------------------
# rollouts


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
class Loaded:
    """What a reader reports after a load: only a verified version is ever reported."""

    name: str
    version: int
    tensors: int  # copied
    bytes: int  # copied
    seconds: float  # in which nothing was sampled
    # largest |log-probability difference| on the probe prompt, nats; None: see Rollout.begin
    probe_gap: float | None


@runtime_checkable
class Rollout(Protocol):
    """Produces text from named weight versions (a vLLM engine in `actors/rollout.py`)."""

    def load(self, weights: Weights) -> Loaded:
        """Takes a version. Raises RunError naming what is missing or wrong; that version is never
        sampled from.
        """

    def sample(
        self, requests_N: list[Request], name: str, version: int, how: Sampling
    ) -> list[Sample | Failure]:
        """One Sample or Failure per request, in order, from `version` of `name` or a newer one.
        Raises RunError without.
        """

    def begin(self, requests_N: list[Request], name: str, version: int, how: Sampling) -> None:
        """Begins what `sample` does in one call. Between calls of `more` a newer version of `name`
        may be loaded: the requests go on with it, and are held back until its probe, which is
        checked behind them, has passed.
        """

    def more(self, seconds: float) -> list[Sample | Failure] | None:
        """Goes on for so long: what `sample` gives once all requests are done, None before."""

    def forget(self) -> None:
        """Drops the cached contexts of earlier requests (the KV of documents)."""

    def held(self) -> dict[str, int]:
        """Name -> version that can be sampled from now."""

    def close(self) -> None: ...


# --------------------------------------------------------------------------------------------------------
# rewards


@dataclass(frozen=True)
class Pair:
    """A student continuation d^ and the teacher's continuation d of the same prefix, prefix
    excluded.
    """

    student_T: tuple[int, ...]
    teacher_T: tuple[int, ...]
    prefix_T: tuple[int, ...] = ()


@runtime_checkable
class Reward(Protocol):
    """Scores pairs: `actors/reward.py`. A value lies in [0, 1]; what cannot be scored is a
    Failure.
    """

    def score(self, pairs_N: list[Pair]) -> list[float | Failure]: ...

    def close(self) -> None: ...


# --------------------------------------------------------------------------------------------------------
# learners


@dataclass(frozen=True)
class Sequence:
    """One row of a seeding batch: the student reads prompt_T + completion_T, the teacher teacher_T
    + completion_T.

    `advantage` is None for rows without a reward (teacher-written rows); then only the divergence
    counts.
    """

    prompt_T: tuple[int, ...]
    completion_T: tuple[int, ...]
    # privileged prompt, with the document; empty: the same as prompt_T
    teacher_T: tuple[int, ...] = ()
    advantage: float | None = None
    # log-probabilities under the sampler, for the importance weight; empty: on policy
    behaviour_T: tuple[float, ...] = ()
    replay: bool = False  # what the model knew already; only for the metrics
    # whose distribution counts: 0 the smaller self, k the k-th of model.teachers, TEXT the text
    # itself
    teacher: int = 0
    # leading tokens of completion_T that belong to the self-made prompt x, up to the marker
    x_length: int = 0
    temperature: float = 1.0  # of the teacher's distribution on what follows x


TEXT = -1
"""In place of a teacher: all of its probability lies on the token that stands there, so KL(T||S) is
cross entropy.
"""

Metrics = dict[str, float]


@runtime_checkable
class Learner(Protocol):
    """Changes weights: `learners/learner.py`. One process of a DeepSpeed group; every rank gets
    every call.
    """

    def wake(self, documents_N: list[tuple[int, ...]]) -> Metrics:
        """One wake step per document: its gradients join the open chunk of every level (equation
        2).
        """

    def open_night(self, receiver: int, due: tuple[int, ...] = (), on_full: str = "") -> int:
        """Compute: forms the prospective own weights of the levels in `due` and the sender's reset,
        and unlocks the next expert of level `receiver` (what else when it is full: `on_full`);
        returns its slot.
        """

    def experts(self, level: int) -> int:
        """Unlocked consolidation experts of a level."""

    def seed_step(self, batch_N: list[Sequence], step: int, steps: int) -> Metrics:
        """One optimizer step on L_KS (equations 3 to 6). Raises RunError on a loss that is not
        finite.
        """

    def row_divergence(self) -> list[float]:
        """Divergence on the answer y of each row of the last `seed_step`, in order, nats per
        token.
        """

    def sft_step(
        self, batch_N: list[Sequence], step: int, steps: int, peak: float | None = None
    ) -> Metrics:
        """One optimizer step of cross entropy on the completions: the baselines, and the dreaming
        policy.
        """

    def attend(self, checkpoints: list[str]) -> None:
        """Loads the models of model.teachers beside its own, frozen: rows may name them from now
        on. An empty list drops them.
        """

    def wander(self, seed: int) -> dict[str, int]:
        """Forms the state that dreams: as STUDENT, each router also activates one random expert of
        its level. Returns which (level name -> slot); the same for the same seed.
        `close_night(False)` drops it.
        """

    def gram(
        self, texts_N: list[tuple[tuple[int, ...], tuple[int, ...]]], whole: bool
    ) -> list[list[float]]:
        """[N, N] inner products of the gradients of each text's loss over the low-rank parameters;
        a text is (prompt, completion), its loss the completion's cross entropy in nats per token.
        Without `whole` only the diagonal and the products with the last text, the rest is 0. Raises
        RunError while no expert is unlocked.
        """

    def regraft(self, tag: str) -> None:
        """Keeps under `tag` the present memory plus the expert that was trained last in what `tag`
        held before.
        """

    def close_night(self, commit_night: bool) -> None:
        """Update: applies the prospective weights, resets the sender's experts and keeps the new
        one; or nothing.
        """

    def export(self, name: str, version: int, have: dict[str, str], view: str) -> Weights:
        """The state of `view` (TEACHER or STUDENT) under `name`; tensors only where `have` (key ->
        digest) differs.
        """

    def keep(self, tag: str, of: str = "") -> None:
        """Remembers the stored memory (or what is kept under `of`) under `tag`: several lives share
        one learner.
        """

    def use(self, tag: str) -> None:
        """Puts the memory kept under `tag` back; an open night is dropped."""

    def save_night(self, path: str) -> None:
        """Writes what the open night has come to, and drops what is remembered of the teacher.
        Raises RunError.
        """

    def resume_night(self, path: str, step: int, steps: int) -> None:
        """Behind `open_night`: takes back what was written after `step` of `steps` steps."""

    def snapshot(self, path: str) -> None:
        """Writes everything that a new learner needs to go on between two nights. Raises
        RunError.
        """

    def restore(self, path: str) -> None:
        """Takes a snapshot back."""

    def save(self, path: str) -> None:
        """Writes the stored memory beside a pointer to the base. Raises RunError when the disk
        refuses.
        """

    def close(self) -> None: ...


class Crew(Protocol):
    """The workers as the driver sees them: `cluster/crew.py` builds it in this process or on
    Ray.
    """

    learn: Learner  # every rank gets each call; the answer is rank 0's
    version: int  # of the last push

    def push(self, name: str, view: str) -> None:
        """Moves the learner's `view` to every rollout worker as the next version of `name`,
        verified.
        """

    def offer(self, name: str, view: str) -> Callable[[], None]:
        """Exports the state now; what it returns does the rest of a push, in any thread, and in the
        order of offers.
        """

    def resume_night(self, path: str, step: int, steps: int) -> None:
        """Brings learners and rollout workers to where a part of the open night was written, as its
        last push.
        """

    def sample(self, requests_N: list[Request], name: str, how: Sampling) -> list[Sample | Failure]:
        """Samples from the current version of `name` or a newer one, spread over the rollout
        workers, in order.
        """

    def score(self, pairs_N: list[Pair | Failure]) -> tuple[list[float | Failure], Metrics]:
        """(rewards of equation 4, metrics of its parts), in order."""

    def try_out(
        self, trials_N: list[Trial], how: Sampling
    ) -> list[tuple[tuple[int, ...], ...] | Failure]:
        """What an isolated copy of the newest model answers in each trial, in order. The model
        itself stays as it is.
        """

    def attend(self, there: bool) -> None:
        """Starts the workers of model.teachers, which `sample` then finds under `other(k)`, or ends
        them.
        """

    def forget(self) -> None:
        """Drops every cached context of the rollout workers (the reset of the context window)."""

    def close(self) -> None: ...

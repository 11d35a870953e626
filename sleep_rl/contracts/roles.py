"""The Protocols of a run: tasks, workers and the crew, as the driver calls them.

Shape suffixes: `_T` tokens of one sequence, `_N` items of one call.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, Protocol, runtime_checkable

from sleep_rl.contracts.errors import Failure
from sleep_rl.contracts.records import (
    Day,
    DreamTask,
    Lesson,
    LoadReport,
    Metrics,
    Pair,
    Question,
    Request,
    Sample,
    Sampling,
    StepResult,
    TrainingRow,
    TrainingText,
    Trial,
    Weights,
)


class Task(Protocol):
    """The data of a life: days of documents and questions, and grades of answers.

    The model reads context + opener + x + marker + y. In natural language opener and marker are
    empty: model.format chooses the form, and prompts of questions and texts are bare questions.
    """

    name: str
    # Text that teacher and student continue in sleep, e.g. "Q :".
    opener: str
    # End of the generated prompt x inside a sequence, e.g. "A :"; the answer y follows.
    marker: str
    max_new_tokens: int  # of a sequence generated in sleep
    max_answer_tokens: int  # of an answer in evaluation

    def days(self) -> tuple[Day, ...]:
        """Return the days so far, in order."""

    def known(self) -> tuple[Question, ...]:
        """Return questions about what the base model knew before the first day."""

    def grade(self, question: Question, text: str) -> float | Failure:
        """Return the score of an answer in [0, 1]; a Failure if it could not be graded."""

    def sft_texts(self, day: Day) -> tuple[TrainingText, ...]:
        """Return the texts of plain fine-tuning on a day's documents."""

    def joint_texts(self) -> tuple[TrainingText, ...]:
        """Return the texts of joint training: questions of all days and the known, with answers."""

    def base_checkpoint(self, cache: str, seed: int, progress: Any) -> str:
        """Return the path of the task's own base model, trained into `cache` on first use."""


@runtime_checkable
class Rollout(Protocol):
    """A worker that samples from named memory states: a vLLM engine, `actors/rollout.py`."""

    def load(self, weights: Weights) -> LoadReport:
        """Load and verify a pushed version. Raises RunError that names what is missing or wrong;
        the worker never samples from such a version.
        """

    def sample(
        self, requests_N: list[Request], name: str, version: int, sampling: Sampling
    ) -> list[Sample | Failure]:
        """Return one Sample or Failure per request, in order, from `version` of the state `name` or
        a newer one. Raises RunError if the worker has neither.
        """

    def logprobs(
        self, requests_N: list[Request], name: str, version: int
    ) -> list[tuple[float, ...] | Failure]:
        """Return the log-probabilities of each request's prompt_T after its context_T, in nats,
        under `version` of the state `name` or a newer one. Raises as `sample`.
        """

    def begin(self, requests_N: list[Request], name: str, version: int, sampling: Sampling) -> None:
        """Queue requests whose results `more` returns. Raises as `sample`.

        A newer version of `name` may be loaded between calls of `more`: the requests continue with
        it, and their results are withheld until its probe, which runs after them, has passed.
        """

    def more(self, seconds: float) -> list[Sample | Failure] | None:
        """Sample for `seconds`; return the result of `sample` when all are done, else None."""

    def drop_caches(self) -> None:
        """Drop the cached contexts of earlier requests (the keys and values of documents)."""

    def held(self) -> dict[str, int]:
        """Return state name -> newest version that the worker can sample from."""

    def close(self) -> None: ...


@runtime_checkable
class Reward(Protocol):
    """A worker that scores pairs of continuations (equations 4 and 5): `actors/*_reward.py`."""

    def score(self, pairs_N: list[Pair]) -> list[float | Failure]:
        """Return one reward in [0, 1] or Failure per pair, in order."""

    def close(self) -> None: ...


SlotChoice = Literal["next", "next_or_newest", "reuse_newest"]
"""The expert of a level that a night trains. next: one in the next free slot; if none is free,
sleep.on_full decides. next_or_newest: if none is free, the newest expert (baselines). reuse_newest:
the newest expert, if there is one (dreaming policy).
"""


class Trainer(Protocol):
    """Trains the student of a night, and commits or discards it.

    States: idle, night open, dreaming (see DreamSupport). Each call names the state that it
    requires, and raises RunError in any other.
    """

    def wake(self, documents_N: list[tuple[int, ...]]) -> Metrics:
        """Add each document's gradients to every level's open chunk (equation 2). Requires idle."""

    def open_night(
        self, receiver: int, due: tuple[int, ...] = (), slot: SlotChoice = "next"
    ) -> int:
        """Form the student (section 3 a): prospective base experts of the levels in `due`, the
        sender reset, and an expert in level `receiver`; return its slot. Requires idle; then night
        open. Raises InputError if `slot` is "next", none is free, and sleep.on_full is error.
        """

    def seed_step(self, batch_N: list[TrainingRow], step: int, steps: int) -> StepResult:
        """Take optimizer step `step` of `steps` on L_KS (equations 3 to 6). Requires night open.
        Raises RunError if the loss is not finite.
        """

    def sft_step(
        self, batch_N: list[TrainingRow], step: int, steps: int, peak: float | None = None
    ) -> Metrics:
        """Take optimizer step `step` of `steps` on the cross entropy of the completions (x weighs
        objective.prompt_weight), for baselines and dreaming policy. Requires night open. `peak`:
        peak learning rate, None for baselines.lr.
        """

    def commit_night(self) -> None:
        """Make the student the stored memory (section 3 c). Requires night open; then idle."""

    def discard_night(self) -> None:
        """Drop the student. Requires night open or dreaming; then idle."""


class DreamSupport(Protocol):
    """The methods of a learner for dreaming (section 4)."""

    def activate_random_expert(self, seed: int) -> dict[str, int]:
        """Form the state that generates dreams: as STUDENT, each router also activates one random
        expert of its level. Requires idle; then dreaming, until `discard_night`.

        Returns level name -> slot, deterministic in `seed`.
        """

    def gradient_gram(
        self, texts_N: list[tuple[tuple[int, ...], tuple[int, ...]]], whole: bool
    ) -> list[list[float]]:
        """Return the [N, N] inner products of the gradients of N losses with respect to the
        low-rank parameters. Requires idle.

        The loss of a text (prompt_T, completion_T) is the cross entropy of the completion, in nats
        per token. Without `whole` only the diagonal and the last column and row are computed, the
        rest is 0. Raises RunError if no expert is unlocked.
        """

    def rebase_policy_expert(self, tag: str) -> None:
        """Rebase state `tag`: current memory plus its newest trained expert. Requires idle."""


class TeacherHost(Protocol):
    """The methods of a learner for the models of model.teachers, which it keeps frozen."""

    def load_teachers(self, paths: list[str]) -> None:
        """Load these checkpoints as teachers 1, 2, ... of rows. Requires idle."""

    def unload_teachers(self) -> None:
        """Drop all of them. Requires idle."""


class StateStore(Protocol):
    """Memory states by tag: sleep, baselines and dreaming policy share one learner."""

    def save_state(self, tag: str, of: str = "") -> None:
        """Save the memory under `tag`, or make `tag` an alias of tag `of`. Requires idle."""

    def load_state(self, tag: str) -> None:
        """Restore the memory saved under `tag`. Requires idle."""


class Checkpointing(Protocol):
    """Files that a run is resumed from."""

    def save_progress(self, path: str) -> None:
        """Write the state of the open night, and empty the cache of teacher hidden states.
        Requires night open. Raises RunError if it cannot be written.
        """

    def restore_progress(self, path: str, step: int, steps: int) -> None:
        """Restore the open night as saved after `step` of `steps` steps. Requires night open."""

    def save_checkpoint(self, path: str) -> None:
        """Write all that a new learner needs to continue. Requires idle. Raises RunError."""

    def load_checkpoint(self, path: str) -> None:
        """Restore a checkpoint. Requires idle. Raises RunError if it cannot be read."""

    def save_memory(self, path: str) -> None:
        """Write the stored memory and a pointer to the base. Requires idle. Raises RunError."""


class Exporter(Protocol):
    """The export of weights for rollout workers."""

    def export(self, name: str, version: int, have: dict[str, str], view: str) -> Weights:
        """Return the state of `view` (TEACHER or STUDENT) as `version` of state `name`, with the
        tensors whose digest differs from `have` (key -> digest). Allowed in any state.
        """


@runtime_checkable
class Learner(Trainer, DreamSupport, TeacherHost, StateStore, Checkpointing, Exporter, Protocol):
    """A worker that trains: one rank of a DeepSpeed group, `learners/worker.py`. Every rank gets
    every call.
    """

    def close(self) -> None: ...


class Crew(Protocol):
    """All workers of a run behind the methods that the driver calls: `cluster/crew.py`."""

    learn: Learner  # every rank gets each call; the result is that of rank 0
    version: int  # of the last push

    def push(self, name: str, view: str) -> None:
        """Push the learner's `view` (TEACHER or STUDENT) to every rollout worker as the next
        version of state `name`, and wait until all have verified it.
        """

    def push_async(self, name: str, view: str) -> Callable[[], None]:
        """Export the state, and return a function that delivers it. The functions may run in any
        thread, in the order of the exports.
        """

    def restore_progress(self, path: str, step: int, steps: int) -> None:
        """Restore the open night on learners and rollout workers: see Checkpointing."""

    def sample(
        self, requests_N: list[Request], name: str, sampling: Sampling
    ) -> list[Sample | Failure]:
        """Return one Sample or Failure per request, in order, from the current version of state
        `name` or a newer one; the requests are spread over the rollout workers.
        """

    def logprobs(self, requests_N: list[Request], name: str) -> list[tuple[float, ...] | Failure]:
        """Return what Rollout.logprobs does; state CHECKPOINT is the untouched model."""

    def score(self, pairs_N: list[Pair | Failure]) -> tuple[list[float | Failure], Metrics]:
        """Return (reward of equation 4 or Failure per pair, in order; metrics of the parts)."""

    def try_out(
        self, trials_N: list[Trial], sampling: Sampling
    ) -> list[tuple[tuple[int, ...], ...] | Failure]:
        """Return the answers (tokens) of an isolated copy of the newest model, or a Failure, per
        trial, in order. The model itself does not change.
        """

    def start_teachers(self) -> None:
        """Start the workers of model.teachers; their states are named by `peer_name(k)`."""

    def stop_teachers(self) -> None:
        """Stop the workers of model.teachers."""

    def drop_caches(self) -> None:
        """Drop every cached context of the rollout workers (the reset of the context window)."""

    def close(self) -> None: ...


@runtime_checkable
class Dreamer(Protocol):
    """The members that a Task has in addition, if it supports dreaming."""

    dream_opener: str  # text between C and a dream
    max_dream_tokens: int

    def dream_tasks(self, day: Day) -> tuple[DreamTask, ...]:
        """Return the tasks (C, tau) of a day. Raises InputError for an empty C or no question."""

    def lesson(self, task: DreamTask, dream: str) -> Lesson | Failure:
        """Return the training data of a dream, or a Failure with the reason if it has none."""

    def tau(self, task: DreamTask, answers: list[str]) -> float | Failure:
        """Return tau in [0, 1] of the answers to the task's questions, in order, or a Failure."""

    def deeper(self, day: Day) -> dict[str, tuple[Question, ...]]:
        """Return kind -> questions about the day that its documents do not answer literally."""


@runtime_checkable
class Critic(Protocol):
    """A worker that runs trials on isolated copies (section 4, step 3): `actors/critic.py`."""

    def load(self, weights: Weights) -> LoadReport:
        """Load a pushed version, as Rollout.load; copies are made of the newest one."""

    def try_out(
        self, trials_N: list[Trial], name: str, version: int, sampling: Sampling
    ) -> list[tuple[tuple[int, ...], ...] | Failure]:
        """Return the answers (tokens) of each trial's copy to its questions, or a Failure, in
        order. The model itself does not change.
        """

    def digest(self) -> str:
        """Return a digest of all weights that a copy could change."""

    def held(self) -> dict[str, int]:
        """Return state name -> newest version, as Rollout.held."""

    def drop_caches(self) -> None:
        """Drop cached contexts, as Rollout.drop_caches."""

    def close(self) -> None: ...

"""One Protocol per role of a run: what the driver asks of tasks, workers and the crew.

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
    """What a model lives through: days of documents and questions.

    The model reads context + opener + x + marker + y. In natural language opener and marker are
    empty: model.format chooses the form, and prompts of questions and texts are bare questions.
    """

    name: str
    # What teacher and student continue in sleep, e.g. "Q :"; the model writes the rest itself.
    opener: str
    # Ends the self-made prompt x inside a written sequence, e.g. "A :"; the answer y follows.
    marker: str
    max_new_tokens: int  # of a sequence written in sleep
    max_answer_tokens: int  # of an answer in evaluation

    def days(self) -> tuple[Day, ...]:
        """Return the days so far, in order."""

    def known(self) -> tuple[Question, ...]:
        """Return questions about what the base model knew before the first day."""

    def grade(self, question: Question, text: str) -> float | Failure:
        """Return the score of an answer in [0, 1]; a Failure if it could not be graded."""

    def sft_texts(self, day: Day) -> tuple[TrainingText, ...]:
        """Return the texts of plain fine-tuning on the day's material."""

    def joint_texts(self) -> tuple[TrainingText, ...]:
        """Return the texts of joint training: every day and the known, with the true answers."""

    def base_checkpoint(self, cache: str, seed: int, progress: Any) -> str:
        """Return the path of the task's own base model, trained into `cache` on first use."""


@runtime_checkable
class Rollout(Protocol):
    """Samples from named weight states (a vLLM engine in `actors/rollout.py`)."""

    def load(self, weights: Weights) -> LoadReport:
        """Take a pushed version. Raises RunError naming what is missing or wrong; that version is
        never sampled from.
        """

    def sample(
        self, requests_N: list[Request], name: str, version: int, sampling: Sampling
    ) -> list[Sample | Failure]:
        """Return one Sample or Failure per request, in order, from `version` of the state `name` or
        a newer one. Raises RunError when neither is held.
        """

    def logprobs(
        self, requests_N: list[Request], name: str, version: int
    ) -> list[tuple[float, ...] | Failure]:
        """Return the log-probabilities of each request's prompt_T behind its context_T, in nats,
        under `version` of the state `name` or a newer one. Raises as `sample`.
        """

    def begin(self, requests_N: list[Request], name: str, version: int, sampling: Sampling) -> None:
        """Queue what `sample` does in one call. Raises as `sample`.

        Between calls of `more` a newer version of `name` may be loaded: the requests continue with
        it, and are held back until its probe, which is checked behind them, has passed.
        """

    def more(self, seconds: float) -> list[Sample | Failure] | None:
        """Sample for so long. Return what `sample` does once all requests are done, else None."""

    def forget(self) -> None:
        """Drop the cached contexts of earlier requests (the keys and values of documents)."""

    def held(self) -> dict[str, int]:
        """Return state name -> version that can be sampled from now."""

    def close(self) -> None: ...


@runtime_checkable
class Reward(Protocol):
    """Scores pairs of continuations (equations 4 and 5): `actors/*_reward.py`."""

    def score(self, pairs_N: list[Pair]) -> list[float | Failure]:
        """Return one value in [0, 1] per pair, in order; a Failure for what cannot be scored."""

    def close(self) -> None: ...


SlotChoice = Literal["next", "next_or_newest", "reuse_newest"]
"""Which expert of a level a night trains. next: that of the next free slot; where none is free
sleep.on_full decides. next_or_newest: where none is free, the newest expert (baselines).
reuse_newest: the newest expert, if there is one (the dreaming policy).
"""


class Trainer(Protocol):
    """Consolidates: opens a night, trains the student in it, keeps or drops what came of it.

    States: idle, night open, dreaming (see DreamSupport). A call in another state than the one it
    names raises RunError.
    """

    def wake(self, documents_N: list[tuple[int, ...]]) -> Metrics:
        """Take one wake step per document: its gradients join the open chunk of every level
        (equation 2). Idle.
        """

    def open_night(
        self, receiver: int, due: tuple[int, ...] = (), slot: SlotChoice = "next"
    ) -> int:
        """Form the student (section 3 a): prospective own weights of the levels in `due`, the
        sender reset, one more expert in level `receiver`. Idle; a night is open then.

        `slot`: which slot the expert takes; its number is returned. Raises InputError when it is
        "next", none is free, and sleep.on_full is error.
        """

    def seed_step(self, batch_N: list[TrainingRow], step: int, steps: int) -> StepResult:
        """Take one optimizer step on L_KS (equations 3 to 6). Night open. Raises RunError on a loss
        that is not finite.
        """

    def sft_step(
        self, batch_N: list[TrainingRow], step: int, steps: int, peak: float | None = None
    ) -> Metrics:
        """Take one optimizer step of cross entropy on the completions, for baselines and dreaming
        policy. Night open. `peak`: learning rate, if not baselines.lr.
        """

    def commit_night(self) -> None:
        """Update (section 3 c): the student becomes the stored memory. Night open; idle then."""

    def discard_night(self) -> None:
        """Drop the student. Night open or dreaming; idle then."""


class DreamSupport(Protocol):
    """What dreaming asks of a learner (section 4)."""

    def activate_random_expert(self, seed: int) -> dict[str, int]:
        """Form the state that dreams: as STUDENT, each router also activates one random expert of
        its level. Idle; dreaming then, until `discard_night`.

        Returns level name -> slot; the same for the same seed.
        """

    def gradient_gram(
        self, texts_N: list[tuple[tuple[int, ...], tuple[int, ...]]], whole: bool
    ) -> list[list[float]]:
        """Return [N, N] inner products of the gradients of each text's loss over the low-rank
        parameters. A text is (prompt_T, completion_T), its loss the completion's cross entropy in
        nats per token. Idle.

        Without `whole` only the diagonal and the products with the last text; the rest is 0. Raises
        RunError while no expert is unlocked.
        """

    def rebase_policy_expert(self, tag: str) -> None:
        """Rebase the state saved under `tag`: current memory plus that state's most recently
        trained expert. Idle.
        """


class TeacherHost(Protocol):
    """Holds the models of model.teachers beside its own, frozen."""

    def load_teachers(self, paths: list[str]) -> None:
        """Load these checkpoints; rows may name them as teacher 1, 2, ... from now on."""

    def unload_teachers(self) -> None:
        """Drop them."""


class StateStore(Protocol):
    """Memory states by tag: sleep, baselines and dreaming policy share one learner."""

    def save_state(self, tag: str, of: str = "") -> None:
        """Save the memory under `tag`, or make `tag` another name of state `of`. Idle."""

    def load_state(self, tag: str) -> None:
        """Put the memory saved under `tag` back. Idle."""


class Checkpointing(Protocol):
    """What survives the process."""

    def save_progress(self, path: str) -> None:
        """Write what the open night has come to, and empty the teacher's cache. Night open. Raises
        RunError.
        """

    def restore_progress(self, path: str, step: int, steps: int) -> None:
        """Take back what was written after `step` of `steps` steps. Night open."""

    def save_checkpoint(self, path: str) -> None:
        """Write all that a new learner needs to go on. Idle. Raises RunError."""

    def load_checkpoint(self, path: str) -> None:
        """Take a checkpoint back. Idle. Raises RunError when it cannot be read."""

    def save_memory(self, path: str) -> None:
        """Write the stored memory beside a pointer to the base. Raises RunError when the disk
        refuses.
        """


class Exporter(Protocol):
    """Gives weights to the rollout workers."""

    def export(self, name: str, version: int, have: dict[str, str], view: str) -> Weights:
        """Return the state of `view` (TEACHER or STUDENT) under `name`, with tensors only where
        `have` (key -> digest) differs.
        """


@runtime_checkable
class Learner(Trainer, DreamSupport, TeacherHost, StateStore, Checkpointing, Exporter, Protocol):
    """Changes weights: `learners/worker.py`. One process of a DeepSpeed group; every rank gets
    every call.
    """

    def close(self) -> None: ...


class Crew(Protocol):
    """The workers as the driver sees them: `cluster/crew.py` builds it in this process or on
    Ray.
    """

    learn: Learner  # every rank gets each call; the answer is rank 0's
    version: int  # of the last push

    def push(self, name: str, view: str) -> None:
        """Push the learner's `view` (TEACHER or STUDENT) to every rollout worker as the next
        version of the state `name`, and wait until all have verified it.
        """

    def push_async(self, name: str, view: str) -> Callable[[], None]:
        """Export the state now. The returned call delivers it; it may run in any thread, in the
        order of the exports.
        """

    def restore_progress(self, path: str, step: int, steps: int) -> None:
        """Bring learners and rollout workers to where progress inside the open night was saved."""

    def sample(
        self, requests_N: list[Request], name: str, sampling: Sampling
    ) -> list[Sample | Failure]:
        """Sample from the current version of state `name` or a newer one, spread over the rollout
        workers; results are in order.
        """

    def logprobs(self, requests_N: list[Request], name: str) -> list[tuple[float, ...] | Failure]:
        """Return what Rollout.logprobs does; state CHECKPOINT is the untouched model."""

    def score(self, pairs_N: list[Pair | Failure]) -> tuple[list[float | Failure], Metrics]:
        """Return (rewards of equation 4 in order, metrics of their parts)."""

    def try_out(
        self, trials_N: list[Trial], sampling: Sampling
    ) -> list[tuple[tuple[int, ...], ...] | Failure]:
        """Return what an isolated copy of the newest model answers in each trial, in order. The
        model itself does not change.
        """

    def start_teachers(self) -> None:
        """Start the workers of model.teachers, which `sample` then finds under `peer_name(k)`."""

    def stop_teachers(self) -> None:
        """End them."""

    def forget(self) -> None:
        """Drop every cached context of the rollout workers (the reset of the context window)."""

    def close(self) -> None: ...


@runtime_checkable
class Dreamer(Protocol):
    """What a Task has in addition if it can be dreamed about."""

    dream_opener: str  # between C and a dream
    max_dream_tokens: int

    def dream_tasks(self, day: Day) -> tuple[DreamTask, ...]:
        """Return the tasks of a day. Raises InputError for an empty C or no question."""

    def lesson(self, task: DreamTask, dream: str) -> Lesson | Failure:
        """Return what a dream teaches, or a Failure that says why it teaches nothing."""

    def tau(self, task: DreamTask, answers: list[str]) -> float | Failure:
        """Return the score in [0, 1] of the answers to the task's questions, in order."""

    def deeper(self, day: Day) -> dict[str, tuple[Question, ...]]:
        """Return form -> questions about the day that its documents do not answer as they stand."""


@runtime_checkable
class Critic(Protocol):
    """Tries dreams out on isolated copies of the model (section 4, step 3): `actors/critic.py`."""

    def load(self, weights: Weights) -> LoadReport:
        """Take a pushed version as Rollout.load does: copies are made of the newest one."""

    def try_out(
        self, trials_N: list[Trial], name: str, version: int, sampling: Sampling
    ) -> list[tuple[tuple[int, ...], ...] | Failure]:
        """Return the tokens that each trial's copy answers to each of its questions, in order. The
        model itself stays as it is.
        """

    def digest(self) -> str:
        """Return a digest of everything that a copy could have changed."""

    def held(self) -> dict[str, int]:
        """Return state name -> version, as Rollout.held."""

    def forget(self) -> None:
        """Drop cached contexts, as Rollout.forget."""

    def close(self) -> None: ...

"""One Protocol per role of a run: what the driver asks of tasks, workers and the crew.

Shape suffixes: `_T` tokens of one sequence, `_N` items of one call.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol, runtime_checkable

from sleep_rl.contracts.errors import Failure
from sleep_rl.contracts.records import (
    Day,
    DreamTask,
    Lesson,
    Loaded,
    Metrics,
    Pair,
    Question,
    Request,
    Sample,
    Sampling,
    Sequence,
    Text,
    Trial,
    Weights,
)


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


@runtime_checkable
class Reward(Protocol):
    """Scores pairs: `actors/semantic_reward.py`. A value lies in [0, 1]; what cannot be scored is a
    Failure.
    """

    def score(self, pairs_N: list[Pair]) -> list[float | Failure]: ...

    def close(self) -> None: ...


@runtime_checkable
class Learner(Protocol):
    """Changes weights: `learners/worker.py`. One process of a DeepSpeed group; every rank gets
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


@runtime_checkable
class Dreamer(Protocol):
    """What a Task has beside, if it can be dreamed about."""

    dream_opener: str  # what stands between C and a dream
    max_dream_tokens: int

    def dream_tasks(self, day: Day) -> tuple[DreamTask, ...]:
        """The tasks of a day. An empty C or no question is refused with InputError."""

    def lesson(self, task: DreamTask, dream: str) -> Lesson | Failure:
        """What a dream teaches, or why it teaches nothing (empty, not the form that is needed)."""

    def tau(self, task: DreamTask, answers: list[str]) -> float | Failure:
        """Score in [0, 1] of the answers to the task's questions, in order."""

    def deeper(self, day: Day) -> dict[str, tuple[Question, ...]]:
        """Form -> questions about the day that its documents do not answer as they stand; evaluated
        beside the days.
        """


@runtime_checkable
class Critic(Protocol):
    """Tries dreams out on isolated copies: `actors/critic.py`."""

    def load(self, weights: Weights) -> Loaded:
        """As Rollout.load: copies are made of the newest version."""

    def try_out(
        self, trials_N: list[Trial], name: str, version: int, how: Sampling
    ) -> list[tuple[tuple[int, ...], ...] | Failure]:
        """The tokens that each trial's copy answers to each of its questions, in order. The model
        itself stays as it is.
        """

    def digest(self) -> str:
        """Digest of everything that a copy could have changed."""

    def held(self) -> dict[str, int]:
        """As Rollout.held."""

    def forget(self) -> None:
        """As Rollout.forget."""

    def close(self) -> None: ...

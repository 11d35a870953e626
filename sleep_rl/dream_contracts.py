"""Records and Protocols of dreaming (paper.md section 4), beside those of `contracts`. Pure data:
no torch, no Ray.

Shapes are written in suffix letters: `_T` tokens of one sequence, `_N` items of one call.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from sleep_rl.contracts import Day, Document, Failure, Loaded, Question, Sampling, Text, Weights


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
    """What a dream asks for when it is learned: texts, and how an isolated copy is trained on
    them.
    """

    texts: tuple[Text, ...]
    lr: float | None = None  # None: dream.inner_lr
    epochs: int | None = None  # None: dream.inner_epochs


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

"""Named stages of a run, each executed once and followed by a checkpoint.

A stage is a function of the driver under `@stage("wake/{night}", ...)` that returns plain data. Its
randomness depends on the seed and the night only, so that an interrupted stage gives the same
result when it runs again. `session.stage_files` describes the files.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

from sleep_rl.config.schema import Config
from sleep_rl.contracts.errors import RunError
from sleep_rl.contracts.roles import Crew
from sleep_rl.journal.journal import Journal
from sleep_rl.session.rehearsal_index import RehearsalIndex
from sleep_rl.session.stage_files import Checkpoint, Partial, StageFiles


class Resumable(Protocol):
    """The parts of a run that a checkpoint contains; implemented by `RunContext`."""

    config: Config
    crew: Crew
    journal: Journal
    index: RehearsalIndex
    progress: Progress


@dataclass(frozen=True)
class StageKind:
    """Properties that the stages of one function share, in all nights."""

    # the config key that decides whether a run has such stages, or the function that returns it;
    # empty: every run has them
    switch: str | Callable[[Config], str]
    optional: bool  # a run may have none

    def key(self, config: Config) -> str:
        """Return the key that decides in a run of `config`."""
        return self.switch if isinstance(self.switch, str) else self.switch(config)


KINDS: dict[str, StageKind] = {}
"""First part of a stage's name -> its kind; filled by the decorator."""


def stage(
    name: str,
    *,
    switch: str | Callable[[Config], str],
    optional: bool = False,
    when: Callable[[Config], bool] | None = None,
) -> Callable:
    """Decorate a function of the driver as a resumable stage.

    `name` is a template over the function's arguments, e.g. "consolidate/{night}/{sender}".
    `switch`: the config key that decides whether a run has the stage, for error messages, or
    switch(config) -> key; empty: every run has it.
    `optional`: a run may not have it. `when(config)`: if False, the call returns None. A call
    inside another stage is an ordinary call.
    """
    KINDS[_first(name)] = StageKind(switch, optional or when is not None)

    def decorate(body: Callable[..., Any]) -> Callable[..., Any]:
        signature = inspect.signature(body)

        @functools.wraps(body)
        def once(run: Any, *args: Any, **kwargs: Any) -> Any:
            if when is not None and not when(run.config):
                return None
            bound = signature.bind(run, *args, **kwargs)
            bound.apply_defaults()
            full_name = name.format(**bound.arguments)
            return run.progress.once(run, full_name, functools.partial(body, run, *args, **kwargs))

        return once

    return decorate


class Progress:
    """The finished stages of a run, by name, with their results."""

    def __init__(self, folder: str | None = None):
        """Create the progress of a new run; `folder` None: no checkpoints are written."""
        self.files = StageFiles(folder) if folder else None
        self.results: dict[str, Any] = {}  # stage -> result, in order of execution
        self.partial: Partial | None = None  # checkpoint inside the next stage, to resume from
        self._used: set[str] = set()  # names of `results` that this process has asked for
        self._open = ""  # name of the stage that is running

    def restore(self, checkpoint: Checkpoint) -> None:
        """Continue after the stages of `checkpoint`."""
        self.results = dict(checkpoint.results)
        self.partial = checkpoint.partial

    def once(self, run: Resumable, name: str, body: Callable[[], Any]) -> Any:
        """Return the saved result of stage `name`, or run `body` and checkpoint its result.

        Raises RunError if the checkpoint has a stage that this run does not have, or lacks an
        earlier one.
        """
        if self._open:  # inside another stage
            return body()
        if name in self.results:
            self._used.add(name)
            return self.results[name]
        self._check_next(run.config, name)
        # Every stage begins with empty caches, so that a resumed run computes the same.
        run.crew.drop_caches()
        self._open = name
        try:
            result = body()
        finally:
            self._open = ""
            self.partial = None
        self.results[name] = result
        self._used.add(name)
        if self.files:
            self.files.write_checkpoint(run, name, self.results)
        return result

    def save_partial(self, run: Resumable, step: int, state: dict) -> None:
        """Write a checkpoint inside the running stage, after `step` optimizer steps.

        `state`: plain data of the stage, which it gets back in `partial` when it resumes.
        """
        if self.files:
            self.files.write_partial(run, self._open, len(self.results), step, state)

    def finish(self, config: Config) -> None:
        """Raise RunError if the checkpoint has a stage that the finished run did not have."""
        self._check_next(config, "")

    def _check_next(self, config: Config, name: str) -> None:
        """Raise RunError if stage `name` (empty: the end of the run) must not come next."""
        done = list(self.results)
        unused = [other for other in done if other not in self._used]
        last_used = max((done.index(other) for other in self._used), default=-1)
        skipped = [other for other in unused if done.index(other) < last_used]
        if skipped or (unused and (not name or (not _optional(name) and _optional(unused[0])))):
            raise _unknown(config, (skipped or unused)[0])
        if unused:
            raise _missing(config, name, done[-1])
        if self.partial and self.partial.stage != name:
            raise RunError(
                f"{self.partial.learner}: belongs to stage {self.partial.stage}, but the next "
                f"stage is {name or 'none'}; remove its folder to run that stage from its start"
            )


def _unknown(config: Config, name: str) -> RunError:
    key = _key(config, name)
    if not key:
        return RunError(
            f"resume: the checkpoint has stage {name}, which this version does not know: another "
            "version wrote it; resume with that one, or begin a new run"
        )
    return RunError(
        f"resume: the checkpoint has stage {name}, but this config does not: {key} had another "
        "value when it ran; restore that value, or begin a new run"
    )


def _missing(config: Config, name: str, newest: str) -> RunError:
    what = f"resume: stage {name} is missing in the checkpoint, whose newest stage is {newest}"
    key = _key(config, name)
    if not key:
        return RunError(
            f"{what}: another version wrote it; resume with that one, or begin a new run"
        )
    return RunError(
        f"{what}: {key} had another value when it should have run; restore that value, or begin a "
        "new run"
    )


def _first(name: str) -> str:
    return name.partition("/")[0]


def _key(config: Config, name: str) -> str:
    """Return the config key that decides whether a run has the stage; empty if none does."""
    kind = KINDS.get(_first(name))
    return kind.key(config) if kind else ""


def _optional(name: str) -> bool:
    kind = KINDS.get(_first(name))
    return kind is None or kind.optional

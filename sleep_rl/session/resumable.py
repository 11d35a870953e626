"""Stages of a life: each is done once, has a name, and is followed by a checkpoint.

A stage is a function of the driver under `@stage("wake/{night}", ...)`; its result is plain data.
All randomness in a stage comes from the seed and the night's number, so a stage that was cut off
runs again with the same result. `session.stage_files` says what lies on disk.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

from sleep_rl.contracts.errors import RunError
from sleep_rl.contracts.roles import Crew
from sleep_rl.journal.journal import Journal
from sleep_rl.session.rehearsal_index import RehearsalIndex
from sleep_rl.session.stage_files import Checkpoint, Partial, StageFiles


class Resumable(Protocol):
    """What a checkpoint is made of; `session.context.RunContext` has it."""

    crew: Crew
    journal: Journal
    index: RehearsalIndex
    progress: Progress


@dataclass(frozen=True)
class StageKind:
    """What the stages of one name have in common, whatever night they belong to."""

    switch: str  # config keys that decide whether a life has such stages
    optional: bool  # a key switches them on and off


KINDS: dict[str, StageKind] = {}
"""First part of a stage's name -> its kind; filled by the decorator."""


def stage(
    name: str,
    *,
    switch: str,
    optional: bool = False,
    when: Callable[[Any], bool] | None = None,
) -> Callable:
    """Make a function of the driver a resumable stage.

    `name` is a template over the function's arguments, e.g. "consolidate/{night}/{sender}".
    `switch` names the config keys that decide whether a life has the stage, for error messages.
    `optional`: some lives do not have it. `when(config)`: if False, this one does not, and the call
    returns None. Inside another stage it is an ordinary call.
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
    """The stages that a life has done, by name, with their results."""

    def __init__(self, folder: str | None = None):
        """`folder`: of the run; None: nothing is written."""
        self.files = StageFiles(folder) if folder else None
        self.results: dict[str, Any] = {}  # in the order in which they were done
        self.partial: Partial | None = None  # of the next stage, from which it resumes
        self._used: set[str] = set()  # names of `results` that this process has asked for
        self._open = ""  # name of the stage that is being done

    def restore(self, checkpoint: Checkpoint) -> None:
        """Continue behind a checkpoint."""
        self.results = dict(checkpoint.results)
        self.partial = checkpoint.partial

    def once(self, run: Resumable, name: str, body: Callable[[], Any]) -> Any:
        """Return the result of stage `name`: the saved one, or that of doing it now.

        Raises RunError when the checkpoint holds a stage that this life does not have, or lacks one
        that it should hold.
        """
        if self._open:  # inside another stage
            return body()
        if name in self.results:
            self._used.add(name)
            return self.results[name]
        self._check_next(name)
        # A stage begins with empty caches, so that a resumed life computes the same.
        run.crew.forget()
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
        """Write how far the open stage is after `step` optimizer steps.

        `state`: plain data of the stage's own, which it finds in `partial` when it resumes.
        """
        if self.files:
            self.files.write_partial(run, self._open, len(self.results), step, state)

    def finish(self) -> None:
        """Raise RunError if the checkpoint holds a stage that the finished life does not have."""
        self._check_next("")

    def _check_next(self, name: str) -> None:
        """Refuse to do stage `name` now if that does not fit what was done before."""
        done = list(self.results)
        unused = [other for other in done if other not in self._used]
        last_used = max((done.index(other) for other in self._used), default=-1)
        passed_over = [other for other in unused if done.index(other) < last_used]
        if passed_over or (unused and (not name or (not _optional(name) and _optional(unused[0])))):
            raise _unknown((passed_over or unused)[0])
        if unused:
            raise _missing(name, done[-1])
        if self.partial and self.partial.stage != name:
            raise RunError(
                f"{self.partial.learner}: belongs to stage {self.partial.stage}, but the next "
                "stage "
                f"is {name or 'none'}; remove its folder to do that from the beginning"
            )


def _unknown(name: str) -> RunError:
    return RunError(
        f"resume: the checkpoint holds stage {name}, which this life does not have now: "
        f"{_switch(name)} had another value when it was done; set it as it was, or begin a new run"
    )


def _missing(name: str, newest: str) -> RunError:
    return RunError(
        f"resume: stage {name} is missing in the checkpoint, which stands behind {newest}: "
        f"{_switch(name)} had another value when this life passed there; set it as it was, or "
        "begin a new run"
    )


def _first(name: str) -> str:
    return name.partition("/")[0]


def _switch(name: str) -> str:
    """The config keys behind a stage; a name from another version of this package has none."""
    kind = KINDS.get(_first(name))
    return kind.switch if kind else "a key that this version does not know"


def _optional(name: str) -> bool:
    kind = KINDS.get(_first(name))
    return kind is None or kind.optional

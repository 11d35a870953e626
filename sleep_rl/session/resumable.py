"""What survives a kill: a life is a sequence of stages, each done once, with a checkpoint behind
it.

A stage is a function decorated by `stage`: wake, one consolidation, one evaluation, one baseline's
night. All randomness inside one comes from the seed and the night's number, so a stage that was cut
off is done again from its beginning with the same result. A checkpoint is <run>/state/<number of
stages done>: the learner's memories, the driver's results and index, and, written last, a manifest
with the digest of both; whatever has no sound manifest is no checkpoint. A stage that takes long
writes parts, <run>/state/<number of stages done>-<step>, in the same way: what has come since the
checkpoint of that number, from which it then goes on.
"""

from __future__ import annotations

import functools
import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sleep_rl.contracts.errors import RunError
from sleep_rl.files import JSON_BYTES, parsed, regular
from sleep_rl.night.rehearsal import RehearsalIndex

if TYPE_CHECKING:
    from sleep_rl.session.context import RunContext

LEARNER, DRIVER, MANIFEST = "learner.safetensors", "driver.json", "manifest.json"
NAME = r"[0-9]{6,}"  # of a checkpoint's folder: how many stages were done
# of a part's folder: how many stages were done, and steps of the next
PART = r"([0-9]{6,})-([0-9]{6,})"
KEPT = 2  # checkpoints; the one before the newest stays for a disk that lies


def stage(body: Callable[..., Any]) -> Callable[..., Any]:
    """Marks a step of the driver that is done once in a life; its result must be plain data. Inside
    another stage it is an ordinary call.
    """

    @functools.wraps(body)
    def once(run: RunContext, *args: Any, **kwargs: Any) -> Any:
        return run.progress.once(run, functools.partial(body, run, *args, **kwargs), body.__name__)

    return once


class Progress:
    """How far a life is. `results` of the stages done so far come from a checkpoint when a life is
    continued.
    """

    def __init__(self, folder: str | None = None, results: list[Any] | None = None):
        self.folder = Path(folder) / "state" if folder else None  # None: nothing is kept
        self.results = list(results or [])
        self.part: Part | None = None  # from which the stage that comes next goes on
        self._reached, self._name = 0, ""

    def once(self, run: RunContext, body: Callable[[], Any], name: str) -> Any:
        """The result of the next stage: remembered, or of doing it now and writing a checkpoint."""
        if self._name:  # inside another stage
            return body()
        self._reached += 1
        if self._reached <= len(self.results):
            return self.results[self._reached - 1]
        if self.part and self.part.stage != name:
            raise RunError(
                f"{self.part.learner}: it is of a stage {self.part.stage}, and what "
                f"comes is {name}; remove its folder "
                "to do that from the beginning"
            )
        # a stage begins with empty caches, also the first one of a continued life
        run.crew.forget()
        self._name = name
        try:
            result = body()
        finally:
            self._name, self.part = "", None
        self.results.append(result)
        if self.folder:
            self._write(
                run,
                f"{len(self.results):06d}",
                run.crew.learn.save_checkpoint,
                {"stage": name, "results": self.results},
            )
            for old in _complete(self.folder)[:-KEPT] + list(_parts(self.folder)):
                shutil.rmtree(old, ignore_errors=True)
        return result

    def write_part(self, run: RunContext, step: int, state: dict) -> None:
        """What the stage that is being done, an open night, has come to after `step` steps.
        `state`: plain data of the stage's own, which it finds in `part` when it goes on from here.
        """
        if not self.folder:
            return
        count = len(self.results)
        self._write(
            run,
            f"{count:06d}-{step:06d}",
            run.crew.learn.save_progress,
            {"stage": self._name, "state": state},
        )
        for old in list(_parts(self.folder, count))[:-1]:
            shutil.rmtree(old, ignore_errors=True)

    def _write(
        self, run: RunContext, name: str, learner: Callable[[str], None], driver: dict
    ) -> None:
        """Writes a checkpoint or a part aside, its manifest last, and renames it into place."""
        target = self.folder / name
        aside = target.with_suffix(".partial")
        try:
            shutil.rmtree(aside, ignore_errors=True)
            aside.mkdir(parents=True)
            learner(str((aside / LEARNER).absolute()))
            driver |= {
                "index": run.index.state(),
                "version": run.crew.version,
                "journal": run.journal.size(),
            }
            _write(aside / DRIVER, json.dumps(driver).encode())
            manifest = {file: _digest(aside / file) for file in (LEARNER, DRIVER)}
            _write(aside / MANIFEST, json.dumps(manifest).encode())
            shutil.rmtree(target, ignore_errors=True)
            os.rename(aside, target)
            _sync(self.folder)
        except OSError as error:
            raise RunError(
                f"checkpoint {target}: cannot be written ({error.strerror or error}); "
                "earlier ones are "
                "intact"
            ) from error


@dataclass(frozen=True)
class Part:
    """How far a stage was when it was cut off: what its learner and its driver wrote then."""

    stage: str
    step: int
    learner: str  # absolute path of what Learner.save_progress wrote
    state: dict


def newest(folder: str) -> tuple[Path, dict, Part | None] | None:
    """(checkpoint, the driver's state, the newest part of the stage behind it) of the newest
    complete checkpoint of a run; None for a run that has none yet. With a part index, version and
    journal are those of the part. Raises RunError where there are checkpoints and none is sound: to
    begin anew would write over what that life has saved.
    """
    found = _complete(Path(folder) / "state")
    for path in reversed(found):
        driver = _sound(path, {"results": list})
        if driver is None:
            continue  # cut off or damaged: the one before it counts
        for inner in reversed(list(_parts(path.parent, int(path.name)))):
            more = _sound(inner, {"state": dict})
            if more is not None:
                part = Part(
                    more["stage"],
                    int(inner.name.split("-")[1]),
                    str((inner / LEARNER).absolute()),
                    more["state"],
                )
                return (
                    path,
                    driver | {key: more[key] for key in ("index", "version", "journal")},
                    part,
                )
        return path, driver, None
    if found:
        raise RunError(
            f"{folder}: expected a sound checkpoint in {Path(folder) / 'state'}, got "
            f"{len(found)} damaged ones; "
            "remove them to begin the life anew, which writes over its record"
        )
    return None


def _sound(path: Path, own: dict[str, type]) -> dict | None:
    """The driver's state in a checkpoint or part, as `Progress` wrote it; None for what is
    incomplete or damaged. `own`: key -> type, beside what both hold.
    """
    try:
        manifest = parsed(path / MANIFEST, JSON_BYTES)
        if any(_digest(path / file) != manifest[file] for file in (LEARNER, DRIVER)):
            return None
        driver = parsed(path / DRIVER)
        kinds = {"stage": str, "index": dict, "version": int, "journal": int, **own}
        if not isinstance(driver, dict) or any(
            type(driver.get(name)) is not kind for name, kind in kinds.items()
        ):
            return None
        RehearsalIndex().restore(driver["index"])
        return driver if driver["journal"] >= 0 and driver["version"] >= 0 else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _complete(folder: Path) -> list[Path]:
    """Folders that were renamed into place, oldest first."""
    if not os.path.isdir(folder):
        return []
    return sorted(
        path for path in folder.iterdir() if re.fullmatch(NAME, path.name) and os.path.isdir(path)
    )


def _parts(folder: Path, stages: int | None = None) -> Iterator[Path]:
    """Parts that were renamed into place, in order; of the stage behind `stages` done ones, if
    given.
    """
    inside = sorted(folder.iterdir()) if os.path.isdir(folder) else []
    for path in inside:
        match = re.fullmatch(PART, path.name)
        if match and os.path.isdir(path) and stages in (None, int(match[1])):
            yield path


def _digest(path: Path) -> str:
    with regular(path) as file:
        return hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=16)).hexdigest()


def _write(path: Path, content: bytes) -> None:
    with open(path, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def _sync(folder: Path) -> None:
    """A rename lasts only when its folder is synced, too."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)

"""`sleep-rl logs RUN`: what each worker of a run printed, with Ray, vLLM and DeepSpeed in its
process. Its file is <run>/logs/<worker>.log, on the worker's node.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from difflib import get_close_matches
from pathlib import Path

from sleep_rl.contracts.errors import InputError
from sleep_rl.journal.text import aligned, without_terminal_codes
from sleep_rl.runs.run_dir import FILE, held

BLOCK = 1 << 16
POLL_S = 0.2
WIDEST = 100  # letters of a last line in the list


def listing(run: str) -> str:
    """Return a table: the workers of a run, how much each printed, and its last line. Raises
    InputError when there is none.
    """
    rows = [["actor", "bytes", "last line"]]
    for name, path in sorted(_files(run).items()):
        last = [line for line in _last(path, 20) if line.strip()][-1:]
        rows.append(
            [name, f"{path.stat().st_size:,}", *(line[:WIDEST] for line in last)]
            + [""] * (not last)
        )
    return aligned(rows)


def lines(run: str, actor: str, most: int, follow: bool = False) -> Iterator[str]:
    """Yield the last `most` lines of a worker's log; with `follow` also what it prints until the
    run ends. Raises InputError for a worker that the run does not have.
    """
    files = _files(run)
    if actor not in files:
        near = get_close_matches(actor, files, n=1, cutoff=0.0)[0]
        raise InputError(
            f"--actor: one of {', '.join(sorted(files))}, got {actor!r}; did you mean {near}?"
        )
    if most < 0:
        raise InputError(f"--lines: at least 0, got {most}")
    path = files[actor]
    size = path.stat().st_size
    if follow:  # a line that is only half there comes once, when it is whole
        size -= len(_tail(path, size))
    yield from _last(path, most, size)
    if follow:
        yield from _coming(Path(run), path, size)


def _files(run: str) -> dict[str, Path]:
    folder = Path(run)
    if not (folder / FILE).is_file() and not (folder / "metrics.jsonl").is_file():
        raise InputError(f"{run}: expected the folder of a run, with {FILE} or metrics.jsonl in it")
    found = {path.stem: path for path in (folder / "logs").glob("*.log") if path.is_file()}
    if not found:
        raise InputError(
            f"{run}: no logs; workers on Ray (cluster.backend=ray) write some, in {folder / 'logs'}"
        )
    return found


def _last(path: Path, most: int, end: int | None = None) -> list[str]:
    """Return the last `most` lines before byte `end` (None: of the file), as a terminal shows
    them.
    """
    data = _tail(path, path.stat().st_size if end is None else end, most)
    found = data.removesuffix(b"\n").split(b"\n") if data else []
    return [_plain(line) for line in found[max(len(found) - most, 0) :]]


def _tail(path: Path, end: int, most: int = 0) -> bytes:
    """Return the bytes before `end`: at least `most` whole lines (if there are so many) and one
    without an end. Read backwards, however long the file is.
    """
    data = b""
    at = end
    with open(path, "rb") as file:
        while at > 0 and data.count(b"\n") <= most:
            begin = max(at - BLOCK, 0)
            file.seek(begin)
            data = file.read(at - begin) + data
            at = begin
    return data if most else data.rpartition(b"\n")[2]


def _coming(run: Path, path: Path, at: int) -> Iterator[str]:
    """Yield what is printed from byte `at` on, until no process works in the run any more."""
    rest = b""
    while True:
        lives = held(run)  # before reading: what was written until then is still shown
        with open(path, "rb") as file:
            if os.fstat(file.fileno()).st_size < at:
                at = 0  # begun anew
                rest = b""
            file.seek(at)
            new = file.read()
        at += len(new)
        *whole, rest = (rest + new).split(b"\n")
        yield from map(_plain, whole)
        if not lives:
            yield from [_plain(rest)] if rest else []
            return
        time.sleep(POLL_S)


def _plain(line: bytes) -> str:
    """Return a line as a terminal would leave it: of a progress bar the last state, no colours."""
    text = line.decode("utf-8", "replace").rstrip("\r").rpartition("\r")[2]
    return without_terminal_codes(text)

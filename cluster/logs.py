"""`sleep-rl logs RUN`: the output of each worker's process, including Ray, vLLM and DeepSpeed. It
is in <run>/logs/<worker>.log.
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

BLOCK = 1 << 16  # bytes of one read
POLL_S = 0.2
MAX_WIDTH = 100  # characters of a last line in the list


def listing(run: str) -> str:
    """Return a table of a run's logs: worker, size in bytes, last line. Raises InputError when
    there is none.
    """
    rows = [["actor", "bytes", "last line"]]
    for name, path in sorted(_files(run).items()):
        last = [line for line in _last(path, 20) if line.strip()][-1:]
        rows.append(
            [name, f"{path.stat().st_size:,}", *(line[:MAX_WIDTH] for line in last)]
            + [""] * (not last)
        )
    return aligned(rows)


def lines(run: str, actor: str, count: int, follow: bool = False) -> Iterator[str]:
    """Yield the last `count` lines of a worker's log; with `follow` also new lines until the run
    ends. Raises InputError for a worker that the run does not have, and for a negative `count`.
    """
    files = _files(run)
    if actor not in files:
        near = get_close_matches(actor, files, n=1, cutoff=0.0)[0]
        raise InputError(
            f"--actor: one of {', '.join(sorted(files))}, got {actor!r}; did you mean {near}?"
        )
    if count < 0:
        raise InputError(f"--lines: at least 0, got {count}")
    path = files[actor]
    size = path.stat().st_size
    if follow:  # an incomplete last line is shown once, when it is complete
        size -= len(_tail(path, size))
    yield from _last(path, count, size)
    if follow:
        yield from _new_lines(Path(run), path, size)


def _files(run: str) -> dict[str, Path]:
    folder = Path(run)
    if not (folder / FILE).is_file() and not (folder / "metrics.jsonl").is_file():
        raise InputError(f"{run}: expected the folder of a run, with {FILE} or metrics.jsonl in it")
    found = {path.stem: path for path in (folder / "logs").glob("*.log") if path.is_file()}
    if not found:
        raise InputError(
            f"{run}: no logs in {folder / 'logs'}; only workers on Ray (cluster.backend=ray) "
            "write them"
        )
    return found


def _last(path: Path, count: int, end: int | None = None) -> list[str]:
    """Return the last `count` lines before byte `end` (None: of the file), as a terminal shows
    them.
    """
    data = _tail(path, path.stat().st_size if end is None else end, count)
    found = data.removesuffix(b"\n").split(b"\n") if data else []
    return [_as_displayed(line) for line in found[max(len(found) - count, 0) :]]


def _tail(path: Path, end: int, count: int = 0) -> bytes:
    """Return bytes before `end` that contain at least `count` complete lines, if there are so many;
    for 0 the incomplete last line. The file is read backwards in blocks.
    """
    data = b""
    at = end
    with open(path, "rb") as file:
        while at > 0 and data.count(b"\n") <= count:
            begin = max(at - BLOCK, 0)
            file.seek(begin)
            data = file.read(at - begin) + data
            at = begin
    return data if count else data.rpartition(b"\n")[2]


def _new_lines(run: Path, path: Path, at: int) -> Iterator[str]:
    """Yield the lines that are written after byte `at`, until the run has no process."""
    rest = b""
    while True:
        is_live = held(run)  # before reading, so that its last lines are still shown
        with open(path, "rb") as file:
            if os.fstat(file.fileno()).st_size < at:
                at = 0  # the file was truncated
                rest = b""
            file.seek(at)
            new = file.read()
        at += len(new)
        *whole, rest = (rest + new).split(b"\n")
        yield from map(_as_displayed, whole)
        if not is_live:
            yield from [_as_displayed(rest)] if rest else []
            return
        time.sleep(POLL_S)


def _as_displayed(line: bytes) -> str:
    """Return a line as a terminal shows it: the last state of a progress bar, without colours."""
    text = line.decode("utf-8", "replace").rstrip("\r").rpartition("\r")[2]
    return without_terminal_codes(text)

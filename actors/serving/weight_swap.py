"""Which night a running server answers with, and the way to another one without a restart.

An answer is of one night, whole: a swap waits until every request inside is answered, holds back
those that come meanwhile, and lets them in when the memory of the other night lies in the model,
byte by byte.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

from safetensors.torch import load_file, save_file
from torch import Tensor
from vllm.engine.protocol import EngineClient

from actors.memory_access import shared_file
from sleep_rl.contracts.errors import InputError, RunError, one_line
from sleep_rl.model import memory_folder
from sleep_rl.model.memory import PARTS
from sleep_rl.model.tensor_digest import digest
from sleep_rl.runs.resolve import Found, nights

DRAIN_S = 60.0  # how long a swap holds others back for answers that are still being written


class SwapTimeout(RunError):
    """A swap that was given up because answers were still being written. Nothing has changed."""


class RequestGate:
    """Requests go in side by side; whoever closes it has the house to itself."""

    def __init__(self) -> None:
        self.inside = 0
        self._open, self._empty = asyncio.Event(), asyncio.Event()
        self._open.set()
        self._empty.set()

    @asynccontextmanager
    async def inside_of(self) -> AsyncIterator[None]:
        """Waits while the door is closed."""
        while not self._open.is_set():
            await self._open.wait()
        self.inside += 1
        self._empty.clear()
        try:
            yield
        finally:
            self.inside -= 1
            if not self.inside:
                self._empty.set()

    @asynccontextmanager
    async def closed(self, within_s: float) -> AsyncIterator[None]:
        """Lets nobody in, and begins when everybody is out. Raises SwapTimeout, with the door open, when
        that takes too long.
        """
        self._open.clear()
        try:
            try:
                await asyncio.wait_for(self._empty.wait(), within_s)
            except TimeoutError:
                raise SwapTimeout(
                    f"{self.inside} answers were still being written after {within_s:g} s"
                ) from None
            yield
        finally:
            self._open.set()


class Nights:
    """The memory of a live engine, which was started with `found`. `end` is called when nobody
    knows any more what lies in the model; `lost` then says why.
    """

    def __init__(
        self, client: EngineClient, found: Found, end: Callable[[], None], drain_s: float = DRAIN_S
    ):
        self.door, self.night, self.lost = RequestGate(), found.night, ""
        self._client, self._run, self._end, self._drain_s = client, found.run, end, drain_s
        self._held: dict[str, Tensor] = {}  # what lies in the model, as CPU tensors
        self._one = asyncio.Lock()
        self._seen: tuple | None = None  # the newest night that `follow` has dealt with

    @property
    def label(self) -> str:
        """What answers, in a word."""
        return "checkpoint" if self.night is None else f"night-{self.night}"

    def there(self) -> dict[int, Path]:
        """The nights that can be taken, by number."""
        return nights(self._run) if self._run else {}

    async def begin(self) -> None:
        """Reads what the engine was started with. Call before anything else."""
        with shared_file() as path:
            await self._client.collective_rpc("memory_read", kwargs={"path": path})
            self._held = load_file(path)
        await self._client.update_weight_version(self.label)

    async def take(self, number: int) -> bool:
        """Answers with another night from now on; False when it is the one that answers already.
        Raises InputError for a night that is not there or does not fit, SwapTimeout, and RunError when its
        bytes did not arrive; in each case the night before goes on answering.
        """
        async with self._one:
            tensors = await asyncio.to_thread(self._read, number)  # nobody waits for the disk
            if not tensors and number == self.night:
                return False
            async with self.door.closed(self._drain_s):
                try:
                    # Whom nobody waits for any more is ended, and every cached key and value is
                    # dropped.
                    await self._client.pause_generation(mode="abort", clear_cache=True)
                    await self._put(tensors)
                    await self._client.update_weight_version(f"night-{number}")
                    self.night = number
                finally:
                    if not self.lost:  # else nobody is to be answered any more
                        await self._client.resume_generation()
        return True

    async def follow(self, say: Callable[[str], None], every_s: float = 2.0) -> None:
        """Takes every newest night of the run, for good. A night that cannot be taken is named once
        and left out.
        """
        while not self.lost:
            await asyncio.sleep(every_s)
            mark = self._mark()
            if mark is None or mark == self._seen:
                continue
            started = time.monotonic()
            try:
                if await self.take(mark[0]):
                    say(
                        f"night {mark[0]} answers from now on, taken in within "
                        f"{time.monotonic() - started:.1f} s"
                    )
            except SwapTimeout as error:
                say(f"night {mark[0]} waits: {error}; tried again")
                continue
            except Exception as error:
                # any: it must be said, and must not end a server that can go on answering
                say(
                    f"warning: night {mark[0]} is not taken in, {self.label} goes on answering: "
                    f"{one_line(error)}"
                )
            self._seen = mark

    def _mark(self) -> tuple | None:
        """Number and identity of the newest night's file: a run that was resumed may write a night
        anew.
        """
        found = self.there()
        try:
            stat = (found[max(found)] / memory_folder.MEMORY).stat() if found else None
        except OSError:  # it is being replaced in this moment
            return None
        return (max(found), stat.st_ino, stat.st_mtime_ns) if stat else None

    def _read(self, number: int) -> dict[str, Tensor]:
        """The tensors of a night that differ from those held, in the model's dtypes. Raises
        InputError.
        """
        folder = self.there().get(number)
        if folder is None:
            have = ", ".join(map(str, self.there())) or "none"
            raise InputError(f"night {number}: expected one of the nights that there are ({have})")
        tensors = _by_slot(memory_folder.read_memory(folder)[1])
        if {k: t.shape for k, t in tensors.items()} != {k: t.shape for k, t in self._held.items()}:
            raise InputError(
                f"memory {folder}: its levels are not those of the model that is served"
            )
        tensors = {key: tensor.to(self._held[key].dtype) for key, tensor in tensors.items()}
        return {
            key: tensor
            for key, tensor in tensors.items()
            if digest(tensor) != digest(self._held[key])
        }

    async def _put(self, tensors: dict[str, Tensor]) -> None:
        """Writes tensors into the idle model and verifies them; when that fails, those before are
        written back.
        """
        try:
            await self._write(tensors)
        except Exception as error:  # a full /dev/shm, or whatever a worker process raised
            reason = one_line(error)
            try:
                await self._write({key: self._held[key] for key in tensors})
            except Exception as again:
                self.lost = f"{reason}; {self.label} could not be written back ({one_line(again)})"
                self._end()
                raise RunError(self.lost) from again
            raise RunError(reason) from error
        self._held |= tensors

    async def _write(self, tensors: dict[str, Tensor]) -> None:
        if not tensors:
            return
        with shared_file() as path:
            save_file({key: tensor.contiguous() for key, tensor in tensors.items()}, path)
            await self._client.collective_rpc("memory_write", kwargs={"path": path})
        found = await self._client.collective_rpc("memory_digests", args=(list(tensors),))
        for rank, digests in enumerate(found):
            wrong = [key for key, tensor in tensors.items() if digests[key] != digest(tensor)]
            if wrong:
                raise RunError(
                    f"{wrong[0]} did not arrive in the model (rank {rank}, {len(wrong)} tensors)"
                )


def _by_slot(stored: dict[str, Tensor]) -> dict[str, Tensor]:
    """Tensors of a checkpoint under the keys of `sleep_rl.model.memory.tensors_of`: one per slot and
    part.
    """
    out = {}
    for key, tensor in stored.items():
        if key.rsplit(".", 1)[1] in PARTS:
            out |= {f"{key}#{slot}": row for slot, row in enumerate(tensor.unbind(0))}
        else:
            out[key] = tensor
    return out

"""Which night a running server answers with, and how it changes to another one without a restart.

Every answer is of one night, whole: a swap waits until all requests in flight are answered, holds
back new ones, and lets them in when the memory of the other night is in the model, verified by its
digests.
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

from actors.memory_access import not_arrived, shared_file
from sleep_rl.contracts.errors import InputError, RunError, one_line
from sleep_rl.model import memory_folder
from sleep_rl.model.memory import PARTS
from sleep_rl.model.tensor_digest import digest
from sleep_rl.runs.resolve import ResolvedModel, nights

DRAIN_S = 60.0
"""How long a swap holds back new requests while those in flight are still being answered."""


class SwapTimeout(RunError):
    """A swap was given up because requests were still being answered. Nothing has changed."""


class RequestGate:
    """Readers-writer lock: requests share it, a weight swap holds it exclusively after the requests
    in flight have drained.
    """

    def __init__(self) -> None:
        self.in_flight = 0
        self._open = asyncio.Event()
        self._open.set()
        self._drained = asyncio.Event()
        self._drained.set()

    @asynccontextmanager
    async def shared(self) -> AsyncIterator[None]:
        """Hold the gate for one request; wait first while a swap holds it."""
        while not self._open.is_set():
            await self._open.wait()
        self.in_flight += 1
        self._drained.clear()
        try:
            yield
        finally:
            self.in_flight -= 1
            if not self.in_flight:
                self._drained.set()

    @asynccontextmanager
    async def exclusive(self, timeout_s: float) -> AsyncIterator[None]:
        """Hold back new requests, wait until those in flight have drained, and hold the gate alone.

        Raises SwapTimeout, with the gate open again, when that takes longer than `timeout_s`.
        """
        self._open.clear()
        try:
            try:
                await asyncio.wait_for(self._drained.wait(), timeout_s)
            except TimeoutError:
                raise SwapTimeout(
                    f"{self.in_flight} answers were still being written after {timeout_s:g} s"
                ) from None
            yield
        finally:
            self._open.set()


class NightSwapper:
    """Swaps the memory of a live engine, which was started with the model `served`.

    `stop_server` is called when it is no longer known what is in the model; `failure` then says
    why, and nothing is answered any more. `drain_s`: timeout of RequestGate.exclusive. Call
    `read_memory` before anything else.
    """

    def __init__(
        self,
        client: EngineClient,
        served: ResolvedModel,
        stop_server: Callable[[], None],
        drain_s: float = DRAIN_S,
    ):
        self.gate = RequestGate()
        self.night = served.night
        self.failure = ""
        self._client = client
        self._run = served.run
        self._stop_server = stop_server
        self._drain_s = drain_s
        self._in_model: dict[str, Tensor] = {}  # memory key -> CPU tensor of what is in the model
        self._swapping = asyncio.Lock()
        # (number, inode, mtime) of the newest night that `follow` has handled
        self._handled: tuple[int, int, int] | None = None

    @property
    def label(self) -> str:
        """Name of what answers: "night-2", or "checkpoint" where no night is known."""
        return "checkpoint" if self.night is None else f"night-{self.night}"

    def available(self) -> dict[int, Path]:
        """Return number -> memory folder of the nights that can be swapped in."""
        return nights(self._run) if self._run else {}

    async def read_memory(self) -> None:
        """Read the memory that the engine was started with, and label its tokens."""
        with shared_file() as path:
            await self._client.collective_rpc("memory_read", kwargs={"path": path})
            self._in_model = load_file(path)
        await self._client.update_weight_version(self.label)

    async def swap_to(self, number: int) -> bool:
        """Answer with another night from now on; return False when it is the present one already.

        Raises InputError for a night that does not exist or does not fit, SwapTimeout, and RunError
        when its bytes did not arrive; in each case the present night goes on answering.
        """
        async with self._swapping:
            # in a thread, so that no request waits for the disk
            changed = await asyncio.to_thread(self._read_changed, number)
            if not changed and number == self.night:
                return False
            async with self.gate.exclusive(self._drain_s):
                try:
                    # Requests whose client has gone are aborted, and every cached key and value is
                    # dropped.
                    await self._client.pause_generation(mode="abort", clear_cache=True)
                    await self._write_or_roll_back(changed)
                    await self._client.update_weight_version(f"night-{number}")
                    self.night = number
                finally:
                    if not self.failure:
                        await self._client.resume_generation()
        return True

    async def follow(self, log: Callable[[str], None], every_s: float = 2.0) -> None:
        """Swap in every newest night of the run, forever.

        A night that cannot be swapped in is logged once and skipped.
        """
        while not self.failure:
            await asyncio.sleep(every_s)
            newest = self._newest()
            if newest is None or newest == self._handled:
                continue
            number = newest[0]
            start = time.monotonic()
            try:
                if await self.swap_to(number):
                    seconds = time.monotonic() - start
                    log(f"night {number} answers from now on, loaded within {seconds:.1f} s")
            except SwapTimeout as error:
                log(f"night {number} waits: {error}; tried again")
                continue
            # Boundary: whatever it is, the server can still answer with the present night.
            except Exception as error:  # noqa: BLE001
                log(
                    f"warning: night {number} is not loaded, {self.label} goes on answering: "
                    f"{one_line(error)}"
                )
            self._handled = newest

    def _newest(self) -> tuple[int, int, int] | None:
        """Return number, inode and mtime of the newest night's file, None where there is none.

        The file counts, not the number alone: a run that was resumed may write a night anew.
        """
        available = self.available()
        if not available:
            return None
        number = max(available)
        try:
            stat = (available[number] / memory_folder.MEMORY).stat()
        except OSError:  # it is being replaced in this moment
            return None
        return number, stat.st_ino, stat.st_mtime_ns

    def _read_changed(self, number: int) -> dict[str, Tensor]:
        """Return the tensors of a night that differ from those in the model, in the model's dtypes.

        Raises InputError.
        """
        available = self.available()
        folder = available.get(number)
        if folder is None:
            numbers = ", ".join(map(str, available)) or "none"
            raise InputError(f"night {number}: expected one of the run's nights ({numbers})")
        tensors = _by_slot(memory_folder.read_memory(folder)[1])
        if _shapes(tensors) != _shapes(self._in_model):
            raise InputError(
                f"memory {folder}: its levels are not those of the model that is served"
            )
        tensors = {key: tensor.to(self._in_model[key].dtype) for key, tensor in tensors.items()}
        return {
            key: tensor
            for key, tensor in tensors.items()
            if digest(tensor) != digest(self._in_model[key])
        }

    async def _write_or_roll_back(self, tensors: dict[str, Tensor]) -> None:
        """Write tensors into the idle model and verify them; when that fails, write those before
        back and raise RunError.
        """
        try:
            await self._write(tensors)
        except Exception as error:  # a full /dev/shm, or whatever a worker process raised
            reason = one_line(error)
            try:
                await self._write({key: self._in_model[key] for key in tensors})
            except Exception as second_error:
                self.failure = (
                    f"{reason}; {self.label} could not be written back ({one_line(second_error)})"
                )
                self._stop_server()
                raise RunError(self.failure) from second_error
            raise RunError(reason) from error
        self._in_model |= tensors

    async def _write(self, tensors: dict[str, Tensor]) -> None:
        """Write tensors into the model and compare its digests, on every rank. Raises RunError."""
        if not tensors:
            return
        with shared_file() as path:
            save_file({key: tensor.contiguous() for key, tensor in tensors.items()}, path)
            await self._client.collective_rpc("memory_write", kwargs={"path": path})
        digests_per_rank = await self._client.collective_rpc(
            "memory_digests", args=(list(tensors),)
        )
        expected = {key: digest(tensor) for key, tensor in tensors.items()}
        reason = not_arrived(expected, digests_per_rank)
        if reason:
            raise RunError(reason)


def _shapes(tensors: dict[str, Tensor]) -> dict[str, tuple[int, ...]]:
    return {key: tuple(tensor.shape) for key, tensor in tensors.items()}


def _by_slot(stored: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors of a checkpoint under the keys of `sleep_rl.model.memory.tensors_of`: one
    per slot and part.
    """
    by_slot = {}
    for key, tensor in stored.items():
        if key.rsplit(".", 1)[1] in PARTS:
            by_slot |= {f"{key}#{slot}": row for slot, row in enumerate(tensor.unbind(0))}
        else:
            by_slot[key] = tensor
    return by_slot

"""A run that has slept, and the client of an engine that serves it."""

from __future__ import annotations

import asyncio
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from actors.serving.weight_swap import NightSwapper
from sleep_rl.journal.journal import Journal
from sleep_rl.model import checkpoints, memory_folder
from sleep_rl.model.memory import tensors_of
from sleep_rl.model.tensor_digest import digest
from sleep_rl.runs.resolve import resolve_model
from tests.fakes.models import LEVELS, fill_memory
from tests.fakes.processes import LIMIT_S


def sleep_once(run: Path, base: str, night: int) -> torch.nn.Module:
    """Write the memory of a night with random weights; return its model."""
    model = checkpoints.load(base, LEVELS["dense"])
    fill_memory(model, seed=night)
    memory_folder.save_memory(model, str(run / "memory" / f"night-{night}"), base)
    return model


def slept_run(folder: Path, base: str) -> Path:
    """Return the folder of a run after its first night."""
    Journal(folder / "metrics.jsonl").close()
    sleep_once(folder, base, 1)
    return folder


class EngineClient:
    """An engine of one rank, which asserts that no request is in flight during a write. The writes
    with a number in `break_at`, from 0, are damaged.
    """

    def __init__(self, model: torch.nn.Module, break_at: tuple[int, ...] = ()):
        self.tensors = {k: t.clone() for k, t in tensors_of(model).items()}
        self.break_at = break_at
        self.paused = False
        self.in_flight = 0  # requests, counted by the test
        self.version = ""
        self.writes = 0
        self.cached = True

    async def collective_rpc(self, method, args=(), kwargs=None):
        await asyncio.sleep(0)
        if method == "memory_read":
            return [save_file(self.tensors, kwargs["path"])]
        if method == "memory_digests":
            return [{key: digest(self.tensors[key]) for key in args[0]}]
        assert method == "memory_write" and self.paused and not self.in_flight and not self.cached
        for key, tensor in load_file(kwargs["path"]).items():
            assert (
                tensor.dtype == self.tensors[key].dtype and tensor.shape == self.tensors[key].shape
            )
            self.tensors[key] = tensor + 1 if self.writes in self.break_at else tensor
        self.writes += 1
        return [None]

    async def pause_generation(self, mode, clear_cache):
        assert mode == "abort" and clear_cache
        self.paused = True
        self.cached = False

    async def resume_generation(self):
        self.paused = False

    async def update_weight_version(self, label):
        self.version = label

    def holds(self, model: torch.nn.Module) -> bool:
        return all(
            torch.equal(self.tensors[key], tensor) for key, tensor in tensors_of(model).items()
        )


class Swapping:
    """A NightSwapper over a fake engine that holds night 1 of a run."""

    def __init__(self, run, base, break_at=(), drain_s=5.0):
        self.first = sleep_once(run, base, 1)
        self.second = sleep_once(run, base, 2)
        self.client = EngineClient(self.first, break_at)
        self.ended: list[int] = []
        self.log: list[str] = []
        self.swapper = NightSwapper(
            self.client,
            resolve_model(str(run / "memory" / "night-1")),
            stop_server=lambda: self.ended.append(1),
            drain_s=drain_s,
        )

    def go(self, body):
        async def all_of_it():
            await self.swapper.read_memory()
            return await asyncio.wait_for(body(), LIMIT_S)

        return asyncio.run(all_of_it())

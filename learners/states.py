"""Saved memory states of a learner by tag, and its checkpoint, which contains all of them."""

from __future__ import annotations

import torch
from torch import nn

from learners import checkpoint_io
from learners.checkpoint_io import MemoryState
from learners.expert_slots import SlotAllocator
from learners.wake import Chunks
from sleep_rl.contracts.errors import RunError, one_line

_CURRENT = "now"  # tag of the stored memory in a checkpoint


class MemoryStates:
    """Saves and loads states of a model's memory, with their open chunks and order of experts."""

    def __init__(
        self,
        model: nn.Module,
        chunks: Chunks,
        slots: SlotAllocator,
        generator: torch.Generator,
        device: str,
    ):
        self.model = model
        self.chunks = chunks
        self.slots = slots
        self.generator = generator
        self.device = device
        self._by_tag: dict[str, MemoryState] = {}

    def __getitem__(self, tag: str) -> MemoryState:
        return self._by_tag[tag]

    def save(self, tag: str, of: str = "") -> None:
        """Save the stored memory under `tag`, or make `tag` another name of the saved state `of`.
        Saved states are immutable, so two tags may share one.
        """
        self._by_tag[tag] = self._by_tag[of] if of else self._stored()

    def load(self, tag: str) -> None:
        """Replace the stored memory by the state saved under `tag`."""
        self._restore(self._by_tag[tag])

    def _stored(self) -> MemoryState:
        memory = {key: tensor.detach().clone() for key, tensor in self._memory().items()}
        return MemoryState(memory, self.chunks.state(), self.slots.state())

    def _restore(self, state: MemoryState) -> None:
        self.model.load_state_dict(state.memory, strict=False)
        self.chunks.restore(state.chunks)
        self.slots.restore(state.slots)

    def _memory(self) -> dict[str, torch.Tensor]:
        return {k: v for k, v in self.model.state_dict().items() if ".memory." in k}

    def write_checkpoint(self, path: str) -> None:
        """Write all states, the stored memory and the generator. Raises RunError."""
        states = {**self._by_tag, _CURRENT: self._stored()}
        checkpoint_io.write(path, states, self.generator)

    def read_checkpoint(self, path: str) -> None:
        """Restore what `write_checkpoint` wrote. Raises RunError when it cannot be read or is of
        another model.
        """
        states, generator = checkpoint_io.read(path, self.device)
        shapes = {key: tensor.shape for key, tensor in self._memory().items()}
        for state in states.values():
            if {key: tensor.shape for key, tensor in state.memory.items()} != shapes:
                raise RunError(
                    f"{path}: the learner's state cannot be read (it is of another model)"
                )
        try:
            current = states.pop(_CURRENT)
            self._restore(current)
            self.generator.set_state(generator)
        except (RuntimeError, TypeError, ValueError, KeyError) as error:
            raise RunError(
                f"{path}: the learner's state cannot be read ({one_line(error)})"
            ) from error
        self._by_tag = states

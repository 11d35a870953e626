"""Wake updates (equation 2): gradients of the day's documents update the base expert of each memory
level at the end of its chunk.

Shape suffixes: N documents, P loss positions, D hidden size.
"""

from __future__ import annotations

import math
from collections.abc import Collection

import torch
from torch import Tensor

from learners.engine import reduce_sum
from learners.seeding import Seeding
from sleep_rl.config.schema import LOGIT_CHUNK
from sleep_rl.contracts.errors import RunError
from sleep_rl.contracts.records import STUDENT
from sleep_rl.model.memory import (
    BASE_SLOT,
    PARTS,
    Expert,
    discard,
    level_number,
    memory_levels,
    patch,
)
from sleep_rl.model.packing import PaddedRows
from sleep_rl.objectives import token_logprobs


class Chunks:
    """The open chunk of every level: the sum of eta_t f(theta_l; x_t) since its last update.

    Within a chunk theta_l does not change, so the gradients are summed day by day. `prospective`
    returns the updated weights; after they are applied, `clear` starts a new chunk.
    """

    def __init__(self, module: Seeding, *, lr: float, rank: int, world: int, device: str):
        self.module = module
        self.lr = lr
        self.rank = rank
        self.world = world
        self.device = device
        self.sums: dict[str, dict[str, Tensor]] = {}  # level name -> part -> sum

    def add(self, documents_N: list[tuple[int, ...]]) -> float:
        """Add lr times the gradients of each document's loss to every level's chunk; return the
        mean loss in nats per token. Raises RunError when the loss is not finite.
        """
        model = self.module.model
        base_experts = {
            name: Expert(*(getattr(level, part)[BASE_SLOT] for part in PARTS))
            for name, level in memory_levels(model).items()
        }
        patch(model, {name: {BASE_SLOT: expert} for name, expert in base_experts.items()})
        try:
            total = self._backward(documents_N)
        finally:
            discard(model)
        loss = reduce_sum({"loss": total})["loss"]
        if not math.isfinite(loss):
            raise RunError(f"wake: the loss is {loss}; lower wake.lr")
        if self.lr > 0:
            self._add_gradients(base_experts)
        return loss / max(len(documents_N), 1)

    def _backward(self, documents_N: list[tuple[int, ...]]) -> Tensor:
        """Accumulate the gradients of this rank's documents; return their summed loss."""
        total = torch.zeros((), device=self.device)
        rounds = math.ceil(len(documents_N) / self.world)
        for number in range(self.rank, rounds * self.world, self.world):
            # all ranks make equally many passes, since ZeRO-3 gathers in each; fillers weigh 0
            is_document = number < len(documents_N)
            loss = self._loss(documents_N[number if is_document else 0]) * is_document
            loss.backward()
            total += loss.detach()
        return total

    def _loss(self, document: tuple[int, ...]) -> Tensor:
        """Return the mean cross entropy of a document's tokens after the first."""
        rows = PaddedRows.of([document[:1]], [document[1:]], self.module.pad, self.device)
        hidden_PD = self.module.hidden(rows, STUDENT)
        return -token_logprobs(
            self.module.model.lm_head, hidden_PD, rows.token_P, LOGIT_CHUNK
        ).mean()

    def _add_gradients(self, base_experts: dict[str, Expert]) -> None:
        """Add lr times the gradients to the chunks: a sum, not a mean, over steps and ranks."""

        for name, expert in base_experts.items():
            sums = self.sums.setdefault(name, {})
            for part, parameter in expert.named_parameters():
                grad = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
                if self.world > 1:
                    torch.distributed.all_reduce(grad)
                step = self.lr * grad
                sums[part] = sums[part] + step if part in sums else step

    def prospective(self, numbers: Collection[int]) -> dict[str, Expert]:
        """Return level name -> theta_new of the base expert, for these level numbers, without
        applying it (paper.md section 3 a).
        """
        levels = memory_levels(self.module.model)
        experts = {}
        for name, sums in self.sums.items():
            if level_number(name) in numbers:
                expert = Expert(
                    *(getattr(levels[name], part)[BASE_SLOT] - sums[part] for part in PARTS)
                )
                experts[name] = expert.requires_grad_(False)
        return experts

    def clear(self, numbers: Collection[int]) -> None:
        """Start a new chunk in the levels with these numbers."""
        self.sums = {
            name: sums for name, sums in self.sums.items() if level_number(name) not in numbers
        }

    def state(self) -> dict[str, Tensor]:
        """Return `<level>.<part>` -> copy of the sum, for saved states and checkpoints."""
        return {
            f"{name}.{part}": tensor.clone()
            for name, sums in self.sums.items()
            for part, tensor in sums.items()
        }

    def restore(self, state: dict[str, Tensor]) -> None:
        """Restore what `state` returned."""
        self.sums = {}
        for key, tensor in state.items():
            name, part = key.rsplit(".", 1)
            self.sums.setdefault(name, {})[part] = tensor.clone()

"""Wake updates (equation 2): every memory level takes the stream into its own weights, each with
its chunk length.
"""

from __future__ import annotations

import math
from collections.abc import Collection

import torch
from torch import Tensor

from learners.engine import reduce_sum
from learners.seeding import Rows, Seeding
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
from sleep_rl.objectives import token_logprobs


class Chunks:
    """The open chunk of every level: the sum of eta_t f(theta_l; x_t) since the level last moved.

    Within a chunk theta_l does not change, so its gradients may be summed day by day. The weights a
    level would have are `prospective`; whoever applies them calls `drop`.
    """

    def __init__(self, module: Seeding, *, lr: float, logit_chunk: int, rank: int, world: int):
        self.module, self.lr, self.logit_chunk, self.rank, self.world = (
            module,
            lr,
            logit_chunk,
            rank,
            world,
        )
        self.sums: dict[str, dict[str, Tensor]] = {}  # level name -> part -> sum

    def add(self, documents_N: list[tuple[int, ...]], pad: int, device: str) -> float:
        """One wake step per document: adds its gradients to every level's chunk. Returns the mean
        loss, nats/token.

        Raises RunError when the loss is not finite.
        """
        levels = memory_levels(self.module.model)
        own = {
            name: Expert(*(getattr(v, p)[BASE_SLOT] for p in PARTS)) for name, v in levels.items()
        }
        patch(self.module.model, {name: {BASE_SLOT: expert} for name, expert in own.items()})
        total = torch.zeros((), device=device)
        try:
            for number in range(
                self.rank, math.ceil(len(documents_N) / self.world) * self.world, self.world
            ):
                # ZeRO-3 gathers in each pass: every rank takes equally many
                counts = number < len(documents_N)
                document = documents_N[number if counts else 0]
                rows = Rows.of([document[:1]], [document[1:]], pad, device)
                token_P = torch.tensor(document[1:], device=device)
                hidden_PD = self.module.hidden(rows, STUDENT)
                loss = (
                    -token_logprobs(
                        self.module.model.lm_head, hidden_PD, token_P, self.logit_chunk
                    ).mean()
                    * counts
                )
                loss.backward()
                total += loss.detach()
        finally:
            discard(self.module.model)
        loss = reduce_sum({"loss": total})["loss"]
        if not math.isfinite(loss):
            raise RunError(f"wake: the loss is {loss}; lower wake.lr")
        if self.lr > 0:
            self._sum(own)
        return loss / max(len(documents_N), 1)

    def _sum(self, own: dict[str, Expert]) -> None:
        """Summed, not averaged, over the steps of a chunk and over the ranks."""
        for name, expert in own.items():
            for part, parameter in expert.named_parameters():
                grad = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
                if self.world > 1:
                    torch.distributed.all_reduce(grad)
                held = self.sums.setdefault(name, {})
                held[part] = held[part] + self.lr * grad if part in held else self.lr * grad

    def prospective(self, numbers: Collection[int]) -> dict[str, Expert]:
        """theta_new of the own weights of these levels, not applied (paper.md section 3 a); level
        name -> expert.
        """
        levels = memory_levels(self.module.model)
        out = {}
        for name, change in self.sums.items():
            if level_number(name) in numbers:
                out[name] = Expert(
                    *(getattr(levels[name], p)[BASE_SLOT] - change[p] for p in PARTS)
                )
                out[name].requires_grad_(False)
        return out

    def drop(self, numbers: Collection[int]) -> None:
        """These levels begin a new chunk."""
        self.sums = {
            name: change for name, change in self.sums.items() if level_number(name) not in numbers
        }

    def state(self) -> dict[str, Tensor]:
        """The sums under flat names, for `keep` and checkpoints."""
        return {
            f"{name}.{part}": t.clone()
            for name, change in self.sums.items()
            for part, t in change.items()
        }

    def restore(self, state: dict[str, Tensor]) -> None:
        """Takes back what `state` gave."""
        self.sums = {}
        for key, tensor in state.items():
            name, part = key.rsplit(".", 1)
            self.sums.setdefault(name, {})[part] = tensor.clone()

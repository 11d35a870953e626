"""The matrix multiplications that a part of a night needs, and how fast this machine makes them.

Counted are floating-point operations: two per multiplication and addition, of sequences without
padding, and without what is computed a second time to save memory. So the bound of a part, these
operations at the rate of `torch.mm`, is what no implementation with the same caches can pass.

Shape suffixes: M rows that are multiplied together, I inputs, O outputs of a matrix.
"""

from __future__ import annotations

import time
from dataclasses import dataclass

from sleep_rl.model.shape import Shape

SECONDS = 1.0  # in which a multiplication is repeated
REPEATS = 3  # of which the fastest counts


@dataclass(frozen=True)
class Work:
    """Operations of the layers and of the output head, with `rows` rows multiplied together."""

    rows: int
    layers: float = 0.0
    head: float = 0.0


@dataclass(frozen=True)
class Decoder:
    """A decoder with memory of rank `d_low` in front of the MLPs from `first_layer` up."""

    shape: Shape
    d_low: int = 64
    first_layer: int = 0

    @property
    def matrices(self) -> dict[str, tuple[int, int]]:
        """Return name -> (inputs, outputs) of the matrices of one layer."""
        shape = self.shape
        queries = shape.heads * shape.head_dim
        keys = shape.kv_heads * shape.head_dim
        return {
            "q": (shape.hidden, queries),
            "k": (shape.hidden, keys),
            "v": (shape.hidden, keys),
            "o": (queries, shape.hidden),
            "gate": (shape.hidden, shape.intermediate),
            "up": (shape.hidden, shape.intermediate),
            "down": (shape.intermediate, shape.hidden),
        }

    @property
    def expert_parameters(self) -> int:
        """Parameters of one expert of one layer: a row of the router, A and B."""
        return self.shape.hidden * (1 + 3 * self.d_low)

    def forward(
        self, tokens: int, past: int = 0, first: int = 0, last: int | None = None, experts: int = 0
    ) -> float:
        """Return the operations of layers `first` to `last` - 1 (None: to the end) on `tokens`
        tokens after `past` others, with `experts` unlocked experts in each layer with memory.
        """
        last = self.shape.layers if last is None else last
        layer = 2 * tokens * _size(self.matrices.values()) + self._attention(tokens, past)
        with_memory = max(last - max(first, self.first_layer), 0)
        memory = 2 * tokens * experts * self.expert_parameters
        return max(last - first, 0) * layer + with_memory * memory

    def backward(self, tokens: int, past: int = 0, experts: int = 1) -> float:
        """Return the operations of the gradients of `experts` experts in each layer with memory, of
        `tokens` tokens after `past` others.

        The base is frozen, so its matrices pass the gradient on only. The lowest layer with memory
        passes none on below its experts.
        """
        above = self.shape.layers - self.first_layer - 1
        frozen = 2 * tokens * _size(self.matrices.values()) + 2 * self._attention(tokens, past)
        memory = 2 * tokens * experts * self.expert_parameters
        mlp = 2 * tokens * _size(self.matrices[name] for name in ("gate", "up", "down"))
        out_of_w_out = 2 * tokens * experts * self.d_low * self.shape.hidden
        return above * (frozen + 2 * memory) + mlp + memory + out_of_w_out

    def head(self, positions: int) -> float:
        """Return the operations of the logits at `positions` positions."""
        return 2 * positions * self.shape.hidden * self.shape.vocab

    def _attention(self, tokens: int, past: int) -> float:
        """Return the operations of scores and weighted values: each token attends to itself and to
        all before it.
        """
        pairs = tokens * past + tokens * (tokens + 1) / 2
        return 4 * pairs * self.shape.heads * self.shape.head_dim


def _size(matrices) -> int:
    return sum(inputs * outputs for inputs, outputs in matrices)


@dataclass(frozen=True)
class Rate:
    """Operations per second of torch.mm over the matrices of the layers, and over the head."""

    layers: float
    head: float

    def seconds(self, work: Work) -> float:
        """Return the time that the multiplications of `work` take."""
        return work.layers / self.layers + work.head / self.head


def measured_rate(decoder: Decoder, dtype: str, rows: int, threads: int) -> Rate:
    """Return the rate of torch.mm with `rows` rows and `threads` threads.

    Every layer has matrices of its own, so that they come from memory as those of a model do.
    """
    import torch

    torch.set_num_threads(threads)
    kind = getattr(torch, dtype)
    layers = [size for _ in range(decoder.shape.layers) for size in decoder.matrices.values()]
    head = [(decoder.shape.hidden, decoder.shape.vocab)]
    return Rate(_rate(layers, rows, kind), _rate(head, rows, kind))


def _rate(sizes: list[tuple[int, int]], rows: int, dtype) -> float:
    import torch

    weights_OI = [torch.randn(outputs, inputs).to(dtype) for inputs, outputs in sizes]
    inputs_MI = {inputs: torch.randn(rows, inputs).to(dtype) for inputs, _ in sizes}
    fastest = 0.0
    for _ in range(REPEATS):
        began = time.perf_counter()
        count = 0
        while not count or time.perf_counter() - began < SECONDS:
            for weight_OI in weights_OI:
                torch.mm(inputs_MI[weight_OI.shape[1]], weight_OI.t())
            count += 1
        rate = 2 * rows * _size(sizes) * count / (time.perf_counter() - began)
        fastest = max(fastest, rate)
    return fastest

"""Right-padded batches of token ids, with the positions that predict the completions.

Shape suffixes: B sequences, T tokens of the padded batch, P loss positions of the batch (the
completion tokens of all sequences, one sequence after the other), D hidden size.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


def pad_right(
    rows_B: Sequence[Sequence[int]], pad: int, device: str | torch.device
) -> tuple[Tensor, Tensor]:
    """Return (ids [B, T], mask [B, T]), padded with id `pad` and mask 0."""
    width = max(map(len, rows_B))
    ids_BT = torch.full((len(rows_B), width), pad, dtype=torch.long)
    mask_BT = torch.zeros_like(ids_BT)
    for b, row in enumerate(rows_B):
        ids_BT[b, : len(row)] = torch.tensor(row)
        mask_BT[b, : len(row)] = 1
    return ids_BT.to(device), mask_BT.to(device)


@dataclass(frozen=True)
class PaddedRows:
    """Prompts with their completions, padded, and the positions that predict the completions."""

    ids_BT: Tensor
    mask_BT: Tensor
    position_P: Tensor  # index into the flattened [B*T] grid; predicts the next token
    row_P: Tensor  # index of the sequence of a loss position
    sequences_B: list[tuple[int, ...]]  # the tokens of each sequence, without padding
    prompt_lengths_B: list[int]

    @staticmethod
    def of(
        prompts_B: Sequence[tuple[int, ...]],
        completions_B: Sequence[tuple[int, ...]],
        pad: int,
        device: str | torch.device,
    ) -> PaddedRows:
        """Pack prompts [B] with completions [B]; neither may be empty."""
        pairs = list(zip(prompts_B, completions_B, strict=True))
        sequences_B = [prompt + completion for prompt, completion in pairs]
        ids_BT, mask_BT = pad_right(sequences_B, pad, device)
        width = ids_BT.shape[1]
        positions: list[int] = []
        rows: list[int] = []
        for b, (prompt, completion) in enumerate(pairs):
            first = b * width + len(prompt) - 1
            positions.extend(range(first, first + len(completion)))
            rows.extend([b] * len(completion))
        return PaddedRows(
            ids_BT,
            mask_BT,
            torch.tensor(positions, device=device),
            torch.tensor(rows, device=device),
            sequences_B,
            [len(prompt) for prompt in prompts_B],
        )

    @property
    def token_P(self) -> Tensor:
        """Target token of each loss position."""
        return self.ids_BT.flatten()[self.position_P + 1]

    def at_positions(self, hidden_BTD: Tensor) -> Tensor:
        """Return the hidden states [P, D] at the loss positions."""
        return hidden_BTD.flatten(0, 1)[self.position_P]

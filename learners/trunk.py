"""The trunk: the embedding and the layers below the lowest one with memory.

It is frozen. What it computes for a sequence is the same for teacher and student and in every step,
so it is computed without gradient, and kept for the sequences that come again.

Shape suffixes: B sequences, T tokens of the padded batch, D hidden size.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from learners.hidden_state_cache import HiddenStateCache
from sleep_rl.contracts.records import TrainingRow
from sleep_rl.model.decoder import run_layers
from sleep_rl.model.packing import PaddedRows, pad_right


class Trunk:
    """Computes the input of layer `first_layer`. With memory in every layer it is the embedding
    alone, of which nothing is kept.
    """

    def __init__(self, first_layer: int, cache: HiddenStateCache, pad: int):
        self.first_layer = first_layer
        self.cache = cache
        self.pad = pad
        self._recurring: frozenset[tuple[int, ...]] = frozenset()

    def expect(self, rows_N: Iterable[TrainingRow]) -> None:
        """Set which sequences are kept: what the student reads, except what it sampled, which is
        drawn only once. What only the teacher reads comes again with its last hidden states, which
        `Teacher` keeps. Saves time alone: without this call every sequence is computed again.
        """
        if self.first_layer:
            self._recurring = frozenset(
                row.prompt_T + row.completion_T for row in rows_N if not row.behaviour_T
            )

    def hidden(self, decoder: nn.Module, rows: PaddedRows) -> Tensor:
        """Return the input [B, T, D] of layer `first_layer`; 0 on padding, if a row was kept."""
        if not self.first_layer:
            return decoder.embed_tokens(rows.ids_BT)
        kept_B = [self.cache.get(sequence) for sequence in rows.sequences_B]
        missing = [b for b, kept_TD in enumerate(kept_B) if kept_TD is None]
        if missing:
            computed_MTD = self._compute(decoder, [rows.sequences_B[b] for b in missing])
            if len(missing) == len(kept_B):
                return computed_MTD
            for b, hidden_TD in zip(missing, computed_MTD, strict=True):
                kept_B[b] = hidden_TD[: len(rows.sequences_B[b])]
        weight = decoder.embed_tokens.weight
        hidden_BTD = weight.new_zeros(*rows.ids_BT.shape, kept_B[0].shape[-1])
        for hidden_TD, kept_TD in zip(hidden_BTD, kept_B, strict=True):
            hidden_TD[: len(kept_TD)] = kept_TD
        return hidden_BTD

    @torch.no_grad()
    def _compute(self, decoder: nn.Module, sequences_M: list[tuple[int, ...]]) -> Tensor:
        """Compute sequences [M] and keep those that come again."""
        device = decoder.embed_tokens.weight.device
        ids_MT, mask_MT = pad_right(sequences_M, self.pad, device)
        hidden_MTD = run_layers(
            decoder, decoder.embed_tokens(ids_MT), mask_MT, last=self.first_layer
        )
        for sequence, hidden_TD in zip(sequences_M, hidden_MTD, strict=True):
            if sequence in self._recurring:
                self.cache.put(sequence, hidden_TD[: len(sequence)])
        return hidden_MTD

"""Keys and values of documents: all questions about a document are computed after its tokens,
which go through the teacher once. They are cached in blocks of tokens, so that documents share what
precedes them, such as answered examples.

Shape suffixes: B sequences, T tokens, D hidden size, K layers, H key-value heads, A head size.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from transformers import DynamicCache

from learners.hidden_state_cache import HiddenStateCache, TeacherInput
from sleep_rl.contracts.records import TEACHER, UNTOUCHED_BASE
from sleep_rl.model.decoder import run_layers
from sleep_rl.model.memory import view_of
from sleep_rl.model.packing import PaddedRows

FEWEST_TOKENS = 64
"""Of a document whose keys and values are kept: a pass of its own costs more than fewer tokens."""
BLOCK_TOKENS = 64
"""Tokens of a block, which is computed in a pass of its own whatever is cached: its values depend
on the tokens up to its end only, and a resumed run repeats them exactly.
"""


class DocumentStates:
    """Computes the teacher's hidden states of sequences after their documents."""

    def __init__(self, limit: int, pad: int, device: str):
        """Create an empty cache. `limit`: host memory of keys and values, in bytes."""
        self.cache = HiddenStateCache(limit)
        self.pad = pad
        self.device = device

    def suits(self, model: nn.Module, key: TeacherInput) -> bool:
        """Return whether an input has a document whose keys and values are cached. The untouched
        base reads none.
        """
        if key.teacher == UNTOUCHED_BASE or getattr(model.model, "has_sliding_layers", False):
            return False
        return self.cache.limit > 0 and key.shared >= FEWEST_TOKENS

    @torch.no_grad()
    def hidden(self, model: nn.Module, inputs_B: Sequence[TeacherInput]) -> list[Tensor]:
        """Return the last hidden states [T, D] that predict each completion. All inputs share their
        document.
        """
        document_T = document_of(inputs_B[0]).prompt_T
        before = len(document_T)
        count = len(inputs_B)
        past = DynamicCache(
            [
                (keys.expand(count, -1, -1, -1), values.expand(count, -1, -1, -1))
                for keys, values in self._read(model, inputs_B[0].teacher, document_T)
            ]
        )
        rows = PaddedRows.of(
            [key.prompt_T[before:] for key in inputs_B],
            [key.completion_T for key in inputs_B],
            self.pad,
            self.device,
        )
        hidden_PD = rows.at_positions(self._run(model, rows.ids_BT, rows.mask_BT, past))
        return list(hidden_PD.split([len(key.completion_T) for key in inputs_B]))

    def _read(self, model: nn.Module, teacher: int, ids_T: tuple[int, ...]) -> Tensor:
        """Return the keys and values [K, 2, 1, H, T, A] of a document's tokens."""
        blocks: list[Tensor] = []
        for start in range(0, len(ids_T), BLOCK_TOKENS):
            end = min(start + BLOCK_TOKENS, len(ids_T))
            key = TeacherInput(teacher, ids_T[:end], ())
            block = self.cache.get(key)
            if block is None:
                block = self._block(model, ids_T[start:end], blocks)
                self.cache.put(key, block)
            blocks.append(block.to(self.device))
        return torch.cat(blocks, dim=-2)

    def _block(self, model: nn.Module, ids_T: tuple[int, ...], blocks: list[Tensor]) -> Tensor:
        """Return the keys and values [K, 2, 1, H, T, A] of tokens that follow other blocks."""
        before = torch.cat(blocks, dim=-2) if blocks else ()
        past = DynamicCache([(keys, values) for keys, values in before])
        ids_BT = torch.tensor([ids_T], device=self.device)
        self._run(model, ids_BT, torch.ones_like(ids_BT), past)
        layers = [torch.stack([layer.keys, layer.values]) for layer in past.layers]
        return torch.stack(layers)[..., -len(ids_T) :, :]

    def _run(self, model: nn.Module, ids_BT: Tensor, mask_BT: Tensor, past: DynamicCache) -> Tensor:
        decoder = model.model
        with view_of(model, TEACHER):
            hidden_BTD = run_layers(decoder, decoder.embed_tokens(ids_BT), mask_BT, past=past)
        return decoder.norm(hidden_BTD)


def document_of(key: TeacherInput) -> TeacherInput:
    """Return the cache key of an input's document. A token of the prompt stays out of it, since the
    first token of the completion is predicted there.
    """
    tokens = min(key.shared, len(key.prompt_T) - 1)
    return TeacherInput(key.teacher, key.prompt_T[:tokens], ())

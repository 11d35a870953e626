"""Run layers once on the tokens with which the sequences of a pass begin alike, such as the header
of a chat template (24 tokens of SmolLM2's, beside about 40 of a question with a short answer).

Shape suffixes: B sequences, T tokens of the padded batch, P loss positions, D hidden size.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from itertools import takewhile

import torch
from torch import Tensor, nn
from transformers import DynamicCache

from sleep_rl.model.decoder import run_layers
from sleep_rl.model.packing import PaddedRows

FEWEST_TOKENS = 16
"""Of a prefix that is computed once: a pass of its own costs more than fewer tokens."""


def run_after_prefixes(
    decoder: nn.Module,
    hidden_BTD: Tensor,
    rows: PaddedRows,
    groups: list[tuple[list[int], int]],
    first: int,
) -> Tensor:
    """Return the output [P, D] of the layers from `first` at the loss positions; `hidden_BTD` is
    their input, `groups` those of `shared_prefixes`. Gradients pass through the prefixes.
    """
    pieces: dict[int, Tensor] = {}
    for numbers, shared in groups:
        longest = max(len(rows.sequences_B[b]) for b in numbers)
        past = None
        if shared:
            past = _states(decoder, hidden_BTD[numbers[:1], :shared], first, len(numbers))
        out_BTD = run_layers(
            decoder,
            hidden_BTD[numbers, shared:longest],
            rows.mask_BT[numbers, shared:longest],
            first=first,
            past=past,
        )
        for b, out_TD in zip(numbers, out_BTD, strict=True):
            end = len(rows.sequences_B[b]) - 1 - shared
            pieces[b] = out_TD[rows.prompt_lengths_B[b] - 1 - shared : end]
    return torch.cat([pieces[b] for b in range(len(pieces))])


def shared_prefixes(rows: PaddedRows) -> list[tuple[list[int], int]]:
    """Return groups of (sequences that begin alike, number of tokens that they share), and those
    that share too few tokens as one group; no groups if all sequences do. A token that predicts a
    completion is not shared.
    """
    alike = defaultdict(list)
    for b, sequence in enumerate(rows.sequences_B):
        alike[sequence[:FEWEST_TOKENS]].append(b)
    groups = []
    others = []
    for numbers in alike.values():
        common = _common_tokens([rows.sequences_B[b] for b in numbers])
        shared = min(common, *(rows.prompt_lengths_B[b] - 1 for b in numbers))
        if shared >= FEWEST_TOKENS and len(numbers) > 1:
            groups.append((numbers, shared))
        else:
            others += numbers
    return [*groups, (sorted(others), 0)] if groups and others else groups


def _common_tokens(sequences: Sequence[tuple[int, ...]]) -> int:
    """Return the number of tokens with which all sequences begin."""
    columns = zip(*sequences, strict=False)
    return sum(1 for _ in takewhile(lambda column: len(set(column)) == 1, columns))


def _states(decoder: nn.Module, hidden_1TD: Tensor, first: int, count: int) -> DynamicCache:
    """Return the keys and values of a prefix in the layers from `first`, for `count` sequences."""
    mask_1T = torch.ones(hidden_1TD.shape[:2], dtype=torch.long, device=hidden_1TD.device)
    states = DynamicCache()
    run_layers(decoder, hidden_1TD, mask_1T, first=first, past=states)
    # masks and positions read the number of tokens from layer 0
    absent = hidden_1TD.new_zeros(count, 1, hidden_1TD.shape[1], 1)
    return DynamicCache(
        [(absent, absent)] * first
        + [
            (layer.keys.expand(count, -1, -1, -1), layer.values.expand(count, -1, -1, -1))
            for layer in states.layers[first:]
        ]
    )

"""Passes: which rows of a batch go through the model together, and on which rank.

Rows are assigned to ranks so that tokens are balanced. Each rank's rows, sorted by length, form
passes of at most `learners.pass_tokens` padded tokens. Only the order of summation depends on it:
the weight of a row in the loss is set by the whole batch.

Shape suffix: N rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

import torch

from sleep_rl.contracts.records import HARD_TARGET, TrainingRow

MAX_PADDING = 1.25
"""Largest ratio of padded tokens to tokens in the passes of a rank."""
FILLER = -1
_NOT_A_PASS = 1 << 48


class MicroBatch(NamedTuple):
    """Rows that go through the model together: one pass."""

    rows: list[TrainingRow]
    weights: list[float]  # 1 per row, 0 for a filler row
    numbers: list[int]  # of the rows in the batch; FILLER for a filler row


def student_length(row: TrainingRow) -> int:
    """Return the length of the student's sequence: prompt and completion, in tokens."""
    return len(row.prompt_T) + len(row.completion_T)


def assign_to_ranks(lengths_N: Sequence[int], world: int) -> list[list[int]]:
    """Return the row numbers of each rank. Each row, longest first, is assigned to the rank with
    the fewest tokens so far.
    """
    shares: list[list[int]] = [[] for _ in range(world)]
    tokens = [0] * world
    for n in sorted(range(len(lengths_N)), key=lambda n: -lengths_N[n]):
        rank = tokens.index(min(tokens))
        shares[rank].append(n)
        tokens[rank] += lengths_N[n]
    return [sorted(share) for share in shares]


def split_into_passes(
    lengths_N: Sequence[int], budget: int, min_passes: int = 1
) -> list[list[int]]:
    """Return the row numbers of each pass, short rows first: the fewest passes with at most
    `budget` padded tokens each and at most MAX_PADDING in total; among these, those with the least
    padding.

    A row that is longer than the budget is a pass of its own. min_passes: smallest number of
    passes, unless there are fewer rows.
    """
    order = sorted(range(len(lengths_N)), key=lambda n: lengths_N[n])
    if not order:
        return []
    count = len(order)
    lengths = torch.tensor([lengths_N[n] for n in order])
    most = MAX_PADDING * int(lengths.sum())
    ends = torch.arange(count + 1)
    rows = ends - ends[:, None]  # in a pass from row i up to row j, for every i and j
    padded = rows * torch.cat([lengths[:1], lengths])
    padded[(rows < 1) | ((rows > 1) & (padded > budget))] = _NOT_A_PASS
    tokens = padded[0]  # least padded tokens of the first j rows in the passes so far
    starts = [torch.zeros_like(ends)]
    while tokens[-1] > most or len(starts) < min(min_passes, count):
        tokens, start = (tokens[:, None] + padded).min(dim=0)
        starts.append(start)
    passes = []
    end = count
    for start in reversed(starts):
        first = int(start[end])
        passes.append(order[first:end])
        end = first
    return passes[::-1]


def micro_batches(
    batch_N: list[TrainingRow], shares: list[list[int]], rank: int, budget: int
) -> list[MicroBatch]:
    """Return the passes of a rank; `shares`: row numbers of every rank, of `assign_to_ranks`.

    All ranks make equally many passes, since collectives run in each backward pass: a rank with
    fewer passes splits its rows further, or repeats the batch's shortest row with weight 0.
    """

    def passes_of(share: list[int], min_passes: int = 1) -> list[list[int]]:
        lengths = [student_length(batch_N[n]) for n in share]
        return [[share[i] for i in each] for each in split_into_passes(lengths, budget, min_passes)]

    most = max(len(passes_of(share)) for share in shares)
    mine = passes_of(shares[rank], most)
    parts = [
        MicroBatch([batch_N[n] for n in numbers], [1.0] * len(numbers), numbers) for numbers in mine
    ]
    # a hard target, so that no teacher computes anything for it
    filler = replace(min(batch_N, key=student_length), teacher=HARD_TARGET)
    return parts + [MicroBatch([filler], [0.0], [FILLER])] * (most - len(mine))

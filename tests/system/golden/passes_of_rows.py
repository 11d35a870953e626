"""Passes of eight rows each, in place of passes by tokens, for golden/life.txt.

The rows of a forward pass decide the order of sums, and so the last bits of the memory. In these
passes its bytes can be compared with those of the golden file.
"""

from __future__ import annotations

import torch

from learners import optimization
from learners.passes import MicroBatch, student_length
from learners.seeding import Seeding
from learners.teacher import Teacher, teacher_input

ROWS = 8


def eight_at_a_time(rows):
    """Return row numbers, short rows first."""
    order = sorted(range(len(rows)), key=lambda n: student_length(rows[n]))
    return [order[i : i + ROWS] for i in range(0, len(order), ROWS)]


def micro_batches(batch_N, shares, rank, budget):
    assert len(shares) == 1
    return [
        MicroBatch([batch_N[n] for n in numbers], [1.0] * len(numbers), numbers)
        for numbers in eight_at_a_time(batch_N)
    ]


def one_or_two_passes(lengths_N):
    """Return one pass, or two if that saves at least a fifth of the padded tokens."""
    order = sorted(range(len(lengths_N)), key=lambda n: lengths_N[n])
    if not order:
        return []
    longest = lengths_N[order[-1]]
    tokens, cut = min(
        (cut * lengths_N[order[cut - 1]] + (len(order) - cut) * longest, cut)
        for cut in range(1, len(order) + 1)
    )
    return [order[:cut], order[cut:]] if tokens < 0.8 * len(order) * longest else [order]


@torch.no_grad()
def hidden(self, rows_N, min_passes=0):
    """Compute `Teacher.hidden` for eight rows at a time, without removing duplicates."""
    out = [None] * len(rows_N)
    for numbers in eight_at_a_time(rows_N):
        readings = {n: teacher_input(rows_N[n]) for n in numbers}
        known = {reading: self.cache.get(reading) for reading in readings.values()}
        missing = [n for n in numbers if known[readings[n]] is None]
        lengths = [len(readings[n].prompt_T) + len(readings[n].completion_T) for n in missing]
        for each in one_or_two_passes(lengths):
            known |= self._one_pass(0, [readings[missing[i]] for i in each])
        for n in missing:
            if not rows_N[n].behaviour_T:
                self.cache.put(readings[n], known[readings[n]])
        for n in numbers:
            out[n] = known[readings[n]]
    return out


def use_passes_of_rows(monkeypatch):
    """Let learners in this process form the passes of life.txt."""
    monkeypatch.setattr(optimization, "micro_batches", micro_batches)
    monkeypatch.setattr(Teacher, "hidden", hidden)
    monkeypatch.setattr(Seeding, "_shared_prefixes", lambda self, decoder, rows: [])

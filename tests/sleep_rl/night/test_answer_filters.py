"""Filters of generated answers: repeated when asked again, and gained from the document."""

from __future__ import annotations

from sleep_rl.contracts.errors import Failure
from tests.fakes.natural_teacher import teacher, written


def test_answers_without_gain_are_dropped():
    run = teacher(knows=("seaweed",), kinds={"reversed": 1})
    sequences, counts = written(run)
    assert counts.dropped["no gain"] == 1 and len(sequences) == 1
    run = teacher(knows=("seaweed",), kinds={"reversed": 1}, min_gain=-1.0)
    assert len(written(run)[0]) == 2


def test_failed_samples_are_counted_as_failed_and_not_as_answers():
    """A failed second sample does not say that the teacher answers otherwise."""
    run = teacher(kinds={"reversed": 1})
    reply = run.reply

    def failing(text, seed, temperature):
        second = temperature > 0 and "Document:" in text and "Sentence:" not in text
        return Failure("engine died") if second else reply(text, seed, temperature)

    run.reply = failing
    sequences, counts = written(run)
    assert sequences == [] and counts.journal_fields()["dropped"] == {"failed": 3}

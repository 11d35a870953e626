"""The retention check: what a night may cost, against the best so far, on questions of its own."""

from dataclasses import replace
from functools import partial

import pytest

from sleep_rl.contracts.records import Question
from sleep_rl.driver.measures.selection import held_out_questions, is_held_out, reported
from sleep_rl.driver.retention_check import Drop, best_so_far, excessive_drop
from tests.fakes.configs import changed
from tests.fakes.crew import CONFIG, Crew, live_life
from tests.fakes.reader import reading_run
from tests.fakes.texts import DAYS, Diary

KNOWN = tuple(Question(f"known/{n}", f"Q : old {n} ? A :", "yes") for n in range(40))
HELD_OUT = [q for q in KNOWN if is_held_out(q)]
REPORTED = [q for q in KNOWN if not is_held_out(q)]


def test_a_drop_is_measured_against_the_best_of_each_column():
    config = changed(CONFIG, evaluate={"max_drop": 0.1})
    best = best_so_far({"known": 0.9}, {"known": 0.95, "day1": 0.5})
    best = best_so_far(best, {"known": 0.87, "day1": 0.6, "day2": 0.4})
    assert best == {"known": 0.95, "day1": 0.6, "day2": 0.4}
    # 0.08 below the night before, 0.16 below the best
    row = {"known": 0.79, "day1": 0.5, "day2": 0.4, "day3": 0.0}
    assert excessive_drop(config, best, row) == Drop("known", 0.95, 0.79)
    assert excessive_drop(config, best, row | {"known": 0.85}) is None  # 0.1 is allowed
    assert excessive_drop(changed(config, evaluate={"max_drop": None}), best, row) is None
    assert excessive_drop(config, {}, row) is None


class Sliding(Crew):
    """After each night one more of the known questions in `half` has another answer."""

    def __init__(self, half, texts):
        super().__init__(texts)
        self.half = half

    def answer(self, request, name):
        sample = super().answer(request, name)
        text = self.texts.text(request.prompt_T)
        if " old " not in f" {text} " or "A :" not in text:
            return sample
        nights = sum(entry[:2] == ("open", 1) for entry in self.protocol)
        undone = sum(entry == ("use", "before the night") for entry in self.protocol)
        lost = [self.texts.text(self.texts.question(q)) for q in self.half[: nights - undone]]
        return replace(self.sampled(request, name, "no" if text in lost else "yes"), seed=0)


class Remembers(Diary):
    def known(self):
        return KNOWN


def lived(folder, half, nights_lost):
    """Return (records of rollbacks, evaluations) of a life that forgets questions of `half`, with a
    limit between `nights_lost` and one more question.
    """
    limit = (nights_lost + 0.5) / len(half)
    config = changed(CONFIG, evaluate={"max_drop": limit})
    _, records = live_life(config, folder, partial(Sliding, half), task=Remembers())
    rows = [r for r in records if r["kind"] == "evaluate" and r["row"]]
    return [r for r in records if r["kind"] == "rolled_back"], rows


def test_a_slide_of_small_drops_is_stopped(tmp_path):
    """One question a night is allowed, and the third night is two below the best."""
    rolled, rows = lived(tmp_path, HELD_OUT, 1)
    assert [r["night"] for r in rolled] == [2, 3, 4]
    assert {(r["before"], r["after"]) for r in rolled} == {(1.0, 1 - 2 / len(HELD_OUT))}
    # none of the reported questions was lost, and the held-out half is in no column
    assert {r["row"]["known"] for r in rows} == {1.0}
    assert {r["n"]["known"] for r in rows} == {len(REPORTED)}
    assert rows[-1]["held_out_row"]["known"] == 1 - 1 / len(HELD_OUT)


def test_the_reported_half_decides_nothing(tmp_path):
    rolled, rows = lived(tmp_path, REPORTED, 1)
    assert rolled == []
    assert rows[-1]["row"]["known"] == pytest.approx(1 - DAYS / len(REPORTED))
    assert rows[-1]["held_out_row"]["known"] == 1.0


def test_without_a_limit_all_questions_are_reported(tmp_path):
    run = reading_run(tmp_path, changed(CONFIG, evaluate={"max_drop": None}))
    assert reported(run, KNOWN) == list(KNOWN) and held_out_questions(run, KNOWN) == []
    run = replace(run, config=changed(CONFIG, evaluate={"max_drop": 0.1}))
    assert reported(run, KNOWN) == REPORTED and held_out_questions(run, KNOWN) == HELD_OUT
    # a question stays in its half, whatever is asked beside it
    assert held_out_questions(run, reversed(KNOWN[:9])) == [
        q for q in KNOWN[8::-1] if is_held_out(q)
    ]
    assert 0.3 < len(HELD_OUT) / len(KNOWN) < 0.7
    run = replace(run, config=changed(CONFIG, evaluate={"max_drop": 0.1, "questions": 5}))
    assert len(reported(run, KNOWN)) == len(held_out_questions(run, KNOWN)) == 5

"""Answers of one state: by kind, by likelihood, and beside the untouched base's."""

from dataclasses import replace
from statistics import fmean

import pytest

from sleep_rl.contracts.errors import Failure
from sleep_rl.contracts.records import CHECKPOINT, DELETED, TEACHER
from sleep_rl.driver.evaluation import evaluate
from sleep_rl.driver.measures.answers import Result, as_the_base, ask, summarise
from sleep_rl.driver.measures.likelihood import best_choice
from sleep_rl.driver.measures.selection import reported
from sleep_rl.journal.journal import read
from tests.fakes.reader import BOUGHT, reading_run
from tests.fakes.undocumented import undocumented


def evaluated(run, folder, **arguments):
    evaluate(run, after="night 2", lived=2, **arguments)
    return [r for r in read(folder / "metrics.jsonl") if r["kind"] == "evaluate"][-1]


def test_a_record_has_columns_kinds_likelihoods_and_costs(tmp_path):
    run = reading_run(tmp_path, knows={TEACHER: ["Alice Thorne", "Ruth Abel", "Ned Gray"]})
    record = evaluated(run, tmp_path)
    assert record["row"] == {"known": 1.0, "day1": 0.5, "day2": 1.0}
    assert record["kinds"] == {"verbatim": 0.75, "paraphrased": 0.75}
    assert record["n"] == {"known": 1, "day1": 4, "day2": 4, "verbatim": 4, "paraphrased": 4}
    # the Reader's nats: 0.1 a character of what it answers, 1 a character of what it does not
    nats = {who: len(what) * (1.0 if who == "Edgar Pike" else 0.1) for who, what in BOUGHT.items()}
    day1 = fmean([nats["Alice Thorne"], nats["Edgar Pike"]])
    day2 = fmean([nats["Ruth Abel"], nats["Ned Gray"]])
    assert record["nll"] == pytest.approx(
        {
            "known": 0.4,
            "day1": day1,
            "day2": day2,
            "verbatim": fmean([day1, day2]),
            "paraphrased": fmean([day1, day2]),
            "all days": fmean([day1, day2]),
        }
    )
    # no wrong answers are given for the known
    assert record["choice"] == {
        "day1": 0.5,
        "day2": 1.0,
        "verbatim": 0.75,
        "paraphrased": 0.75,
        "all days": 0.75,
    }
    days = run.task.days()
    prompts = [run.codec.question(q) for q in run.task.known()]
    prompts += [run.codec.question(q) for day in days for q in reported(run, day.questions)]
    closed = len(run.codec.context(None))
    assert record["prompt_tokens"] == fmean(len(prompt) + closed for prompt in prompts)
    assert record["answer_seconds"] > 0
    assert undocumented(read(tmp_path / "metrics.jsonl")) == []


def test_never_told_questions_are_compared_with_the_untouched_base(tmp_path):
    run = reading_run(tmp_path)
    record = evaluated(run, tmp_path)
    assert record["as_base"] == {"never-told": 1.0} and "never-told" not in record["kinds"]
    run.crew.invents.add(TEACHER)
    assert evaluated(run, tmp_path, method="sft")["as_base"] == {"never-told": 0.0}
    run.crew.invents.add(CHECKPOINT)  # what the base itself invents is no harm done
    assert evaluated(run, tmp_path, method="joint")["as_base"] == {"never-told": 1.0}
    # a checkpoint that is evaluated by itself has no base beside it
    assert "as_base" not in evaluated(run, tmp_path, method="other", weights=CHECKPOINT)
    assert as_the_base(run, [], TEACHER) == {}


def test_the_answers_of_corrected_and_deleted_documents_are_counted(tmp_path):
    run = reading_run(tmp_path, knows={TEACHER: ["Alice Thorne", "Edgar Pike"]})
    [first, second, third, *_] = run.task.days()[0].questions
    corrected = replace(first, answer="green seaweed", old_answer="red seaweed")
    results, _ = ask(run, {"day1": [corrected, second]}, TEACHER)
    assert [r.grade for r in results] == [0.0, 1.0] and [r.old for r in results] == [1.0, None]
    assert summarise(results, ["day1"])["old_answers"] == {"corrected": 1.0}
    deleted = replace(third, answer="", kind=DELETED, old_answer="brass clock")
    forgotten = replace(deleted, prompt="What did Ruth Abel buy?", old_answer="white hedgehog")
    fields = as_the_base(run, [deleted, forgotten], TEACHER)
    # one is still given; the other has the base's answer
    assert fields == {"as_base": {"deleted": 0.5}, "old_answers": {"deleted": 0.5}}


def test_a_failed_sample_grade_or_likelihood_is_no_zero(tmp_path):
    run = reading_run(tmp_path, knows={TEACHER: list(BOUGHT)})
    sample = run.crew.sample
    logprobs = run.crew.logprobs
    run.crew.sample = lambda requests, *rest: [
        Failure("cut off", "rollout") if n == 0 else s
        for n, s in enumerate(sample(requests, *rest))
    ]
    run.crew.logprobs = lambda requests, name: [
        Failure("cut off", "rollout") if n == 1 else p
        for n, p in enumerate(logprobs(requests, name))
    ]
    grade = run.task.grade
    run.task.grade = lambda q, text: (
        Failure("no judge") if q.kind == "paraphrased" else grade(q, text)
    )
    questions = reported(run, run.task.days()[0].questions)
    results, _ = ask(run, {"day1": questions}, TEACHER, likelihood=True)
    assert [r.grade for r in results] == [None, None, 1.0, None]
    # the second likelihood is that of a wrong answer to the first question
    assert [r.choice for r in results] == [None, 1.0, 1.0, 1.0]
    assert all(r.nll is not None for r in results)
    counted = {
        (r["where"], r["reason"]): r["count"]
        for r in read(tmp_path / "metrics.jsonl")
        if r["kind"] == "failure"
    }
    assert counted == {
        ("sample", "cut off"): 1,
        ("grade", "no judge"): 2,
        ("logprobs", "cut off"): 1,
    }
    assert summarise(results, ["day1"])["n"]["day1"] == 1


def test_other_tasks_get_no_likelihoods(tmp_path):
    fields = summarise([Result("known", "", 3, 1.0), Result("day1", "", 3, 0.0)], ["known", "day1"])
    assert fields == {"row": {"known": 1.0, "day1": 0.0}, "n": {"known": 1, "day1": 1}}


def test_a_choice_is_the_likeliest_by_character():
    # 3 nats over 3 characters against 4 nats over 8
    assert best_choice(["one", "thousand"], [-3.0, -4.0]) == 1
    assert best_choice(["one", "thousand"], [-3.0, -9.0]) == 0
    assert best_choice(["one", "thousand"], [-3.0, None]) is None

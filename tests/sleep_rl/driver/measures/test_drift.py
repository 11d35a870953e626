"""Drift from the untouched base, on texts that it wrote itself."""

import math
from dataclasses import replace

import pytest

from sleep_rl.config.schema import Config
from sleep_rl.contracts.errors import Failure
from sleep_rl.contracts.records import CHECKPOINT, TEACHER
from sleep_rl.driver.cycle import begin
from sleep_rl.driver.evaluation import evaluate
from sleep_rl.driver.measures import drift as measured
from sleep_rl.driver.measures.drift import drift, sample_texts
from sleep_rl.journal.journal import read
from sleep_rl.report.page import write_report
from sleep_rl.session.console import Console
from tests.fakes.configs import changed
from tests.fakes.crew import CONFIG, Crew, live_life
from tests.fakes.dice import BASE, NOW, Dice
from tests.fakes.reader import reading_run


def dicing_run(folder, crew=None, **more):
    run = replace(reading_run(folder, **more), crew=crew or Dice())
    return replace(run, drift_texts=sample_texts(run))


def test_the_estimate_is_the_divergence_of_the_base_from_now(tmp_path, monkeypatch):
    """KL(base || now) by its definition, against the mean over many sampled tokens."""
    monkeypatch.setattr(measured, "TEXTS", 400)
    run = dicing_run(tmp_path)
    exact = sum(p * math.log(p / NOW[token]) for token, p in BASE.items())
    # 24,000 tokens, whose log-ratios have a standard deviation of 0.7
    assert drift(run, TEACHER) == pytest.approx(exact, abs=0.02)
    tokens = [token for _, text, _ in run.drift_texts for token in text]
    by_hand = sum(math.log(BASE[t] / NOW[t]) for t in tokens) / len(tokens)
    assert drift(run, TEACHER) == pytest.approx(by_hand) and len(tokens) == 400 * 60


def test_texts_are_as_many_and_as_long_as_said_and_in_chat_half_are_answers(tmp_path):
    run = reading_run(tmp_path)
    texts = sample_texts(run)
    assert len(texts) == 16 and all(len(text) <= 64 for _, text, _ in texts)
    asked = [run.codec.text(text) for _, text, _ in texts[:8]]
    assert all(text.startswith("How is day") for text in asked)
    for (context, _, _), question in zip(texts[8:], asked, strict=True):
        whole = run.codec.tokens.text(tuple(context), special=True)
        assert whole.endswith(f"{question}<|im_end|>\n<|im_start|>assistant\n")
    assert {name for name, _ in run.crew.asked} == {CHECKPOINT}
    assert drift(run, TEACHER) is None  # of a run without drift_texts


def test_a_failed_text_is_left_out_and_counted(tmp_path):
    class Failing(Dice):
        def sample(self, requests_N, name, how):
            return [Failure("lost", "rollout"), *super().sample(requests_N[1:], name, how)]

        def logprobs(self, requests_N, name):
            results = super().logprobs(requests_N, name)
            return [Failure("lost too", "rollout"), *results[1:]]

    run = dicing_run(tmp_path, Failing())
    # of 8 turns 7 are sampled, of 7 answers 6; one has no base
    assert len(run.drift_texts) == 7 + 6 - 1
    assert drift(run, TEACHER) is not None
    lost = [r["reason"] for r in read(tmp_path / "metrics.jsonl") if r["kind"] == "failure"]
    assert lost == ["lost", "lost", "lost too", "lost too"]


class Moving(Crew):
    """After each night every token of the base's texts is less likely by `step` nats."""

    step = 0.01

    def likelihood(self, request, name):
        nights = sum(entry[:2] == ("open", 1) for entry in self.protocol)
        return -1.0 - (0 if name == CHECKPOINT else self.step * nights)


@pytest.mark.parametrize(("limit", "alarms"), [(None, []), (0.025, ["night 3", "night 4"])])
def test_every_life_measures_drift_and_warns_above_the_limit(limit, alarms, tmp_path, capsys):
    config = changed(CONFIG, evaluate={"max_drift": limit})
    _, records = live_life(config, tmp_path, Moving)
    evaluations = [r for r in records if r["kind"] == "evaluate" and r["row"]]
    drifts = {r["after"]: r["drift"] for r in evaluations}
    assert drifts.pop("base") is None
    assert drifts == pytest.approx({f"night {n}": 0.01 * n for n in (1, 2, 3, 4)})
    assert [r["after"] for r in evaluations if r.get("drift_alarm")] == alarms
    console = Console()
    for record in records:
        console.log(record)
    said = [line for line in capsys.readouterr().out.splitlines() if "max_drift" in line]
    assert [line.split(":")[0] for line in said] == [f"WARNING {after}" for after in alarms]
    if alarms:
        assert "is 0.030 nats per token, evaluate.max_drift is 0.025" in said[0]
    page = write_report(tmp_path).read_text()
    assert "0.040" in page and "Drift from the untouched base" in page


def test_the_texts_are_sampled_once_and_kept_with_the_checkpoint(tmp_path):
    run = reading_run(tmp_path, Config())
    run.crew.learn = run.crew
    run.crew.push = run.crew.save_state = lambda *arguments: None
    texts = begin(run)
    assert texts == run.progress.results["begin"] and begin(run) is texts
    evaluate(replace(run, drift_texts=texts), after="night 1", lived=1)
    record = [r for r in read(tmp_path / "metrics.jsonl") if r["kind"] == "evaluate"][-1]
    assert record["drift"] == 0.0
    sampled = [text for name, text in run.crew.asked if text.endswith("user\n")]
    assert len(sampled) == 8

"""A run of the real driver, crew, pools and weight store in which rollout and reward workers die
repeatedly: the learner receives the same calls, token by token, as in a run without deaths.
"""

from dataclasses import replace

import pytest

from cluster.crew import start_crew
from cluster.worker_specs import CrewSpec
from sleep_rl.config.schema import Cluster, Rollouts
from sleep_rl.contracts.errors import RunError
from sleep_rl.driver.cycle import live
from sleep_rl.journal.journal import Journal, read
from sleep_rl.night import pipeline
from sleep_rl.session.console import Console
from sleep_rl.session.context import RunContext
from sleep_rl.text.codec import PromptCodec
from tests.fakes.backends import MortalBackend
from tests.fakes.crew import CONFIG
from tests.fakes.diary_workers import DiaryRollout, DigestLearner
from tests.fakes.texts import Diary, StableWords


def life_under(share, folder, steps, seed=0):
    """Return (digest of the learner's calls, deaths, records) of a run whose workers die in this
    share of their calls.
    """
    folder.mkdir()
    config = replace(
        CONFIG,
        sleep=replace(CONFIG.sleep, steps=steps),
        rollouts=Rollouts(workers=3),
        cluster=Cluster(restarts=100_000),
    )
    texts = PromptCodec(Diary(), StableWords())
    journal = Journal(folder / "metrics.jsonl")
    with MortalBackend(DiaryRollout, DigestLearner, share, seed) as backend:
        crew = start_crew(backend, CrewSpec(config, "none", "none"), journal)
        live(RunContext(crew, texts.task, texts, config, journal, Console(), str(folder)))
        learned = backend.learners[0].digest()
        crew.close()
    journal.close()
    return learned, backend.deaths, read(folder / "metrics.jsonl")


@pytest.mark.parametrize(
    "steps, least", [(20, 40), pytest.param(400, 1000, marks=pytest.mark.slow)]
)
def test_deaths_do_not_change_what_the_learner_receives(steps, least, tmp_path, capsys):
    want, none, quiet = life_under(0.0, tmp_path / "quiet", steps)
    assert none == 0 and want[1] == 7 * steps  # consolidations
    got, deaths, records = life_under(0.7, tmp_path / "mortal", steps)
    assert deaths >= least
    assert got == want
    kinds = [record["kind"] for record in records]
    assert kinds.count("restarted") == deaths and "failure" not in kinds
    assert [r["version"] for r in records if r["kind"] == "push"] == [
        r["version"] for r in quiet if r["kind"] == "push"
    ]


def test_with_lag_0_the_pipeline_equals_sequential_execution(tmp_path, capsys, monkeypatch):
    turns, _, records = life_under(0.0, tmp_path / "turns", 20)
    threaded = []
    monkeypatch.setattr(
        pipeline,
        "_in_turn",
        lambda flow, rounds: threaded.append(flow) or pipeline._ahead(flow, rounds, 0),
    )
    ahead, _, again = life_under(0.0, tmp_path / "ahead", 20)
    assert ahead == turns and len(threaded) == 7  # consolidations
    kinds = ("seed", "push", "written", "evaluate", "flow")
    for got, want in zip(
        (r for r in again if r["kind"] in kinds),
        (r for r in records if r["kind"] in kinds),
        strict=True,
    ):
        timeless = [
            {k: v for k, v in r.items() if k != "t" and not k.endswith(("_s", "seconds", "pause"))}
            for r in (got, want)
        ]
        assert timeless[0] == timeless[1]


@pytest.mark.parametrize("restarts", [0, 5])
def test_the_restart_budget_is_cluster_restarts(restarts, tmp_path, capsys):
    config = replace(CONFIG, rollouts=Rollouts(workers=2), cluster=Cluster(restarts=restarts))
    texts = PromptCodec(Diary(), StableWords())
    journal = Journal(tmp_path / "metrics.jsonl")
    with (
        MortalBackend(DiaryRollout, DigestLearner, 0.5) as backend,
        pytest.raises(RunError, match=f"cluster.restarts = {restarts} are used up$"),
    ):
        crew = start_crew(backend, CrewSpec(config, "none", "none"), journal)
        live(RunContext(crew, texts.task, texts, config, journal, Console(), str(tmp_path)))
    assert [r["kind"] for r in read(tmp_path / "metrics.jsonl")].count("restarted") == restarts

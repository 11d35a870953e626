"""A run of the real driver, crew, pools and weight store in which rollout and reward workers die
repeatedly: the learner receives the same calls, token by token, as in a run without deaths.
"""

import hashlib
import random
from dataclasses import replace

import pytest
import torch

from cluster.crew import start_crew
from cluster.runtime.handle import Pending, WorkerDied
from cluster.runtime.local_backend import LocalBackend, LocalChannel
from cluster.worker_specs import CrewSpec
from sleep_rl.config.schema import Cluster, Rollouts
from sleep_rl.contracts.errors import RunError
from sleep_rl.contracts.records import CHECKPOINT, LoadReport, StepResult, Weights
from sleep_rl.driver.cycle import live
from sleep_rl.journal.journal import Journal, read
from sleep_rl.model.tensor_digest import digest
from sleep_rl.night import pipeline
from sleep_rl.session.console import Console
from sleep_rl.session.context import RunContext
from sleep_rl.text.codec import PromptCodec
from tests.fakes.crew import CONFIG, Crew
from tests.fakes.texts import Diary, StableWords

# calls without a death after each restart, because a failed call is retried only once
SAFE = 20


class Rollout:
    """Holds verified states only, and samples like the fake Crew."""

    def __init__(self, **_):
        self.held_ = {CHECKPOINT: 0}  # as every engine: the untouched base
        self.tensors = {}

    def load(self, weights):
        self.tensors |= {digest(t): t for t in weights.tensors.values()}
        missing = [key for key, wanted in weights.manifest.items() if wanted not in self.tensors]
        if missing:
            raise RunError(f"missing {missing[0]}")
        if self.held_.get(weights.name, -1) < weights.version:
            self.held_[weights.name] = weights.version
        return LoadReport(
            weights.name, self.held_[weights.name], len(weights.tensors), weights.nbytes, 0.0, 0.0
        )

    def sample(self, requests_N, name, version, sampling):
        if self.held_.get(name, -1) < version:
            raise RunError(f"{name} {version} is not held, but {self.held_}")
        crew = Crew(PromptCodec(Diary(), StableWords()), [])
        samples = [crew.answer(r, name) for r in requests_N]
        return [replace(s, versions_T=(self.held_[name],) * len(s.completion_T)) for s in samples]

    def logprobs(self, requests_N, name, version):
        if self.held_.get(name, -1) < version:
            raise RunError(f"{name} {version} is not held, but {self.held_}")
        return [(-1.0,) * len(request.prompt_T) for request in requests_N]

    def held(self):
        return dict(self.held_)

    def drop_caches(self):
        pass

    close = drop_caches


class Learner:
    """Its weights are a digest of all training calls."""

    def __init__(self, **_):
        self.calls_digest = hashlib.sha256()
        self.steps = 0

    def wake(self, documents_N):
        return {"loss": 1.0, "updates": 1.0}

    def open_night(self, receiver, due=(), slot="next"):
        return 1

    def seed_step(self, batch_N, step, steps):
        self.steps += 1
        self.calls_digest.update(repr((batch_N, step)).encode())
        return StepResult(dict(Crew.step_metrics), [0.1] * len(batch_N))

    def commit_night(self):
        pass

    def export(self, name, version, have, view):
        number = int(self.calls_digest.hexdigest()[:6], 16) if view == "student" else version
        tensors = {"a#1": torch.tensor([float(number)]), "b#1": torch.ones(2)}
        manifest = {key: digest(t) for key, t in tensors.items()}
        return Weights(
            name,
            version,
            manifest,
            {k: t for k, t in tensors.items() if have.get(k) != manifest[k]},
        )

    def digest(self):
        return self.calls_digest.hexdigest(), self.steps

    def save_state(self, tag):
        pass

    load_state = save_checkpoint = save_memory = load_checkpoint = save_state

    def close(self):
        pass


class Died(Pending):
    """The future of a call whose worker died."""

    def ready(self, wait_s):
        return True

    def outcome(self, wait_s, limit_s):
        raise WorkerDied(f"worker {self.worker} died during {self.method}: injected")


class MortalChannel(LocalChannel):
    def __init__(self, name, backend):
        super().__init__(name)
        self.backend = backend
        self.dead = False
        backend.calls = 0

    def send(self, verb, label, /, *args, **kwargs):
        self.backend.calls += 1
        mortal = self.backend.calls > SAFE and label in ("sample", "load", "score")
        if not self.dead and mortal and self.backend.rng.random() < self.backend.share:
            self.dead = True
            self.backend.deaths = self.backend.deaths + 1
            if self.backend.rng.random() < 0.5:
                # it died after the work, before it returned
                super().send(verb, label, *args, **kwargs)
        return (
            Died(self._host.name, label)
            if self.dead
            else super().send(verb, label, *args, **kwargs)
        )


class MortalBackend(LocalBackend):
    """Local workers that die in a share of their calls; all but reward workers are fakes."""

    def __init__(self, share, seed=0):
        super().__init__()
        self.share = share
        self.rng = random.Random(seed)
        self.deaths = 0
        self.calls = 0
        self.learners = []

    def spawn(self, cls, kwargs, **rest):
        return super().spawn(
            Rollout if cls == "actors.rollout:RolloutWorker" else cls, kwargs, **rest
        )

    def spawn_ranks(self, cls, kwargs, **rest):
        self.learners = super().spawn_ranks(Learner, kwargs, **rest)
        return self.learners

    def open(self, request):
        if request.name.startswith("learner"):
            return super().open(request)
        self._channels.append(MortalChannel(request.name, self))
        return self._channels[-1]


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
    with MortalBackend(share, seed) as backend:
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
        MortalBackend(0.5) as backend,
        pytest.raises(RunError, match=f"cluster.restarts = {restarts} are used up$"),
    ):
        crew = start_crew(backend, CrewSpec(config, "none", "none"), journal)
        live(RunContext(crew, texts.task, texts, config, journal, Console(), str(tmp_path)))
    assert [r["kind"] for r in read(tmp_path / "metrics.jsonl")].count("restarted") == restarts

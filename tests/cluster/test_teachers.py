"""Models of model.teachers in a crew: what one model writes, every other one can read."""

from dataclasses import replace

from cluster.crew import CHECKPOINT, start_crew
from cluster.runtime.local_backend import LocalBackend
from cluster.worker_specs import CrewSpec
from sleep_rl.config.schema import Rollouts
from sleep_rl.contracts.errors import Failure
from sleep_rl.contracts.records import Request, Sampling, peer_name
from sleep_rl.journal.journal import Journal
from tests.fakes.configs import toy
from tests.fakes.crew import sampled_ids

IDS = {"student": (5, 299, 1), "wide": (5, 319, 1), "narrow": (5, 279, 1)}
"""Checkpoint -> what it writes: its last id but one is the last of its vocabulary."""


class Writer:
    """A rollout worker and a learner."""

    def __init__(self, checkpoint, **_):
        self.checkpoint = checkpoint
        self.loaded = ()

    def sample(self, requests_N, name, version, sampling):
        written = [(7, 8, 1), IDS[self.checkpoint]]
        return [
            sampled_ids(request, name, ids_T, version=version)
            for request, ids_T in zip(requests_N, written, strict=True)
        ]

    def load_teachers(self, paths):
        self.loaded = tuple(paths)

    def unload_teachers(self):
        self.loaded = ()

    def drop_caches(self):
        pass

    close = drop_caches


class Backend(LocalBackend):
    """Writers in place of engines and learners."""

    def spawn(self, cls, kwargs, **rest):
        return super().spawn(Writer if "rollout" in cls else cls, kwargs, **rest)

    def spawn_ranks(self, cls, kwargs, **rest):
        return super().spawn_ranks(Writer, kwargs, **rest)


def test_a_token_that_only_pads_a_vocabulary_is_a_failure_while_there_are_teachers(tmp_path):
    config = toy(model={"teachers": ["wide", "narrow"]})
    config = replace(config, rollouts=Rollouts(workers=1))
    requests = [Request((5,), (), 1)] * 2
    sampling = Sampling(4, 1.0, (1,))
    journal = Journal(tmp_path / "metrics.jsonl")
    with Backend() as backend:
        spec = CrewSpec(config, "student", "none", teachers=("wide", "narrow"), shared_ids=280)
        crew = start_crew(backend, spec, journal)
        alone = crew.sample(requests, CHECKPOINT, sampling)
        crew.start_teachers()
        written = {
            name: crew.sample(requests, name, sampling)
            for name in (CHECKPOINT, peer_name(1), peer_name(2))
        }
        crew.stop_teachers()
        assert crew.sample(requests, CHECKPOINT, sampling) == alone
    journal.close()
    assert [sample.completion_T for sample in alone] == [(7, 8, 1), IDS["student"]]
    refused = Failure("a token beyond the 280 ids that student and teachers share", "sample")
    assert [samples[0].completion_T for samples in written.values()] == [(7, 8, 1)] * 3
    assert [samples[1] for samples in written.values()][:2] == [refused] * 2
    assert written[peer_name(2)][1].completion_T == IDS["narrow"]

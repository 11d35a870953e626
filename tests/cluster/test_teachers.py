"""Models of model.teachers in a crew: what one model writes, every other one can read."""

from dataclasses import replace

from cluster.crew import CHECKPOINT, start_crew
from cluster.worker_specs import CrewSpec
from sleep_rl.config.schema import Rollouts
from sleep_rl.contracts.errors import Failure
from sleep_rl.contracts.records import Request, Sampling, peer_name
from sleep_rl.journal.journal import Journal
from tests.fakes.backends import StandInBackend
from tests.fakes.configs import toy
from tests.fakes.teachers import IDS, Writer


def test_a_token_that_only_pads_a_vocabulary_is_a_failure_while_there_are_teachers(tmp_path):
    config = toy(model={"teachers": ["wide", "narrow"]})
    config = replace(config, rollouts=Rollouts(workers=1))
    requests = [Request((5,), (), 1)] * 2
    sampling = Sampling(4, 1.0, (1,))
    journal = Journal(tmp_path / "metrics.jsonl")
    with StandInBackend(Writer, Writer) as backend:
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

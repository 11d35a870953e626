"""The crew's critics: trials use the newest weights, are split over all critics, and change no
weights.
"""

import pytest

from cluster.crew import WorkerCrew
from cluster.runtime.restarts import Restarts
from cluster.worker_specs import CrewHandles, CrewSpec
from sleep_rl.contracts.errors import RunError
from sleep_rl.contracts.records import TEACHER, Sampling, Trial
from sleep_rl.journal.journal import Journal, read
from tests.fakes.configs import toy
from tests.fakes.exports import ExportingLearner

TRIALS = [Trial((), ((1, 2),), seed=seed) for seed in range(7)]


@pytest.fixture
def crew(ray_backend, tmp_path):
    """(kwargs of each critic) -> a crew of critics only, and its journal."""

    def make(*kwargs_N):
        handles = [
            ray_backend.spawn(
                "tests.fakes.rollouts:CountingCritic",
                {"name": f"critic-{i}", **kwargs},
                name=f"critic-{i}",
            )
            for i, kwargs in enumerate(kwargs_N)
        ]
        ray_backend.ready(handles)
        journal = Journal(tmp_path / "metrics.jsonl")
        config = toy(critics={"copies_per_pass": 2})  # several calls
        spec = CrewSpec(config, "none", "none")
        crew_handles = CrewHandles([], critics=handles)
        made = WorkerCrew(ray_backend, spec, crew_handles, journal, Restarts(1, journal))
        made.version = 4
        made.learn = ExportingLearner()
        return made, journal

    return make


@pytest.mark.stack
def test_trials_are_answered_in_order_from_the_newest_weights(crew):
    made, _ = crew({}, {})
    for version in (5, 6):
        assert made.try_out(TRIALS, Sampling(3, 0.0)) == [
            ((seed, 32 * version),) for seed in range(7)
        ]
        assert made.version == version
    assert [handle.held() for handle in made._critics.workers] == [{TEACHER: 6}] * 2


@pytest.mark.stack
def test_a_dead_critic_is_restarted_and_refilled_and_its_trials_are_retried(crew, tmp_path):
    victim = {"victim": "critic-1", "path": str(tmp_path / "died")}
    made, journal = crew(victim, victim)
    assert made.try_out(TRIALS, Sampling(3, 0.0)) == [((seed, 32 * 5),) for seed in range(7)]
    journal.close()
    [record] = read(tmp_path / "metrics.jsonl")
    assert (record["kind"], record["worker"]) == ("restarted", "critic-1") and len(
        made._critics.workers
    ) == 2


@pytest.mark.stack
def test_a_critic_whose_weights_change_ends_the_run(crew):
    made, _ = crew({"drifts": True})
    with pytest.raises(RunError, match=r"^critic-0: trying out dreams changed the model itself$"):
        made.try_out(TRIALS, Sampling(3, 0.0))

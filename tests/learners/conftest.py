"""Learners with DeepSpeed in the test's process."""

import os

import pytest

from cluster.runtime.backend import rank_environment
from cluster.runtime.ports import reserve_port
from tests.learners.twins import CONFIG


@pytest.fixture(scope="session")
def worker(sleep_checkpoint):
    """Return a function config -> LearnerWorker on a tiny random model; all share one process
    group.
    """
    from learners.worker import LearnerWorker

    with reserve_port("127.0.0.1") as reserved:
        os.environ.update(rank_environment(0, 1, *reserved.getsockname()))
        yield lambda config=CONFIG, kind="locked": LearnerWorker(
            sleep_checkpoint("qwen3", kind), config, probe_T=(5, 6, 7, 8)
        )

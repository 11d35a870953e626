"""Learners on real DeepSpeed, in this process."""

import os
import socket

import pytest

from tests.learners.twins import CONFIG


@pytest.fixture(scope="session")
def worker(sleep_checkpoint):
    """config -> LearnerWorker on the untrained tiny sleep model; one process group for all."""
    from learners.worker import LearnerWorker

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    os.environ.update(
        RANK="0", LOCAL_RANK="0", WORLD_SIZE="1", MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port)
    )
    return lambda config=CONFIG, kind="locked": LearnerWorker(
        sleep_checkpoint("qwen3", kind), config, probe_T=(5, 6, 7, 8)
    )

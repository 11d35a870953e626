"""A job server, and a job on it."""

import pytest

from tests.fakes.http_servers import in_a_thread
from tests.fakes.job_server import TOKEN, JobServer


@pytest.fixture
def server(monkeypatch):
    for name in (
        "RAY_AUTH_MODE",
        "RAY_AUTH_TOKEN_PATH",
        "RAY_API_SERVER_ADDRESS",
        "SLEEP_RL_COMMIT",
    ):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("RAY_AUTH_TOKEN", TOKEN)
    monkeypatch.setattr("cluster.jobs.submit.POLL_S", 0.01)
    monkeypatch.setattr("cluster.jobs.follow.POLL_S", 0.01)
    server = JobServer()
    with in_a_thread(server):
        yield server


@pytest.fixture
def job(server):
    """The id of a job that exists."""
    server.jobs["life-1"] = {"metadata": {"run": "/shared/runs/life-1"}}
    return "life-1"

"""The live page of a run."""

import pytest

from tests.fakes.watch_client import WatchClient


@pytest.fixture
def watch(tmp_path):
    clients = []

    def make(folder=tmp_path, **how):
        clients.append(WatchClient(folder, **how))
        return clients[-1]

    yield make
    for client in clients:
        client.close()

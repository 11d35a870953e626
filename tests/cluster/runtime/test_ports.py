"""A reserved port is not assigned to other processes until its own process listens."""

import socket
from datetime import timedelta

import pytest
from torch.distributed import TCPStore

from cluster.runtime.local_backend import LocalBackend
from cluster.runtime.ports import reserve_port
from cluster.runtime.remote import Host
from tests.fakes.workers import Echo

OTHERS = 400


def test_a_reserved_port_is_not_assigned_again_and_a_server_can_listen_on_it():
    with reserve_port() as reserved:
        port = reserved.getsockname()[1]
        others = [
            socket.socket(family) for family in (socket.AF_INET, socket.AF_INET6) * (OTHERS // 2)
        ]
        for number, other in enumerate(others):
            # every second pair sets SO_REUSEADDR, as servers do
            other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, number // 2 % 2)
            other.bind(("", 0))
        taken = {other.getsockname()[1] for other in others}
        for other in others:
            other.close()
        assert len(taken) >= OTHERS // 2 and port not in taken
        with socket.socket() as other, pytest.raises(OSError, match="Address already in use"):
            other.bind(("", port))
        for use_libuv in (True, False):  # torch's rendezvous
            store = TCPStore("127.0.0.1", port, 1, True, timedelta(seconds=30), use_libuv=use_libuv)
            store.set("key", "value")
            assert (store.port, store.get("key")) == (port, b"value")
            del store
        with socket.create_server(("127.0.0.1", port)):  # as asyncio
            pass


def test_the_rendezvous_port_stays_reserved_until_rank_0_ends():
    with LocalBackend() as backend:
        [rank_0] = backend.spawn_ranks(Echo, {}, name="learner", world_size=1)
        port = int(rank_0.env("MASTER_PORT")[0])
        with socket.socket() as other, pytest.raises(OSError, match="Address already in use"):
            other.bind(("", port))
        rank_0.kill()
        with socket.create_server(("127.0.0.1", port)):
            pass


def test_a_second_rendezvous_releases_the_first_port():
    host = Host("learner-0")
    first = host.rendezvous()[1]
    second = host.rendezvous()[1]
    with socket.create_server(("", first)) if first != second else socket.socket():
        pass
    assert host.reserved_port.getsockname()[1] == second
    host.release()
    assert host.reserved_port is None

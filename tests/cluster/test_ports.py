"""A port that a process is to listen at later is nobody else's meanwhile."""

import os
import socket
from datetime import timedelta

import pytest
from torch.distributed import TCPStore

from cluster.runtime.local_backend import LocalBackend
from cluster.runtime.ports import held_port
from cluster.runtime.remote import Host

OTHERS = 400


class Rank:
    """What a rank sees of its group."""

    def port(self):
        return int(os.environ["MASTER_PORT"])


def test_a_held_port_is_given_to_nobody_else_and_its_own_process_listens_there():
    with held_port() as held:
        port = held.getsockname()[1]
        others = [
            socket.socket(family) for family in (socket.AF_INET, socket.AF_INET6) * (OTHERS // 2)
        ]
        for number, other in enumerate(others):
            # every second pair asks as servers do
            other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, number // 2 % 2)
            other.bind(("", 0))
        taken = {other.getsockname()[1] for other in others}
        for other in others:
            other.close()
        assert len(taken) >= OTHERS // 2 and port not in taken
        with socket.socket() as other, pytest.raises(OSError, match="Address already in use"):
            other.bind(("", port))
        for use_libuv in (True, False):  # what torch's ranks meet at
            store = TCPStore("127.0.0.1", port, 1, True, timedelta(seconds=30), use_libuv=use_libuv)
            store.set("key", "value")
            assert (store.port, store.get("key")) == (port, b"value")
            del store
        with socket.create_server(("127.0.0.1", port)):  # as asyncio's servers do
            pass


def test_the_learners_meeting_port_is_kept_until_their_leader_ends():
    with LocalBackend() as backend:
        [leader] = backend.spawn_ranks(Rank, {}, name="learner", world_size=1)
        port = leader.port()
        with socket.socket() as other, pytest.raises(OSError, match="Address already in use"):
            other.bind(("", port))
        leader.kill()
        with socket.create_server(("127.0.0.1", port)):
            pass


def test_a_leader_that_is_asked_again_keeps_one_port():
    host = Host("learner-0")
    first, second = host.rendezvous()[1], host.rendezvous()[1]
    with socket.create_server(("", first)) if first != second else socket.socket():
        pass
    assert host.held.getsockname()[1] == second
    host.release()
    assert host.held is None

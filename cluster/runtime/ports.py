"""Reserve ports for processes that listen later."""

from __future__ import annotations

import socket


def reserve_port(host: str = "") -> socket.socket:
    """Return a socket that is bound to a free port and does not listen.

    Until it is closed, Linux assigns the port to no process that asks for any free port; a server
    that sets SO_REUSEADDR, as torch, gRPC and asyncio do, can still bind it and listen. Raises
    OSError.
    """
    reserved = socket.socket()
    try:
        reserved.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        reserved.bind((host, 0))
    except OSError:
        reserved.close()
        raise
    return reserved

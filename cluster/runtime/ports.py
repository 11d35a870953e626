"""Ports that are kept for a process which listens later."""

from __future__ import annotations

import socket


def held_port(host: str = "") -> socket.socket:
    """Bind a socket to a free port, which nobody else is given until it is closed.

    It does not listen: whoever the port is meant for binds it beside this socket and listens, as
    torch, gRPC and asyncio do with SO_REUSEADDR. Linux gives a bound port to no one who asks for
    any free one. Raises OSError.
    """
    held = socket.socket()
    try:
        held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        held.bind((host, 0))
    except OSError:
        held.close()
        raise
    return held

"""Ports that a system gives to nobody who asks for any.

A process beside us cannot be given one between our look and the bind of the one that is to have it,
nor while a node that will come back is away.
"""

from __future__ import annotations

import socket

__all__ = ["UNGIVEN_PORTS", "is_free"]

UNGIVEN_PORTS = range(10_240, 32_000)


def is_free(port: int) -> bool:
    """Say whether nobody has chosen *port* of loopback, for UDP or TCP."""
    with (
        socket.socket(socket.AF_INET, socket.SOCK_STREAM) as tcp,
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as udp,
    ):
        try:
            tcp.bind(("127.0.0.1", port))
            udp.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True

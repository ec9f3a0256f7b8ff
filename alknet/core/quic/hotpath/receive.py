"""Receiving plain 1-RTT packets."""

from __future__ import annotations

from alknet.core.quic.bounds import BoundedConnection

__all__ = ["HotReceive"]


class HotReceive(BoundedConnection):
    """`receive_datagram` for plain packets."""

    is_hot = True
    """Whether plain packets take the short way; aioquic's own way otherwise, for comparison."""

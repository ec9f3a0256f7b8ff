"""Sending plain 1-RTT packets."""

from __future__ import annotations

from alknet.core.quic.hotpath.receive import HotReceive

__all__ = ["HotSend"]


class HotSend(HotReceive):
    """`datagrams_to_send` for plain packets."""

"""What an engine knows about its connection, for people; reads what it counts anyway."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from alknet.core.quic.congestion import CongestionControl
from alknet.core.transport import TransportStatus

if TYPE_CHECKING:
    from alknet.core.quic.engine import Engine

__all__ = ["transport_status"]


def transport_status(engine: Engine, received_bytes: int) -> TransportStatus:
    """Return the numbers of now. Before the first sample there is no round-trip time.

    Args:
        received_bytes: aioquic counts those of unproven paths alone.
    """
    loss, paths = engine._loss, engine._network_paths
    control = loss._cc
    has_rtt = loss._rtt_initialized
    return TransportStatus(
        rtt_s=loss._rtt_smoothed if has_rtt else None,
        rtt_min_s=loss._rtt_min if has_rtt and loss._rtt_min < math.inf else None,
        rtt_latest_s=loss._rtt_latest if has_rtt else None,
        congestion_window_bytes=control.congestion_window,
        in_flight_bytes=control.bytes_in_flight,
        packets_sent=engine.packets_sent,
        packets_received=engine.packets_received,
        packets_lost=control.packets_lost if isinstance(control, CongestionControl) else None,
        mtu_bytes=engine._max_datagram_size,
        sent_bytes=sum(path.bytes_sent for path in paths),
        received_bytes=received_bytes,
        streams=engine.stream_count,
    )

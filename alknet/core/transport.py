"""What a transport knows about one of its connections, for people who look for a fault."""

from __future__ import annotations

import socket
import struct
from collections.abc import Callable

import msgspec

__all__ = ["TransportStatus", "tcp_status"]


class TransportStatus(msgspec.Struct, frozen=True, kw_only=True):
    """Counters and estimates of one connection; None for what its transport cannot tell.

    Attributes:
        rtt_s: Smoothed round-trip time (RFC 9002 sec. 5.3, RFC 6298).
        rtt_min_s: The shortest of late.
        rtt_latest_s: The last sample.
        congestion_window_bytes: How much may be in flight.
        in_flight_bytes: Sent and neither acknowledged nor taken for lost.
        packets_sent: Packets, or TCP segments.
        packets_received: The same, those that arrived twice not counted (TCP: counted).
        packets_lost: Taken for lost; TCP: sent again.
        mtu_bytes: The longest datagram (TCP: IP packet) that the path is known to take.
        sent_bytes: QUIC: of datagrams, on the paths in use; TCP: of the byte stream, acknowledged.
        received_bytes: The same of what came; QUIC: on any path.
        streams: Open in either direction.
    """

    rtt_s: float | None = None
    rtt_min_s: float | None = None
    rtt_latest_s: float | None = None
    congestion_window_bytes: int | None = None
    in_flight_bytes: int | None = None
    packets_sent: int | None = None
    packets_received: int | None = None
    packets_lost: int | None = None
    mtu_bytes: int | None = None
    sent_bytes: int | None = None
    received_bytes: int | None = None
    streams: int | None = None


# linux/tcp.h, struct tcp_info, up to tcpi_data_segs_out; kernels append to it and never change it.
_TCP_INFO = struct.Struct("=8B24I4Q6I")
_SND_MSS, _UNACKED, _PMTU, _RTT, _CWND, _RETRANSMITTED = 2, 4, 13, 15, 18, 23
_ACKED, _RECEIVED, _SEGMENTS_OUT, _SEGMENTS_IN, _MIN_RTT = 26, 27, 28, 29, 31
_UNKNOWN_RTT = 2**32 - 1


def tcp_status(getsockopt: Callable[[int, int, int], bytes]) -> TransportStatus:
    """Ask the kernel about a TCP connection (tcp(7), TCP_INFO); it may know nothing.

    Args:
        getsockopt: The socket's method.
    """
    option = getattr(socket, "TCP_INFO", None)
    if option is None:
        return TransportStatus(streams=1)
    try:
        data = getsockopt(socket.IPPROTO_TCP, option, _TCP_INFO.size)
    except OSError:  # closed meanwhile, or no TCP
        return TransportStatus(streams=1)
    if len(data) < _TCP_INFO.size:  # Linux before 4.6
        return TransportStatus(streams=1)
    info = _TCP_INFO.unpack(data)[8:]
    return TransportStatus(
        rtt_s=info[_RTT] / 1e6,
        rtt_min_s=None if info[_MIN_RTT] == _UNKNOWN_RTT else info[_MIN_RTT] / 1e6,
        congestion_window_bytes=info[_CWND] * info[_SND_MSS],
        in_flight_bytes=info[_UNACKED] * info[_SND_MSS],
        packets_sent=info[_SEGMENTS_OUT],
        packets_received=info[_SEGMENTS_IN],
        packets_lost=info[_RETRANSMITTED],
        mtu_bytes=info[_PMTU],
        sent_bytes=info[_ACKED],
        received_bytes=info[_RECEIVED],
        streams=1,
    )

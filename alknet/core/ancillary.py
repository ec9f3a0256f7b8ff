"""What travels beside a UDP datagram: where it arrived, and how many were joined into one.

On a socket bound to all addresses, IP_PKTINFO (ip(7)) says to which of them a datagram came, and
lets the answer leave from there: a client drops what comes from anywhere else (RFC 9000 sec. 9).
UDP_SEGMENT and UDP_GRO (udp(7)) carry a run of equally long datagrams, the last of which may be
shorter, through the kernel at the price of one. Python has no names for most of these.
"""

from __future__ import annotations

import ipaddress
import socket
import struct
import sys
from collections.abc import Sequence

__all__ = [
    "ANCILLARY_BYTES",
    "Ancillary",
    "arrival_host",
    "can_segment",
    "coalesce",
    "read_ancillary",
    "report_arrivals",
    "run_end",
    "segment_message",
    "source_message",
    "split",
]

# linux/in.h, linux/in6.h and linux/udp.h.
IP_PKTINFO, IPV6_RECVPKTINFO, IPV6_PKTINFO = 8, 49, 50
UDP_SEGMENT, UDP_GRO = 103, 104
# struct in_pktinfo: interface, local address, destination in the header.
_PKTINFO = struct.Struct("@i4s4s")
# struct in6_pktinfo: address, interface.
_PKTINFO6 = struct.Struct("@16sI")
_SEGMENT = struct.Struct("@H")
# Room for one message of each kind, and as much again for what we did not ask for.
ANCILLARY_BYTES = 2 * (socket.CMSG_SPACE(_PKTINFO6.size) + socket.CMSG_SPACE(4))
# Older kernels take no more segments, and none takes more bytes than fit the length field of IP.
MAX_SEGMENTS = 64
MAX_RUN_BYTES = 65_000

Ancillary = list[tuple[int, int, bytes]]
"""Control messages as ``sendmsg`` and ``recvmsg`` know them: level, type, value."""


def report_arrivals(sock: socket.socket) -> bool:
    """Have *sock* tell where datagrams arrive; return whether the kernel does."""
    if sock.family == socket.AF_INET6:  # of IPv4 too, where the socket takes it
        return _is_set(sock, socket.IPPROTO_IPV6, IPV6_RECVPKTINFO)
    return _is_set(sock, socket.IPPROTO_IP, IP_PKTINFO)


def coalesce(sock: socket.socket) -> bool:
    """Have the kernel join what *sock* receives; return whether it does."""
    return _is_set(sock, socket.IPPROTO_UDP, UDP_GRO)


def can_segment(sock: socket.socket) -> bool:
    """The kernel knows UDP_SEGMENT (Linux 4.18); the way to a peer may still refuse it."""
    try:
        sock.getsockopt(socket.IPPROTO_UDP, UDP_SEGMENT)
    except OSError:
        return False
    return True


def read_ancillary(ancillary: Ancillary) -> tuple[int, bytes]:
    """Return the size of each joined datagram, or 0, and what `arrival_host` reads."""
    size, arrival = 0, b""
    for level, kind, value in ancillary:
        if kind == UDP_GRO and level == socket.IPPROTO_UDP:
            size = int.from_bytes(value, sys.byteorder)
        elif kind in (IP_PKTINFO, IPV6_PKTINFO):
            arrival = value
    return size, arrival


def arrival_host(arrival: bytes) -> str:
    """Return our address at which the datagram arrived; a link-local one with its zone."""
    if len(arrival) == _PKTINFO.size:
        return socket.inet_ntoa(_PKTINFO.unpack(arrival)[1])
    packed, interface = _PKTINFO6.unpack(arrival)
    ip = ipaddress.IPv6Address(packed)
    if ip.ipv4_mapped is not None:
        return str(ip.ipv4_mapped)
    return f"{ip}%{interface}" if ip.is_link_local else str(ip)


def source_message(host: str, *, is_ipv6: bool) -> tuple[int, int, bytes]:
    """Return the message that has a datagram leave from *host*, written as by `arrival_host`.

    Only a link-local address binds it to its interface: others may answer by another way.
    """
    host, _, zone = host.partition("%")
    if not is_ipv6:
        value = _PKTINFO.pack(0, socket.inet_aton(host), bytes(4))
        return socket.IPPROTO_IP, IP_PKTINFO, value
    mapped = host if ":" in host else f"::ffff:{host}"
    value = _PKTINFO6.pack(socket.inet_pton(socket.AF_INET6, mapped), int(zone or 0))
    return socket.IPPROTO_IPV6, IPV6_PKTINFO, value


def segment_message(size: int) -> tuple[int, int, bytes]:
    """Return the message that has the kernel cut what is sent into datagrams of *size* bytes."""
    return socket.IPPROTO_UDP, UDP_SEGMENT, _SEGMENT.pack(size)


def split(data: bytes, size: int) -> list[bytes]:
    """Part joined datagrams again."""
    return [data[at : at + size] for at in range(0, len(data), size)]


def run_end(batch: Sequence[tuple[bytes, object]], start: int) -> int:
    """Return where the longest run from *start* on ends that one send with UDP_SEGMENT takes."""
    first, address = batch[start]
    size = len(first)
    if not size:
        return start + 1
    stop = min(start + MAX_SEGMENTS, start + MAX_RUN_BYTES // size, len(batch))
    end = start + 1
    while end < stop:
        data, other = batch[end]
        if not 0 < len(data) <= size or other != address:
            break
        end += 1
        if len(data) < size:
            break
    return end


def _is_set(sock: socket.socket, level: int, option: int) -> bool:
    try:
        sock.setsockopt(level, option, 1)
    except OSError:
        return False
    return True

"""Where datagrams go in and out: the small interface under QUIC, and real UDP sockets.

A test puts a fake network in its place (`alknet.testing.network`). An `Address` is always written
one way: an IPv4 peer is ``("192.0.2.1", 4433)`` also on a dual-stack socket, and a link-local one
carries its scope as ``("fe80::1%2", 4433)``. A `NetworkPath` also says which address of ours the
peer has sent to; what is sent to such a path leaves from there.
"""

from __future__ import annotations

import errno
import ipaddress
import logging
import socket
from collections.abc import Callable, Sequence
from typing import Protocol, TypeVar

import trio

from alknet.core.ancillary import (
    ANCILLARY_BYTES,
    Ancillary,
    arrival_host,
    can_segment,
    coalesce,
    read_ancillary,
    report_arrivals,
    run_end,
    segment_message,
    source_message,
    split,
)

__all__ = [
    "MAX_BATCH",
    "Address",
    "DatagramSocket",
    "NetworkPath",
    "UdpSocket",
    "canonical_address",
    "format_address",
]

Address = tuple[str, int]
"""Normalised host (never a v4-mapped IPv6 one) and port."""

NetworkPath = tuple[str, int] | tuple[str, int, str]
"""The peer's `Address`, and behind it our host where its datagrams arrive, if that varies."""

_SystemAddress = tuple[str, int] | tuple[str, int, int, int]
_Key = TypeVar("_Key")
_Value = TypeVar("_Value")

log = logging.getLogger(__name__)

# Datagrams per `receive`: enough to fill a burst of acknowledgements, few enough to stay fair.
MAX_BATCH = 64
# The largest UDP payload; a receive buffer of this size never cuts a datagram.
MAX_DATAGRAM_BYTES = 65_535
# Holds 20 ms at 1.6 Gbit/s while the loop is busy; the kernel cuts it to its own maximum.
SOCKET_BUFFER_BYTES = 4 * 1024 * 1024
# linux/in.h and linux/in6.h; Python has no names for them. PROBE = set DF, ignore the cached MTU
# (RFC 9000 sec. 14: QUIC datagrams must not be fragmented).
IP_MTU_DISCOVER, IPV6_MTU_DISCOVER, PMTUDISC_PROBE = 10, 23, 3
IP_RECVERR, IPV6_RECVERR = 11, 25
# An entry of the error queue says which datagram it is about; 512 bytes of it are plenty.
ERROR_BYTES = 512
# Peers whose addresses are kept translated: each comes again with the next datagram.
MAX_TRANSLATED = 1_024

_WILDCARDS = frozenset({"0.0.0.0", "::"})  # noqa: S104  told apart, not bound
_FULL = frozenset({errno.EAGAIN, errno.EWOULDBLOCK, errno.ENOBUFS})
# What kernels and drivers say to UDP_SEGMENT when they, or the path's MTU, do not bear it.
_UNSEGMENTED = frozenset({errno.EIO, errno.EINVAL, errno.EMSGSIZE, errno.EOPNOTSUPP})


class DatagramSocket(Protocol):
    """An unconnected datagram socket. One task reads, any may send."""

    @property
    def local_address(self) -> Address:
        """The bound address; the host may be a wildcard."""

    async def receive(self) -> Sequence[tuple[bytes, NetworkPath]]:
        """Wait, then return what is queued, up to `MAX_BATCH`. Cancelled, it takes none.

        Datagrams that the kernel has joined stay together, so there may be some more.

        Raises:
            trio.ClosedResourceError: The socket was closed.
        """

    def send(self, data: bytes, address: NetworkPath) -> bool:
        """Send one datagram; it may be lost. False if it was not taken, for the buffer is full.

        Raises:
            trio.ClosedResourceError: The socket was closed.
        """

    def send_batch(self, batch: Sequence[tuple[bytes, NetworkPath]]) -> int:
        """Send in order as `send` does; return how many were taken before the buffer was full."""
        for taken, (data, address) in enumerate(batch):
            if not self.send(data, address):
                return taken
        return len(batch)

    async def wait_writable(self) -> None:
        """Wait until `send` may succeed again. Cancelled, nothing happens."""

    def close(self) -> None:
        """Close; tasks that wait get `trio.ClosedResourceError`. Idempotent."""


class UdpSocket:
    """A UDP socket of the system.

    Attributes:
        errors: How many sends and receives met an error that a datagram protocol ignores (ICMP
            unreachable, no route, longer than the path takes): such a datagram is lost, no more.
        is_segmenting: Runs of datagrams go to the kernel as one, until it refuses one.
        segmentation_failures: How often it refused a run, whose datagrams then went singly.
    """

    def __init__(
        self,
        sock: socket.socket,
        on_unreachable: Callable[[Address], None] | None = None,
        *,
        is_segmenting: bool = False,
    ) -> None:
        self._sock = sock
        self._is_ipv6 = sock.family == socket.AF_INET6
        self._on_unreachable = on_unreachable
        self._paths: dict[tuple[object, bytes], NetworkPath] = {}
        self._targets: dict[NetworkPath, tuple[_SystemAddress, Ancillary]] = {}
        self.errors = 0
        self.is_segmenting = is_segmenting
        self.segmentation_failures = 0

    @classmethod
    def bind(
        cls, host: str, port: int, *, on_unreachable: Callable[[Address], None] | None = None
    ) -> UdpSocket:
        """Bind to a literal address: ``::`` takes IPv4 too, any other address only its family.

        Bound to all addresses, it tells at which of them a datagram arrived (`NetworkPath`).

        Args:
            on_unreachable: Called from `receive` with an address where, as ICMP says, nobody
                listens. ICMP can be forged: good for giving up a dial early, for nothing else.

        Raises:
            OSError: The address is taken, not ours or not an address.
        """
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        sock = socket.socket(family, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
        try:
            if family == socket.AF_INET6:
                sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, int(host != "::"))
            _tune(sock)
            if on_unreachable is not None:
                sock.setsockopt(socket.IPPROTO_IP, IP_RECVERR, 1)
                if family == socket.AF_INET6:
                    sock.setsockopt(socket.IPPROTO_IPV6, IPV6_RECVERR, 1)
            if host in _WILDCARDS:
                report_arrivals(sock)
            coalesce(sock)
            sock.bind(_to_system((host, port), is_ipv6=family == socket.AF_INET6))
        except BaseException:  # boundary: passed on; nobody else can close the socket
            sock.close()
            raise
        return cls(sock, on_unreachable, is_segmenting=can_segment(sock))

    @property
    def local_address(self) -> Address:
        return _from_system(self._sock.getsockname())

    async def receive(self) -> Sequence[tuple[bytes, NetworkPath]]:
        while True:
            self._check_open()
            await trio.lowlevel.wait_readable(self._sock.fileno())
            if batch := self._receive_now():
                return batch

    def send(self, data: bytes, address: NetworkPath) -> bool:
        self._check_open()
        try:
            target, ancillary = self._target(address)
            if ancillary:
                self._sock.sendmsg((data,), ancillary, 0, target)
            else:
                self._sock.sendto(data, target)
        except OSError as exc:
            if exc.errno in _FULL:
                return False
            self.errors += 1
        return True

    def send_batch(self, batch: Sequence[tuple[bytes, NetworkPath]]) -> int:
        if len(batch) == 1:
            return int(self.send(*batch[0]))
        taken = 0
        while taken < len(batch):
            end = run_end(batch, taken) if self.is_segmenting else taken + 1
            run = batch[taken:end]
            taken += self._send_run(run) if len(run) > 1 else self.send(*run[0])
            if taken < end:
                break
        return taken

    async def wait_writable(self) -> None:
        self._check_open()
        await trio.lowlevel.wait_writable(self._sock.fileno())

    def close(self) -> None:
        if self._sock.fileno() != -1:
            trio.lowlevel.notify_closing(self._sock.fileno())
            self._sock.close()

    def _send_run(self, run: Sequence[tuple[bytes, NetworkPath]]) -> int:
        """Send what `run_end` has found to be one run, and return how much of it was taken."""
        self._check_open()
        size = len(run[0][0])
        try:
            target, ancillary = self._target(run[0][1])
            parts = [data for data, _ in run]
            self._sock.sendmsg(parts, [*ancillary, segment_message(size)], 0, target)
        except OSError as exc:
            return 0 if exc.errno in _FULL else self._send_singly(run, exc)
        return len(run)

    def _send_singly(self, run: Sequence[tuple[bytes, NetworkPath]], refusal: OSError) -> int:
        """Send a refused run again; what meets no error now was refused for being a run."""
        self.segmentation_failures += 1
        errors = self.errors
        taken = 0
        while taken < len(run) and self.send(*run[taken]):
            taken += 1
        if taken and self.errors == errors and refusal.errno in _UNSEGMENTED:
            self.is_segmenting = False
            log.info("udp.segmentation_off", extra={"reason": refusal.strerror})
        return taken

    def _target(self, path: NetworkPath) -> tuple[_SystemAddress, Ancillary]:
        found = self._targets.get(path)
        if found is None:
            source = path[2] if len(path) == 3 else ""
            ancillary = [source_message(source, is_ipv6=self._is_ipv6)] if source else []
            found = _to_system((path[0], path[1]), is_ipv6=self._is_ipv6), ancillary
            _make_room(self._targets)[path] = found
        return found

    def _path(self, address: _SystemAddress, arrival: bytes) -> NetworkPath:
        host, port = _from_system(address)
        path = (host, port, arrival_host(arrival)) if arrival else (host, port)
        _make_room(self._paths)[address, arrival] = path
        return path

    def _receive_now(self) -> list[tuple[bytes, NetworkPath]]:
        batch: list[tuple[bytes, NetworkPath]] = []
        while len(batch) < MAX_BATCH:
            try:
                data, ancillary, _, address = self._sock.recvmsg(
                    MAX_DATAGRAM_BYTES, ANCILLARY_BYTES
                )
            except BlockingIOError:
                break
            except OSError:
                # ICMP answers to earlier sends surface here, once each.
                self.errors += 1
                self._report_errors()
                break
            size, arrival = read_ancillary(ancillary) if ancillary else (0, b"")
            path = self._paths.get((address, arrival)) or self._path(address, arrival)
            if size and size < len(data):
                batch.extend((part, path) for part in split(data, size))
            else:
                batch.append((data, path))
        return batch

    def _report_errors(self) -> None:
        """Empty the error queue (ip(7), IP_RECVERR), which would keep the socket readable."""
        while self._on_unreachable is not None:
            try:
                _, _, _, address = self._sock.recvmsg(ERROR_BYTES, 256, socket.MSG_ERRQUEUE)
            except OSError:
                return
            if address:
                self._on_unreachable(_from_system(address))

    def _check_open(self) -> None:
        if self._sock.fileno() == -1:
            raise trio.ClosedResourceError("this socket was closed")


def canonical_address(address: Address) -> Address:
    """Return *address* in the one way that `DatagramSocket.receive` writes it.

    The host must be a literal; a zone of IPv6 becomes its number.

    Raises:
        OSError: There is no such interface.
        ValueError: The host is no IP address.
    """
    host, _, zone = address[0].partition("%")
    ip = ipaddress.ip_address(host)
    if isinstance(ip, ipaddress.IPv6Address) and ip.ipv4_mapped is not None:
        return str(ip.ipv4_mapped), address[1]
    if not zone or not ip.is_link_local:
        return str(ip), address[1]
    return f"{ip}%{zone if zone.isdigit() else _scope_id(zone)}", address[1]


def format_address(address: NetworkPath) -> str:
    """Write ``host:port`` of the peer, with brackets around an IPv6 host."""
    host, port = address[0], address[1]
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _tune(sock: socket.socket) -> None:
    """Set what helps; a kernel or container that refuses an option is no reason not to run."""
    options = [
        (socket.SOL_SOCKET, socket.SO_RCVBUF, SOCKET_BUFFER_BYTES),
        (socket.SOL_SOCKET, socket.SO_SNDBUF, SOCKET_BUFFER_BYTES),
        (socket.IPPROTO_IP, IP_MTU_DISCOVER, PMTUDISC_PROBE),
    ]
    if sock.family == socket.AF_INET6:
        options.append((socket.IPPROTO_IPV6, IPV6_MTU_DISCOVER, PMTUDISC_PROBE))
    for level, option, value in options:
        try:
            sock.setsockopt(level, option, value)
        except OSError:
            continue


def _make_room(translated: dict[_Key, _Value]) -> dict[_Key, _Value]:
    if len(translated) >= MAX_TRANSLATED:
        translated.clear()
    return translated


def _from_system(address: _SystemAddress) -> Address:
    host = address[0]
    if host.startswith("::ffff:") and "." in host:
        return host[7:], address[1]
    if len(address) == 4 and address[3]:
        return f"{host.partition('%')[0]}%{address[3]}", address[1]
    return host, address[1]


def _to_system(address: Address, *, is_ipv6: bool) -> _SystemAddress:
    host, port = address
    if not is_ipv6:
        return host, port
    if ":" not in host:
        return f"::ffff:{host}", port, 0, 0
    host, _, scope = host.partition("%")
    return host, port, 0, int(scope) if scope.isdigit() else _scope_id(scope)


def _scope_id(name: str) -> int:
    return socket.if_nametoindex(name) if name else 0


_: type[DatagramSocket] = UdpSocket

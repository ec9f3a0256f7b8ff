"""Dialling: every address, QUIC and TCP, racing; the first that proves the right key wins.

The order is that of RFC 8305 (Happy Eyeballs): IPv6 first, families alternating, one new attempt
every 100 ms, without waiting for earlier ones to fail. TCP starts when QUIC has had its head
start, or sooner if no QUIC attempt is left. Attempts that lose are closed.
"""

from __future__ import annotations

import os
import socket as stdlib_socket
from collections.abc import AsyncGenerator, Iterable, Sequence
from contextlib import asynccontextmanager

import msgspec
import trio

from alknet.core.address import Address
from alknet.core.contracts import CloseCode, Connection, ConnectionEnded
from alknet.core.datagram import UdpSocket
from alknet.core.limits import Limits
from alknet.core.quic.endpoint import QuicEndpoint
from alknet.core.quic.policy import client_policy
from alknet.core.scopes import open_background
from alknet.core.tcp.connection import StreamConnection
from alknet.core.tcp.handshake import dial_tls
from alknet.core.tcp.listener import connect_tcp
from alknet.core.tls.credentials import NodeCredentials
from alknet.core.tls.errors import HandshakeFailed, alert_name
from alknet.core.tls.trust import PinnedKey, Trust, WebPki, sni_of
from alknet.errors import LocalError, Unavailable

__all__ = ["Attempt", "DialError", "TRANSPORTS", "dial"]

TRANSPORTS = ("quic", "tcp")
# RFC 8305 sec. 5 allows 100 ms to 2 s between attempts; a self-hosted node has few addresses.
ATTEMPT_DELAY_S = 0.1
# Names with more addresses than this are not a node's; the first ones are tried.
MAX_ATTEMPTS = 16
# `aclose` flushes for up to 3 s on QUIC; a peer that is gone is not waited for longer than this.
CLOSE_WITHIN_S = 3.5
# QUIC's code for TLS alerts (RFC 9001 sec. 4.8).
CRYPTO_ERROR = 0x100
_ANY_IPV4, _ANY_IPV6 = "0.0.0.0", "::"  # noqa: S104  a dialling socket, on a port of its own
CONNECTION_REFUSED = 0x2


class Attempt(msgspec.Struct, frozen=True):
    """One attempt of a dial and what it met.

    Attributes:
        transport: ``quic``, ``tcp``, or ``dns`` for a name that did not resolve.
        address: ``ip:port``, or the name.
        outcome: What happened, in words.
    """

    transport: str
    address: str
    outcome: str

    def __str__(self) -> str:
        return f"{self.transport} {self.address}: {self.outcome}"


class DialError(Unavailable):
    """No attempt led to a connection with the right key.

    Attributes:
        attempts: All of them, in the order in which they ended.
    """

    def __init__(self, what: str, attempts: Sequence[Attempt]) -> None:
        tried = "; ".join(map(str, attempts)) or "no address to try"
        super().__init__(f"cannot reach {what}: {tried}")
        self.attempts = tuple(attempts)


@asynccontextmanager
async def dial(
    addresses: Sequence[Address],
    *,
    alpn: str,
    trust: Trust,
    credentials: NodeCredentials | None = None,
    transports: Sequence[str] = TRANSPORTS,
    limits: Limits | None = None,
) -> AsyncGenerator[Connection]:
    """Connect to a node and close the connection when the block ends.

    Args:
        addresses: Where to try; names are resolved.
        alpn: The one protocol to speak.
        trust: The key that must answer, or the name that the Web PKI must vouch for.
        credentials: The key to show when asked; None to stay anonymous.
        transports: Which to try, a non-empty part of `TRANSPORTS`.
        limits: Time-outs and windows.

    Raises:
        DialError: Nobody answered in time, or not with the right key; says what each attempt met.
        LocalError: The arguments make no sense, or the file of authorities is unusable.

    Cancelled, all attempts are closed, and so is the connection.
    """
    if not transports or not set(transports) <= set(TRANSPORTS):
        raise LocalError(f"transports are {' and '.join(TRANSPORTS)}, not {list(transports)}")
    if isinstance(trust, WebPki):
        trust.check()  # in the middle of a handshake it would be the node's fault
    async with open_background() as nursery:
        race = _Race(nursery, alpn, trust, credentials, limits or Limits())
        connection = await race.run(addresses, transports)
        # A carrier of one stream notices its end only while somebody waits for it.
        nursery.start_soon(connection.wait_closed)
        try:
            yield connection
        finally:
            with trio.move_on_after(CLOSE_WITHIN_S, shield=True):
                await connection.aclose(CloseCode.OK)


class _Race:
    def __init__(
        self,
        background: trio.Nursery,
        alpn: str,
        trust: Trust,
        credentials: NodeCredentials | None,
        limits: Limits,
    ) -> None:
        self._background = background
        self._alpn = alpn
        self._trust = trust
        self._credentials = credentials
        self._limits = limits
        self._attempts: list[Attempt] = []
        self._winner: Connection | None = None
        self._scope = trio.CancelScope()
        self._quic_left = 0
        self._quic_over = trio.Event()
        self._endpoints: dict[bool, QuicEndpoint] = {}

    async def run(self, addresses: Sequence[Address], transports: Sequence[str]) -> Connection:
        try:
            with trio.move_on_after(self._limits.dial_timeout_s):
                targets = await self._resolve(addresses)
                with self._scope:
                    await self._try_all(targets, transports)
        except BaseException:  # raised again: nobody else knows the winner
            if self._winner is not None:
                self._drop(self._winner, "dial abandoned")
            raise
        if self._winner is None:
            raise DialError(self._name(addresses), self._attempts)
        return self._winner

    async def _try_all(self, targets: Sequence[Address], transports: Sequence[str]) -> None:
        self._quic_left = len(targets) if "quic" in transports else 0
        if not self._quic_left:
            self._quic_over.set()
        async with trio.open_nursery() as nursery:
            for position, target in enumerate(targets):
                delay = position * ATTEMPT_DELAY_S
                if "quic" in transports:
                    nursery.start_soon(self._try_quic, target, delay)
                if "tcp" in transports:
                    nursery.start_soon(self._try_tcp, target, delay)

    async def _try_quic(self, target: Address, delay: float) -> None:
        try:
            await trio.sleep(delay)
            endpoint = await self._endpoint(is_ipv6=":" in target.host)
            connection = await endpoint.connect(
                (target.host, target.port),
                alpn=self._alpn,
                policy=client_policy(self._trust, self._credentials),
                server_name=self._server_name,
            )
        except (ConnectionEnded, trio.ClosedResourceError, OSError) as exc:
            self._failed("quic", target, _quic_outcome(exc))
        except trio.Cancelled:
            self._failed("quic", target, "no answer")
            raise
        else:
            self._won(connection)
        finally:
            self._quic_left -= 1
            if self._quic_left <= 0:
                self._quic_over.set()

    async def _try_tcp(self, target: Address, delay: float) -> None:
        with trio.move_on_after(self._limits.quic_head_start_s):
            await self._quic_over.wait()
        try:
            await trio.sleep(delay)
            connection = await self._connect_tcp(target)
        except (HandshakeFailed, OSError, trio.BrokenResourceError) as exc:
            self._failed("tcp", target, _tcp_outcome(exc))
        except trio.TooSlowError:
            seconds = self._limits.handshake_timeout_s
            self._failed("tcp", target, f"no complete handshake within {seconds:g} s")
        except trio.Cancelled:
            self._failed("tcp", target, "no answer")
            raise
        else:
            self._won(connection)

    async def _connect_tcp(self, target: Address) -> StreamConnection:
        with trio.fail_after(self._limits.handshake_timeout_s):
            stream = await connect_tcp(target.host, target.port, self._limits)
            return await dial_tls(
                stream,
                alpn=self._alpn,
                trust=self._trust,
                credentials=self._credentials,
                server_name=self._server_name,
            )

    async def _endpoint(self, *, is_ipv6: bool) -> QuicEndpoint:
        """One socket serves all attempts of a family."""
        endpoint = self._endpoints.get(is_ipv6)
        if endpoint is None:
            socket = UdpSocket.bind(
                _ANY_IPV6 if is_ipv6 else _ANY_IPV4,
                0,
                on_unreachable=self._on_unreachable,
            )
            endpoint = self._endpoints[is_ipv6] = QuicEndpoint(socket, limits=self._limits)
            await self._background.start(endpoint.run)
        return endpoint

    def _on_unreachable(self, address: tuple[str, int]) -> None:
        for endpoint in self._endpoints.values():
            endpoint.on_unreachable(address)

    @property
    def _server_name(self) -> str | None:
        # A pinned key needs no name, and sending none keeps the node's out of sight.
        return sni_of(self._trust.server_name) if isinstance(self._trust, WebPki) else None

    def _won(self, connection: Connection) -> None:
        if self._winner is None:
            self._winner = connection
            self._scope.cancel()
        else:
            self._drop(connection, "another path was faster")

    def _drop(self, connection: Connection, reason: str) -> None:
        # In a task: a carrier of one stream stays open until somebody waits for its end.
        self._background.start_soon(connection.aclose, CloseCode.OK, reason)

    def _failed(self, transport: str, target: Address, outcome: str) -> None:
        self._attempts.append(Attempt(transport, str(target), outcome))

    async def _resolve(self, addresses: Sequence[Address]) -> list[Address]:
        found: list[Address] = []
        for address in addresses:
            try:
                found += await _lookup(address)
            except OSError as exc:
                self._failed("dns", address, f"the name does not resolve ({exc.strerror})")
        return _interleaved(found)[:MAX_ATTEMPTS]

    def _name(self, addresses: Iterable[Address]) -> str:
        if isinstance(self._trust, PinnedKey):
            return f"node {self._trust.node_id.short}"
        return ", ".join(map(str, addresses))


async def _lookup(address: Address) -> list[Address]:
    infos = await trio.socket.getaddrinfo(
        address.host, address.port, type=stdlib_socket.SOCK_STREAM
    )
    return [Address(str(info[4][0]), address.port) for info in infos]


def _interleaved(addresses: Iterable[Address]) -> list[Address]:
    """IPv6 first, then families in turn, each address once."""
    unique = dict.fromkeys(addresses)
    v6 = [address for address in unique if ":" in address.host]
    v4 = [address for address in unique if ":" not in address.host]
    ordered = []
    for position in range(max(len(v6), len(v4))):
        ordered += v6[position : position + 1] + v4[position : position + 1]
    return ordered


def _quic_outcome(exc: Exception) -> str:
    if not isinstance(exc, ConnectionEnded):
        return _os_outcome(exc)
    close = exc.close
    who = "the node refused us" if close.by_peer else "we refused the node"
    if close.is_transport and CRYPTO_ERROR <= close.code < CRYPTO_ERROR + 256:
        detail = f": {close.reason}" if close.reason else ""
        return f"{who} (TLS alert {alert_name(close.code - CRYPTO_ERROR)}{detail})"
    if close.is_transport and close.by_peer and close.code == CONNECTION_REFUSED:
        return "the node refused the connection (busy, or too many from this address)"
    return close.reason or str(close)


def _tcp_outcome(exc: Exception) -> str:
    if isinstance(exc, HandshakeFailed):
        return str(exc)
    return _os_outcome(exc)


def _os_outcome(exc: Exception) -> str:
    if isinstance(exc, OSError) and exc.errno:
        return os.strerror(exc.errno).lower()
    return str(exc) or type(exc).__name__

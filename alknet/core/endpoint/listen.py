"""Listening: one port number, QUIC on UDP and TLS on TCP, for each configured address."""

from __future__ import annotations

import errno
import ipaddress
import os
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass

import msgspec
import trio

from alknet.core.address import Address
from alknet.core.datagram import UdpSocket
from alknet.core.endpoint.endpoint import Endpoint
from alknet.core.quic.endpoint import QuicAcceptor, QuicEndpoint
from alknet.core.quic.policy import server_policy
from alknet.core.quic.qlog import QlogDirectory
from alknet.core.quic.reset import ResetKey
from alknet.core.tcp.listener import addresses_of, listen_tcp, serve
from alknet.core.tls.credentials import NodeCredentials
from alknet.errors import LocalError

__all__ = ["Listening", "Port", "alpns_on", "bind_ports", "listen"]

# These are defined over one kind of transport only (RFC 9112, 9113, 9114).
TCP_ONLY = frozenset({"h2", "http/1.1"})
QUIC_ONLY = frozenset({"h3"})
# With port 0 the system picks for TCP; UDP may have that number taken. Each try is independent.
PORT_TRIES = 32
# What a system without IPv6 says, by how thoroughly it is without.
NO_IPV6 = frozenset({errno.EAFNOSUPPORT, errno.EADDRNOTAVAIL, errno.EPROTONOSUPPORT})


class Listening(msgspec.Struct, frozen=True):
    """One listener, for people and scripts.

    Attributes:
        transport: ``quic`` or ``tcp``.
        address: ``ip:port``.
        alpns: What it serves, in order of preference.
    """

    transport: str
    address: str
    alpns: tuple[str, ...]


@dataclass
class Port:
    """A bound address: the same port number on UDP and TCP."""

    address: Address
    udp: UdpSocket
    tcp: trio.SocketListener

    def close(self) -> None:
        """Close both sockets at once. Idempotent."""
        self.udp.close()
        self.tcp.socket.close()


def alpns_on(transport: str, alpns: Sequence[str]) -> tuple[str, ...]:
    """Return those of *alpns* that are defined on ``quic`` or ``tcp``."""
    excluded = TCP_ONLY if transport == "quic" else QUIC_ONLY
    return tuple(alpn for alpn in alpns if alpn not in excluded)


async def bind_ports(addresses: Sequence[Address]) -> list[Port]:
    """Bind all or none of *addresses*; port 0 means any number that is free on UDP and TCP.

    ``::`` takes IPv4 too, and IPv4 alone where the system has no IPv6.

    Cancelled, nothing stays bound.

    Raises:
        LocalError: An address is taken, not ours, or not a literal IP address.
    """
    with ExitStack() as undo:
        ports = []
        for address in addresses:
            port = await _bind_any(_literal(address))
            undo.callback(port.close)
            ports.append(port)
        undo.pop_all()
        return ports


async def listen(
    endpoint: Endpoint,
    ports: Sequence[Port],
    credentials: NodeCredentials,
    reset_key: ResetKey,
    qlog: QlogDirectory | None = None,
    *,
    task_status: trio.TaskStatus[list[QuicEndpoint]] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Accept on *ports* until the endpoint drains, then keep what lives going until cancelled.

    The sockets belong to it; they are closed when it returns. Starts with the QUIC endpoints.
    """
    async with trio.open_nursery() as nursery:
        quic = [
            _quic_endpoint(endpoint, port, credentials, reset_key, qlog, nursery) for port in ports
        ]
        for quic_endpoint in quic:
            await nursery.start(quic_endpoint.run)
        nursery.start_soon(_accept_tcp, endpoint, ports)
        task_status.started(quic)
        await endpoint.draining.wait()
        for quic_endpoint, port in zip(quic, ports, strict=True):
            quic_endpoint.stop_accepting()
            port.tcp.socket.close()
        await trio.sleep_forever()


def _quic_endpoint(
    endpoint: Endpoint,
    port: Port,
    credentials: NodeCredentials,
    reset_key: ResetKey,
    qlog: QlogDirectory | None,
    nursery: trio.Nursery,
) -> QuicEndpoint:
    acceptor = QuicAcceptor(
        policy=server_policy(credentials),
        alpns=lambda: alpns_on("quic", endpoint.router.alpns),
        on_connection=lambda connection: nursery.start_soon(
            endpoint.serve_connection, connection, name=f"connection {connection.remote_address}"
        ),
        admit=endpoint.admit_handshake,
    )
    return QuicEndpoint(
        port.udp,
        limits=endpoint.limits,
        acceptor=acceptor,
        reset_key=reset_key.at(port.udp.local_address),
        qlog=qlog,
        budget=endpoint.budget,
    )


async def _accept_tcp(endpoint: Endpoint, ports: Sequence[Port]) -> None:
    async def on_stream(stream: trio.SocketStream) -> None:
        await endpoint.serve_stream(stream, remote_address=addresses_of(stream)[0])

    await serve([port.tcp for port in ports], on_stream, lambda: endpoint.limits)


def _literal(address: Address) -> Address:
    try:
        ipaddress.ip_address(address.host)
    except ValueError:
        raise LocalError(
            f"cannot listen on {address}: write an IP address, such as 0.0.0.0 or [::]"
        ) from None
    return address


async def _bind_any(address: Address) -> Port:
    try:
        return await _bind(address)
    except LocalError as exc:
        cause = exc.__cause__
        if address.host == "::" and isinstance(cause, OSError) and cause.errno in NO_IPV6:
            return await _bind(Address("0.0.0.0", address.port))  # noqa: S104  as "::" would
        raise


async def _bind(address: Address) -> Port:
    tries = 1 if address.port else PORT_TRIES
    for attempt in range(1, tries + 1):
        tcp = await _bind_tcp(address)
        number = tcp.socket.getsockname()[1]
        try:
            udp = UdpSocket.bind(address.host, number)
        except OSError as exc:
            tcp.socket.close()
            if exc.errno == errno.EADDRINUSE and attempt < tries:
                continue
            raise _cannot_listen("udp", address, exc) from exc
        return Port(Address(address.host, number), udp, tcp)
    raise AssertionError("unreachable")


async def _bind_tcp(address: Address) -> trio.SocketListener:
    try:
        (listener,) = await listen_tcp([(address.host, address.port)])
    except OSError as exc:
        raise _cannot_listen("tcp", address, exc) from exc
    return listener


def _cannot_listen(transport: str, address: Address, exc: OSError) -> LocalError:
    hints = {
        errno.EADDRINUSE: "another program holds it; choose another with --listen",
        errno.EACCES: "ports below 1024 need CAP_NET_BIND_SERVICE",
        errno.EADDRNOTAVAIL: "no interface of this machine has that address",
    }
    hint = hints.get(exc.errno or 0)
    what = os.strerror(exc.errno).lower() if exc.errno else str(exc)
    return LocalError(
        f"cannot listen on {address} ({transport}): {what}" + (f": {hint}" if hint else "")
    )

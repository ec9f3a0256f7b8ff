"""TCP sockets: listen on several addresses, accept without end, dial one address."""

from __future__ import annotations

import contextlib
import errno
import logging
import socket
from collections.abc import Awaitable, Callable, Sequence

import trio

from alknet.core.limits import Limits

__all__ = ["addresses_of", "connect_tcp", "listen_tcp", "serve"]

log = logging.getLogger(__name__)

# Handshakes of clients that arrive at once while the node is busy; the kernel caps it.
BACKLOG = 1024
# Out of descriptors or memory: others must end first. Trio's own choice for serve_listeners.
ACCEPT_PAUSE_S = 0.1
ACCEPT_CAPACITY_ERRNOS = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOBUFS})
# The client went away between its SYN and our accept (accept(2): "treat them like EAGAIN").
ACCEPT_LOST_ERRNOS = frozenset(
    {
        errno.ECONNABORTED,
        errno.ENETDOWN,
        errno.EPROTO,
        errno.ENOPROTOOPT,
        errno.EHOSTDOWN,
        errno.ENONET,
        errno.EHOSTUNREACH,
        errno.EOPNOTSUPP,
        errno.ENETUNREACH,
        errno.EPERM,
    }
)


async def listen_tcp(addresses: Sequence[tuple[str, int]]) -> list[trio.SocketListener]:
    """Bind to each numeric (host, port) and listen. Cancelled or failed, nothing stays open.

    Port 0 takes any free one, for each address another. ``::`` takes IPv4 too, as the UDP socket
    beside it does; any other IPv6 address takes IPv6 only.

    Raises:
        OSError: An address cannot be bound; its text names the address.
    """
    listeners: list[trio.SocketListener] = []
    try:
        for host, port in addresses:
            listeners.append(await _listen(host, port))
    except BaseException:
        for listener in listeners:
            listener.socket.close()
        raise
    return listeners


async def serve(
    listeners: Sequence[trio.SocketListener],
    on_stream: Callable[[trio.SocketStream], Awaitable[None]],
    limits: Callable[[], Limits],
) -> None:
    """Accept connections and run *on_stream* for each, in a task of its own.

    Each connection gets the *limits* of its time. *on_stream* owns its stream; if it returns or
    raises, the stream is closed. Its exceptions end the whole block, so it should handle its own.
    Runs until all listeners are closed and all tasks have ended. Cancelled, the tasks are cancelled
    and the listeners closed.
    """
    async with trio.open_nursery() as nursery:
        for listener in listeners:
            nursery.start_soon(_accept_all, listener, on_stream, limits, nursery)


async def connect_tcp(host: str, port: int, limits: Limits) -> trio.SocketStream:
    """Dial one numeric address. Cancelled or failed, no socket stays open.

    Raises:
        OSError: Nobody answers there.
    """
    found = await trio.socket.getaddrinfo(
        host, port, type=socket.SOCK_STREAM, flags=socket.AI_NUMERICHOST
    )
    family, _, _, _, address = found[0]
    sock = trio.socket.socket(family, socket.SOCK_STREAM)
    try:
        await sock.connect(address)
        stream = trio.SocketStream(sock)
        _tune(stream, limits)
    except BaseException:
        sock.close()
        raise
    return stream


def addresses_of(stream: trio.abc.Stream) -> tuple[str, str]:
    """Return the far and the near address: ``ip:port``, ``[ip]:port``, a path, or ``""``."""
    if not isinstance(stream, trio.SocketStream):
        return "", ""
    return _address_text(stream.socket.getpeername), _address_text(stream.socket.getsockname)


async def _listen(host: str, port: int) -> trio.SocketListener:
    found = await trio.socket.getaddrinfo(
        host, port, type=socket.SOCK_STREAM, flags=socket.AI_NUMERICHOST | socket.AI_PASSIVE
    )
    family, _, _, _, address = found[0]
    sock = trio.socket.socket(family, socket.SOCK_STREAM)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, int(host != "::"))
        await sock.bind(address)
        sock.listen(BACKLOG)
    except OSError as exc:
        sock.close()
        raise OSError(exc.errno, f"cannot listen on TCP {host}:{port}: {exc.strerror}") from exc
    except BaseException:
        sock.close()
        raise
    return trio.SocketListener(sock)


async def _accept_all(
    listener: trio.SocketListener,
    on_stream: Callable[[trio.SocketStream], Awaitable[None]],
    limits: Callable[[], Limits],
    nursery: trio.Nursery,
) -> None:
    async with listener:
        while True:
            try:
                stream = await listener.accept()
            except trio.ClosedResourceError:
                return
            except OSError as exc:
                await _after_failed_accept(exc)
                continue
            nursery.start_soon(_run, stream, on_stream, limits)
            del stream  # else the last one lives until the next


async def _after_failed_accept(exc: OSError) -> None:
    if exc.errno in ACCEPT_CAPACITY_ERRNOS:
        log.warning("tcp.accept_paused", extra={"error": exc.strerror})
        await trio.sleep(ACCEPT_PAUSE_S)
    elif exc.errno in ACCEPT_LOST_ERRNOS:
        await trio.lowlevel.checkpoint()
    else:
        raise exc


async def _run(
    stream: trio.SocketStream,
    on_stream: Callable[[trio.SocketStream], Awaitable[None]],
    limits: Callable[[], Limits],
) -> None:
    try:
        # It may have gone already: the handshake will find out.
        with contextlib.suppress(OSError):
            _tune(stream, limits())
        await on_stream(stream)
    finally:
        await trio.aclose_forcefully(stream)


def _tune(stream: trio.SocketStream, limits: Limits) -> None:
    """Notice a dead peer within the idle time-out, whether or not bytes are under way."""
    idle_s = max(1, round(limits.idle_timeout_s))
    probe_s = max(1, min(round(limits.keep_alive_s), idle_s // 2))
    probes = max(1, (idle_s - probe_s) // probe_s)
    stream.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    stream.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in (
        ("TCP_KEEPIDLE", probe_s),
        ("TCP_KEEPINTVL", probe_s),
        ("TCP_KEEPCNT", probes),
        ("TCP_USER_TIMEOUT", idle_s * 1000),
    ):
        # Not every system has each of them.
        if hasattr(socket, name):
            stream.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)


def _address_text(name: Callable[[], object]) -> str:
    try:
        address = name()
    except OSError:
        return ""
    if isinstance(address, tuple):
        host, port = address[0], address[1]
        return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    return address.decode(errors="replace") if isinstance(address, bytes) else str(address)

"""The control socket: where the person who owns the node talks to it.

Being the owner is a property of this carrier alone. The socket lies in the node's home, which only
its user can write to; it is made with mode 0600 from the start; and the kernel names the user at
the other end (SO_PEERCRED, unix(7)), who must be ours. Both ends ask the kernel: the client would
otherwise give secrets to whoever put a socket there.
"""

from __future__ import annotations

import logging
import os
import socket
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import trio

from alknet.core.contracts import CARRIER_UNIX
from alknet.core.endpoint.endpoint import Endpoint
from alknet.core.endpoint.unixsocket import (
    check_length,
    connect,
    is_own_uid,
    listening,
    peer_of,
)
from alknet.core.tcp.connection import StreamConnection
from alknet.core.tcp.listener import serve
from alknet.errors import Denied, LocalError, Unavailable

__all__ = ["CONTROL_ALPN", "SOCKET_NAME", "connect_control", "serve_control"]

log = logging.getLogger(__name__)

SOCKET_NAME = "control.sock"
CONTROL_ALPN = "alknet/call"
SHORTER = "choose a shorter home (--home or ALKNET_HOME)"

UidCheck = Callable[[int], bool]


async def serve_control(
    home: Path,
    endpoint: Endpoint,
    *,
    is_allowed: UidCheck = is_own_uid,
    task_status: trio.TaskStatus[Path] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Listen on ``control.sock`` in *home* and serve its connections as the owner's.

    Reports the path as started. Runs until cancelled; then the socket file is removed.

    Raises:
        LocalError: The path is too long, the home is open to others, a node runs there already, or
            something else is in the way.
        OSError: The socket cannot be bound.
    """
    path = home / SOCKET_NAME
    with _listening(path) as sock:
        listener = trio.SocketListener(trio.socket.from_stdlib_socket(sock))
        task_status.started(path)
        on_stream = partial(_serve_stream, endpoint, is_allowed)
        await serve([listener], on_stream, lambda: endpoint.limits)


async def connect_control(home: Path, *, is_allowed: UidCheck = is_own_uid) -> StreamConnection:
    """Connect to the node that runs on *home*. Cancelled, nothing stays open.

    The caller drives and closes it, as any `StreamConnection`.

    Raises:
        Unavailable: No node runs there.
        Denied: It is another user's node.
        LocalError: The path is too long.
    """
    path = home / SOCKET_NAME
    check_length(path, SHORTER)
    try:
        sock = await connect(path)
    except (FileNotFoundError, ConnectionRefusedError, ConnectionResetError) as exc:
        raise Unavailable(f"no node runs on {home}: start one with `alknet up`") from exc
    except PermissionError as exc:
        raise Denied(f"{path} belongs to another user") from exc
    uid, _ = peer_of(sock)
    if not is_allowed(uid):
        sock.close()
        raise Denied(f"the node on {home} is run by another user (uid {uid})")
    return _connection(trio.SocketStream(sock), is_dialer=True, remote_address=str(path))


async def _serve_stream(
    endpoint: Endpoint, is_allowed: UidCheck, stream: trio.SocketStream
) -> None:
    uid, pid = peer_of(stream.socket)
    if not is_allowed(uid):
        log.warning("control.refused", extra={"uid": uid, "pid": pid})
        await trio.aclose_forcefully(stream)
        return
    connection = _connection(stream, is_dialer=False, remote_address=f"{SOCKET_NAME} pid {pid}")
    await endpoint.serve_owner(connection)


def _connection(
    stream: trio.SocketStream, *, is_dialer: bool, remote_address: str
) -> StreamConnection:
    return StreamConnection(
        stream,
        alpn=CONTROL_ALPN,
        carrier=CARRIER_UNIX,
        is_dialer=is_dialer,
        peer_key=None,
        remote_address=remote_address,
    )


@contextmanager
def _listening(path: Path) -> Iterator[socket.socket]:
    check_length(path, SHORTER)
    _check_home(path.parent)
    taken = f"a node runs on {path.parent} already"
    with listening(path, taken=taken, too_long=SHORTER) as sock:
        yield sock


def _check_home(home: Path) -> None:
    try:
        found = home.stat()
    except FileNotFoundError as exc:
        raise LocalError(f"there is no {home}: make it with `alknet init`") from exc
    if found.st_uid != os.geteuid():
        raise LocalError(f"{home} belongs to another user (uid {found.st_uid})")
    if found.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise LocalError(f"others can write to {home}: close it with `chmod 700`")

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
import struct
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import trio

from alknet.core.contracts import CARRIER_UNIX
from alknet.core.endpoint.endpoint import Endpoint
from alknet.core.tcp.connection import StreamConnection
from alknet.core.tcp.listener import serve
from alknet.errors import Denied, LocalError, Unavailable

__all__ = ["CONTROL_ALPN", "SOCKET_NAME", "connect_control", "serve_control"]

log = logging.getLogger(__name__)

SOCKET_NAME = "control.sock"
CONTROL_ALPN = "alknet/call"
# sun_path has 108 bytes, one of them for the terminating zero (unix(7)).
MAX_PATH_BYTES = 107
BACKLOG = 64

UidCheck = Callable[[int], bool]


def is_own_uid(uid: int) -> bool:
    """Whether *uid* is the user that this process acts as."""
    return uid == os.geteuid()


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
    _check_length(path)
    sock = trio.socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        await sock.connect(os.fspath(path))
        uid, _ = _peer_of(sock)
    except (FileNotFoundError, ConnectionRefusedError, ConnectionResetError) as exc:
        sock.close()
        raise Unavailable(f"no node runs on {home}: start one with `alknet up`") from exc
    except PermissionError as exc:
        sock.close()
        raise Denied(f"{path} belongs to another user") from exc
    except BaseException:
        sock.close()
        raise
    if not is_allowed(uid):
        sock.close()
        raise Denied(f"the node on {home} is run by another user (uid {uid})")
    return _connection(trio.SocketStream(sock), is_dialer=True, remote_address=str(path))


async def _serve_stream(
    endpoint: Endpoint, is_allowed: UidCheck, stream: trio.SocketStream
) -> None:
    uid, pid = _peer_of(stream.socket)
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


def _peer_of(sock: trio.socket.SocketType) -> tuple[int, int]:
    """Return the user and the process at the other end, as the kernel knows them."""
    size = struct.calcsize("3i")
    pid, uid, _ = struct.unpack("3i", sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, size))
    return uid, pid


@contextmanager
def _listening(path: Path) -> Iterator[socket.socket]:
    """Bind, and remove the file afterwards, unless it has become another's."""
    _check_length(path)
    _check_home(path.parent)
    _clear_away(path)
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
        _bind_private(sock, path)
        made = path.lstat()
        try:
            sock.listen(BACKLOG)
            yield sock
        finally:
            _unlink_if_same(path, made)


def _bind_private(sock: socket.socket, path: Path) -> None:
    # A chmod after the bind would leave a moment in which others can connect.
    before = os.umask(0o177)
    try:
        sock.bind(os.fspath(path))
    finally:
        os.umask(before)


def _check_length(path: Path) -> None:
    length = len(os.fsencode(path))
    if length > MAX_PATH_BYTES:
        raise LocalError(
            f"the control socket {path} has a path of {length} bytes, and a Unix socket's has at "
            f"most {MAX_PATH_BYTES}: choose a shorter home (--home or ALKNET_HOME)"
        )


def _check_home(home: Path) -> None:
    try:
        found = home.stat()
    except FileNotFoundError as exc:
        raise LocalError(f"there is no {home}: make it with `alknet init`") from exc
    if found.st_uid != os.geteuid():
        raise LocalError(f"{home} belongs to another user (uid {found.st_uid})")
    if found.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise LocalError(f"others can write to {home}: close it with `chmod 700`")


def _clear_away(path: Path) -> None:
    """Remove what a dead node left; refuse to remove anything else."""
    try:
        mode = path.lstat().st_mode
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(mode):
        raise LocalError(f"{path} is in the way and is not a socket: move it elsewhere")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK) as probe:
        try:
            probe.connect(os.fspath(path))
        except (ConnectionRefusedError, FileNotFoundError):
            path.unlink(missing_ok=True)
        except BlockingIOError as exc:  # its backlog is full: somebody is there
            raise LocalError(f"a node runs on {path.parent} already") from exc
        else:
            raise LocalError(f"a node runs on {path.parent} already")


def _unlink_if_same(path: Path, made: os.stat_result) -> None:
    try:
        now = path.lstat()
    except FileNotFoundError:
        return
    if (now.st_dev, now.st_ino) == (made.st_dev, made.st_ino):
        path.unlink(missing_ok=True)

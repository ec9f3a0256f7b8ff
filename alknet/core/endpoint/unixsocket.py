"""A Unix socket for one user: private from the start; the kernel says who is at its other end."""

from __future__ import annotations

import os
import socket
import stat
import struct
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import trio

from alknet.errors import LocalError

__all__ = ["check_length", "connect", "is_own_uid", "listening", "peer_of"]

# sun_path has 108 bytes, one of them for the terminating zero (unix(7)).
MAX_PATH_BYTES = 107
BACKLOG = 64
# A full queue gives no sign when there is room again; nobody minds so short a wait.
FULL_RETRY_S = 0.01


def is_own_uid(uid: int) -> bool:
    """Whether *uid* is the user that this process acts as."""
    return uid == os.geteuid()


def peer_of(sock: trio.socket.SocketType) -> tuple[int, int]:
    """Return the user and the process at the other end, as the kernel knows them."""
    size = struct.calcsize("3i")
    pid, uid, _ = struct.unpack("3i", sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, size))
    return uid, pid


async def connect(path: Path) -> trio.socket.SocketType:
    """Connect to the socket at *path*; while its queue is full, wait as other programs do.

    Cancelled or failed, nothing stays open.

    Raises:
        OSError: Nobody listens there, or we may not connect.
    """
    with ExitStack() as undo:
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        undo.callback(sock.close)
        await trio.lowlevel.checkpoint()
        # Not Trio's connect: it takes the EAGAIN of a full queue for a connection on its way.
        while not _connect_now(sock, path):  # noqa: ASYNC110  nothing to wait on
            await trio.sleep(FULL_RETRY_S)
        undo.pop_all()
        return trio.socket.from_stdlib_socket(sock)


@contextmanager
def listening(path: Path, *, taken: str, too_long: str) -> Iterator[socket.socket]:
    """Listen at *path*, mode 0600; remove the file afterwards, unless it has become another's.

    Args:
        taken: The message of the error if somebody listens there.
        too_long: What to do about a path that is too long, for that error's message.

    Raises:
        LocalError: The path is too long, somebody listens there, or something else is in the way.
        OSError: The socket cannot be bound.
    """
    check_length(path, too_long)
    _clear_away(path, taken)
    with ExitStack() as stack:
        sock = stack.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM))
        _bind_private(sock, path)
        made = os.open(path, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC)
        stack.callback(os.close, made)
        stack.callback(_unlink_if_same, path, made)
        sock.listen(BACKLOG)
        yield sock


def check_length(path: Path, too_long: str) -> None:
    """Raise LocalError if a socket cannot have *path*; the message ends with *too_long*."""
    length = len(os.fsencode(path))
    if length > MAX_PATH_BYTES:
        raise LocalError(
            f"the socket {path} has a path of {length} bytes, and a Unix socket's has at "
            f"most {MAX_PATH_BYTES}: {too_long}"
        )


def _connect_now(sock: socket.socket, path: Path) -> bool:
    try:
        sock.connect(os.fspath(path))
    except BlockingIOError:
        return False
    return True


def _bind_private(sock: socket.socket, path: Path) -> None:
    # The file takes over the socket's own mode (Linux). A chmod after the bind would leave a
    # moment in which others can connect; a umask would be that of all threads, which make
    # directories and start programs.
    os.fchmod(sock.fileno(), 0o600)
    sock.bind(os.fspath(path))


def _clear_away(path: Path, taken: str) -> None:
    """Remove what a dead process left; refuse to remove anything else."""
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
            raise LocalError(taken) from exc
        else:
            raise LocalError(taken)


def _unlink_if_same(path: Path, made: int) -> None:
    # *made* is open until then: else the number of its inode could be another's by now.
    ours = os.fstat(made)
    try:
        now = path.lstat()
    except FileNotFoundError:
        return
    if (now.st_dev, now.st_ino) == (ours.st_dev, ours.st_ino):
        path.unlink(missing_ok=True)

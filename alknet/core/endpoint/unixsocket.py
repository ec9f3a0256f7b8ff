"""A Unix socket for one user: private from the start; the kernel says who is at its other end."""

from __future__ import annotations

import os
import socket
import stat
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import trio

from alknet.errors import LocalError

__all__ = ["check_length", "is_own_uid", "listening", "peer_of"]

# sun_path has 108 bytes, one of them for the terminating zero (unix(7)).
MAX_PATH_BYTES = 107
BACKLOG = 64


def is_own_uid(uid: int) -> bool:
    """Whether *uid* is the user that this process acts as."""
    return uid == os.geteuid()


def peer_of(sock: trio.socket.SocketType) -> tuple[int, int]:
    """Return the user and the process at the other end, as the kernel knows them."""
    size = struct.calcsize("3i")
    pid, uid, _ = struct.unpack("3i", sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, size))
    return uid, pid


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
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
        _bind_private(sock, path)
        made = path.lstat()
        try:
            sock.listen(BACKLOG)
            yield sock
        finally:
            _unlink_if_same(path, made)


def check_length(path: Path, too_long: str) -> None:
    """Raise LocalError if a socket cannot have *path*; the message ends with *too_long*."""
    length = len(os.fsencode(path))
    if length > MAX_PATH_BYTES:
        raise LocalError(
            f"the socket {path} has a path of {length} bytes, and a Unix socket's has at "
            f"most {MAX_PATH_BYTES}: {too_long}"
        )


def _bind_private(sock: socket.socket, path: Path) -> None:
    # A chmod after the bind would leave a moment in which others can connect.
    before = os.umask(0o177)
    try:
        sock.bind(os.fspath(path))
    finally:
        os.umask(before)


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


def _unlink_if_same(path: Path, made: os.stat_result) -> None:
    try:
        now = path.lstat()
    except FileNotFoundError:
        return
    if (now.st_dev, now.st_ino) == (made.st_dev, made.st_ino):
        path.unlink(missing_ok=True)

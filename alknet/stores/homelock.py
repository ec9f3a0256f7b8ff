"""One running node per home: a lock that the kernel drops when its holder dies."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from alknet.errors import Conflict
from alknet.vault.durable import store_errors

__all__ = ["LOCK_FILE", "hold_home"]

LOCK_FILE = "node.lock"


@contextmanager
def hold_home(home: Path) -> Iterator[None]:
    """Hold *home* for this process while the block runs. Never waits.

    The file stays behind, empty: removing it would let two processes each lock a file of that
    name.

    Raises:
        Conflict: A node runs on it; the message has its process id.
        StoreError: The lock file cannot be opened, or not be written on a full disk.
    """
    path = home / LOCK_FILE
    with store_errors(f"cannot open {path}"):
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.pread(descriptor, 32, 0).decode(errors="replace").strip()
            raise Conflict(
                f"a node already runs on {home} (process {holder or 'unknown'}); "
                "stop it first, or use another home"
            ) from None
        with store_errors(f"cannot write {path}"):
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)
        try:
            yield
        finally:
            os.ftruncate(descriptor, 0)
    finally:
        os.close(descriptor)

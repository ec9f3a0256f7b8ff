"""Files that are private, and whole or absent: after a crash, a kill or a full disk.

A write goes to a temporary file beside the target, is flushed to the disk, and takes the target's
name in one step; then the directory is flushed, so that the name lasts too.
"""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
from collections.abc import Iterator
from pathlib import Path

from alknet.errors import StoreError

__all__ = ["replace_file", "store_errors", "sync_directory", "write_new", "write_private"]


def write_private(path: Path, data: bytes) -> None:
    """Write a new file of mode 0600 and flush it to the disk; its name is the caller's to flush.

    OSError if it exists or fails; then no part of it stays behind.
    """
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
    except BaseException:
        path.unlink(missing_ok=True)
        raise


def replace_file(path: Path, data: bytes) -> None:
    """Put *data* at *path* in one step, replacing what is there.

    Only one process at a time may do this to one path: what an earlier one left behind under
    the temporary name is removed.
    """
    temporary = path.with_name(f".{path.name}.new")
    temporary.unlink(missing_ok=True)
    try:
        write_private(temporary, data)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    sync_directory(path.parent)


def write_new(path: Path, data: bytes) -> None:
    """Put a new file of mode 0600 at *path* in one step; FileExistsError if there is one."""
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    try:
        write_private(temporary, data)
        try:
            path.hardlink_to(temporary)  # unlike a rename, never replaces
        except FileExistsError:
            raise
        except OSError:  # FAT and some network file systems know no links
            if path.exists():
                raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST)) from None
            temporary.rename(path)
    finally:
        temporary.unlink(missing_ok=True)
    sync_directory(path.parent)


def sync_directory(path: Path) -> None:
    """Flush the names in a directory to the disk."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def store_errors(what: str) -> Iterator[None]:
    """Turn the system's errors into StoreError: ``<what>: <reason>``."""
    try:
        yield
    except OSError as exc:
        raise StoreError(f"{what}: {exc.strerror or exc}") from exc

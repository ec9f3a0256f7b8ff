"""Where a database lies: a private file on a local disk, which must stay the same file.

Nothing here opens the database itself. Closing any descriptor of it would drop the locks that
SQLite holds on it in this process (POSIX), so the file is made with the bell's mode by SQLite
(``modeof``) and is looked at by its path alone.
"""

from __future__ import annotations

import ctypes
import fcntl
import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from urllib.parse import quote

import apsw

from alknet.errors import StoreError, Unavailable
from alknet.vault.durable import store_errors

__all__ = ["NETWORK_FILE_SYSTEMS", "Place", "file_system_type"]

# A backup and a step over a million rows take seconds.
MIGRATION_TIMEOUT_S = 60.0
LOCK_RETRY_S = 0.02
# Neither SQLite's shared memory nor inotify reaches from one host to another (statfs(2), magic.h).
NETWORK_FILE_SYSTEMS = {
    0x6969: "NFS",
    0x517B: "SMB",
    0xFE534D42: "SMB",
    0xFF534D42: "CIFS",
    0x65735546: "FUSE",
    0x01021997: "9P",
    0x00C36400: "Ceph",
    0x5346414F: "AFS",
    0x6B414653: "AFS",
    0x73757245: "Coda",
    0x01161970: "GFS2",
    0x7461636F: "OCFS2",
    0x0BD00BD0: "Lustre",
    0x47504653: "GPFS",
    0x564C: "NCP",
    0x786F4256: "VirtualBox",
    0xBACBACBC: "VMware",
}


class Place:
    """The path of a database and of the files beside it.

    Attributes:
        path: The database; SQLite adds ``-wal`` and ``-shm``.
        bell_path: The file that is written to after each commit.
    """

    def __init__(self, path: Path) -> None:
        self.path = path.absolute()
        self.bell_path = self.path.with_name(self.path.name + "-bell")
        self._signature: tuple[int, int] | None = None

    @property
    def uri(self) -> str:
        """What SQLite opens: it makes the file as private as the bell."""
        return f"file://{quote(str(self.path))}?modeof={quote(str(self.bell_path))}"

    def prepare(self) -> None:
        """Check the directory and tighten the modes of what is there. Blocks.

        Raises:
            StoreError: There is no such directory, it is of a network file system, or of another
                user.
        """
        with store_errors(f"cannot use {self.path}"):
            found = file_system_type(self.path.parent)
            kind = NETWORK_FILE_SYSTEMS.get(found)
            if kind is not None:
                raise StoreError(
                    f"cannot use {self.path}: it lies on a network file system ({kind}), where "
                    "processes would destroy each other's data: put it on a local disk, or use "
                    "PostgreSQL"
                )
            self._check_owner()
            for path in self.files():
                # Another process that closes the database removes its log at any time.
                with suppress(FileNotFoundError):
                    if path.stat().st_mode & 0o077:
                        path.chmod(0o600)

    @contextmanager
    def exclusive(self) -> Iterator[None]:
        """Keep other processes, and other handles, from migrating while the block runs. Blocks.

        The lock is one on the bell, never on the database. The kernel drops it with its holder.

        Raises:
            Unavailable: Another has held it for a minute.
            StoreError: It cannot be taken.
        """
        deadline = time.monotonic() + MIGRATION_TIMEOUT_S
        with store_errors(f"cannot lock {self.bell_path}"):
            descriptor = os.open(self.bell_path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            while not _lock(descriptor):
                if time.monotonic() > deadline:
                    raise Unavailable(
                        f"cannot open {self.path}: another process is still migrating it",
                        retry_after_s=MIGRATION_TIMEOUT_S,
                    )
                time.sleep(LOCK_RETRY_S)
            yield
        finally:
            os.close(descriptor)  # also unlocks

    def files(self) -> list[Path]:
        """Return all files of the database, those that may not exist included."""
        names = ("", "-wal", "-shm", "-bell")
        return [self.path.with_name(self.path.name + suffix) for suffix in names]

    def remember(self) -> None:
        """Note which file is there, once it is open. Raises StoreError."""
        with store_errors(f"cannot look at {self.path}"):
            self._signature = _signature(self.path)

    def check_same(self) -> None:
        """Raise StoreError if another file is there now, or none."""
        try:
            is_same = _signature(self.path) == self._signature
        except FileNotFoundError:
            is_same = False
        except OSError as exc:
            raise StoreError(f"cannot look at {self.path}: {exc.strerror}") from exc
        if not is_same:
            raise self._replaced()

    def check_opened(self, connection: apsw.Connection) -> None:
        """Raise StoreError if *connection* has another file open than is there now."""
        has_moved = ctypes.c_int()
        connection.file_control("main", apsw.SQLITE_FCNTL_HAS_MOVED, ctypes.addressof(has_moved))
        if has_moved.value:
            raise self._replaced()

    def _replaced(self) -> StoreError:
        return StoreError(
            f"{self.path} was replaced or removed while it was in use: stop all alknet "
            "processes before you put another file there, then start them again"
        )

    def _check_owner(self) -> None:
        """Raise StoreError if what we make here could not be used by whose it is."""
        user = os.geteuid()
        if self.path.exists():
            place = self.path
        elif user == 0:  # may write anywhere, and would leave files behind that are root's
            place = self.path.parent
        else:
            return
        owner = place.stat().st_uid
        if owner != user:
            raise StoreError(
                f"{place} belongs to another user (uid {owner}): run the command as that user "
                f"(sudo -u '#{owner}' alknet …)"
            )


def file_system_type(directory: Path) -> int:
    """Return the magic number of a directory's file system; 0 where the system does not tell.

    Raises:
        OSError: The directory cannot be looked at.
    """
    if sys.platform != "linux":
        directory.stat()
        return 0
    libc = ctypes.CDLL(None, use_errno=True)
    # struct statfs begins with a long, f_type; 256 bytes hold it on every architecture.
    result = ctypes.create_string_buffer(256)
    if libc.statfs(os.fsencode(directory), result) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    found: int = ctypes.c_long.from_buffer(result).value
    return found & 0xFFFFFFFF


def _lock(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _signature(path: Path) -> tuple[int, int]:
    info = path.stat()
    return info.st_dev, info.st_ino

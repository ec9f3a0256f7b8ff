"""The doorbell: a file beside the database that is written to after each commit.

Watching the database or its log would wake too early, before the commit can be seen, and now and
then not at all; a file of our own is touched when all is done. To ring is to set its times, which
is what we watch. It also holds the newest version: whoever commits writes it while the database is
locked, so it never falls behind what was rung, and who has that version need not look. Whoever is
about to commit knocks, by opening the file, which is heard too. Where the system cannot watch
files, the bell counts as rung twenty times a second.
"""

from __future__ import annotations

import ctypes
import logging
import os
import sys
import threading
from contextlib import suppress
from pathlib import Path

import trio

from alknet.vault.durable import store_errors

__all__ = ["Bell"]

log = logging.getLogger(__name__)

# Looks without a watch: half of a 50 ms step is a delay that nobody notices, at 0.4 % of a core.
BLIND_STEP_S = 0.05

VERSION_BYTES = 8
IN_ATTRIB = 0x4
IN_OPEN = 0x20
IN_NONBLOCK = os.O_NONBLOCK
IN_CLOEXEC = os.O_CLOEXEC
# struct inotify_event of a watch on a file, which has no name in it: watch, mask, cookie, length.
EVENT_BYTES = 16
MASK = slice(4, 8)
KNOCK = IN_OPEN.to_bytes(4, sys.byteorder)


class Bell:
    """Rings for, and hears, all processes of this host that use the file.

    Args:
        path: Made with mode 0600 if it does not exist.

    Raises:
        StoreError: It cannot be opened.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file = _open(path)
        # A thread must not write to a descriptor that was closed meanwhile, or is another file's.
        self._lock = threading.Lock()
        self._watch: int | None = None
        self._start_watching()

    @property
    def is_watched(self) -> bool:
        """Whether the system tells of rings; if not, `wait` is a short sleep."""
        return self._watch is not None

    def ring(self) -> None:
        """Wake all who listen, ourselves included. Any thread may. Raises OSError."""
        with self._lock:
            os.utime(self._file)

    def knock(self) -> None:
        """Let those who listen get ready. Any thread may."""
        with suppress(OSError):  # they will hear the ring
            os.close(os.open(self._path, os.O_RDONLY | os.O_CLOEXEC))

    def announce(self, version: int) -> None:
        """Note the version that is about to be committed. Any thread may. Raises OSError."""
        with self._lock:
            os.pwrite(self._file, version.to_bytes(VERSION_BYTES, "big"), 0)

    def has_news(self, version: int) -> bool:
        """Whether anybody announced another version than *version*; True if nobody knows."""
        try:
            found = os.pread(self._file, VERSION_BYTES, 0)
        except OSError:
            return True
        return int.from_bytes(found, "big") != version

    async def wait(self) -> bool:
        """Wait until it may have rung, or somebody knocked; say whether it may have rung.

        Cancelled, no ring is lost.
        """
        if self._watch is None:
            await trio.sleep(BLIND_STEP_S)
            return True
        await trio.lowlevel.wait_readable(self._watch)
        events = os.read(self._watch, 256 * EVENT_BYTES)
        return len(events) > EVENT_BYTES or events[MASK] != KNOCK

    def renew(self) -> bool:
        """Take up the file at the path, if it is not the one that we have; say whether it was.

        Who deletes the bell cuts all processes off from one another until each has done this.

        Raises:
            StoreError: It cannot be looked at or opened.
        """
        with store_errors(f"cannot look at {self._path}"), suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(self._file), self._path.stat()):
                return False
        file = _open(self._path)
        with self._lock:
            os.close(self._file)
            self._file = file
        self._stop_watching()
        self._start_watching()
        return True

    def close(self) -> None:
        """Let go of the file, which stays. Nobody may ring or wait any more."""
        self._stop_watching()
        os.close(self._file)

    def _start_watching(self) -> None:
        try:
            self._watch = _inotify(self._path)
        except OSError as exc:
            log.warning("store.bell_unwatched", extra={"reason": str(exc)})

    def _stop_watching(self) -> None:
        if self._watch is not None:
            trio.lowlevel.notify_closing(self._watch)
            os.close(self._watch)
            self._watch = None


def _open(path: Path) -> int:
    with store_errors(f"cannot open {path}"):
        return os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)


def _inotify(path: Path) -> int | None:
    """Return a descriptor that is readable once *path* was touched; None if there is no such."""
    if sys.platform != "linux":
        return None
    libc = ctypes.CDLL(None, use_errno=True)
    descriptor: int = libc.inotify_init1(IN_NONBLOCK | IN_CLOEXEC)
    if descriptor < 0:
        raise _last_error()
    if libc.inotify_add_watch(descriptor, os.fsencode(path), IN_ATTRIB | IN_OPEN) < 0:
        error = _last_error()
        os.close(descriptor)
        raise error
    return descriptor


def _last_error() -> OSError:
    number = ctypes.get_errno()
    return OSError(number, os.strerror(number))

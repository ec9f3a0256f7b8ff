"""Memory for keys: never swapped, never in a core dump, empty in a forked child, wiped at the end.

Python's own ``bytes`` cannot be wiped, so key material is read, decrypted and derived straight
into such a buffer, and is handed on as a `memoryview`.
"""

from __future__ import annotations

import contextlib
import ctypes
import logging
import mmap
import os
import resource
import signal
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Self

__all__ = ["LockedBuffer", "end_with_parent", "harden_process", "read_exactly"]

log = logging.getLogger(__name__)

# linux/mman.h and linux/prctl.h; Python has no names for them.
MADV_WIPEONFORK = 18
PR_SET_PDEATHSIG = 1
PR_SET_DUMPABLE = 4
# `os.urandom` would leave a copy in memory that cannot be wiped.
_URANDOM = Path("/dev/urandom")
# A private mapping: one that is shared cannot be wiped on fork.
_FLAGS = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS


class LockedBuffer:
    """*size* zero bytes in pages of their own. Close it to wipe it; its ``repr`` shows nothing.

    Attributes:
        is_locked: The system keeps it out of swap; False where RLIMIT_MEMLOCK is used up.
    """

    __slots__ = ("_map", "_size", "_view", "is_locked")

    def __init__(self, size: int) -> None:
        self._size = size
        self._map = mmap.mmap(-1, max(1, size), flags=_FLAGS)
        self._view = memoryview(self._map)[:size]
        _try(lambda: self._map.madvise(mmap.MADV_DONTDUMP))
        _try(lambda: self._map.madvise(MADV_WIPEONFORK))
        self.is_locked = _lock(self._map, size)

    @classmethod
    def of(cls, secret: bytes | bytearray | memoryview) -> LockedBuffer:
        """Return a buffer with a copy of *secret*; wiping the original is the caller's duty."""
        buffer = cls(len(secret))
        buffer.view[:] = secret
        return buffer

    @classmethod
    def random(cls, size: int) -> LockedBuffer:
        """Return *size* bytes of the system's randomness."""
        buffer = cls(size)
        with _URANDOM.open("rb", buffering=0) as source:
            read_exactly(source.fileno(), buffer.view)
        return buffer

    @property
    def view(self) -> memoryview:
        """The bytes, writable.

        Raises:
            ValueError: The buffer was closed.
        """
        return self._view[:]

    def __len__(self) -> int:
        return self._size

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Wipe, and make `view` raise. Idempotent; views that were handed out show zeros."""
        if not self._map.closed:
            self._map[:] = bytes(len(self._map))
            self._view.release()
            with contextlib.suppress(BufferError):  # somebody holds a view: of zeros
                self._map.close()

    def __del__(self) -> None:
        self.close()

    def __repr__(self) -> str:
        return "<LockedBuffer>"

    def __reduce__(self) -> str | tuple[object, ...]:
        raise TypeError("a buffer with a key is never copied")


def read_exactly(descriptor: int, view: memoryview) -> None:
    """Fill *view* from a file or pipe without a copy in between; EOFError if it ends too soon."""
    filled = 0
    while filled < len(view):
        count = os.readv(descriptor, [view[filled:]])
        if count == 0:
            raise EOFError(f"ended after {filled} of {len(view)} bytes")
        filled += count


def harden_process() -> list[str]:
    """Keep this process's memory from core dumps and from other processes of the same user.

    Returns:
        What the system refused, for a log; empty if all was done.
    """
    refused = []
    if not _try(lambda: resource.setrlimit(resource.RLIMIT_CORE, (0, 0))):
        refused.append("RLIMIT_CORE")
    if _libc().prctl(PR_SET_DUMPABLE, 0, 0, 0, 0) != 0:
        refused.append("PR_SET_DUMPABLE")
    return refused


def end_with_parent(number: signal.Signals) -> None:
    """Have the system send *number* to this process when its parent is gone."""
    _libc().prctl(PR_SET_PDEATHSIG, int(number), 0, 0, 0)


def _lock(pages: mmap.mmap, size: int) -> bool:
    first = ctypes.c_char.from_buffer(pages)
    address = ctypes.c_void_p(ctypes.addressof(first))
    return bool(_libc().mlock(address, ctypes.c_size_t(size)) == 0)


def _try(action: Callable[[], object]) -> bool:
    try:
        action()
    except (OSError, ValueError):  # not this kernel, or not within our limits
        return False
    return True


def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None, use_errno=True)

"""What a process holds: memory, files, tasks, and its objects by kind."""

from __future__ import annotations

import ctypes
import gc
import sys
from collections import Counter
from pathlib import Path

import msgspec
import trio

# Whose objects are counted however few they are: ours, and those that ours are made of.
WATCHED = ("alknet.", "aioquic.", "trio.", "OpenSSL.", "ssl", "socket")
MANY = 100

_LIBC = ctypes.CDLL(None)


class Held(msgspec.Struct, frozen=True):
    """A picture of a process.

    Attributes:
        pss_kib: Proportional set size: resident memory, shared pages by their share.
        blocks: Blocks that Python's allocator has given out. Unlike resident memory it knows no
            fragments and no caches of malloc, so it tells a leak from noise.
        fds: Open file descriptors.
        tasks: Living Trio tasks.
        kinds: How many objects there are of each class, the rare ones of others left out.
    """

    pss_kib: int
    blocks: int
    fds: int
    tasks: int
    kinds: dict[str, int]


def held() -> Held:
    """Take a picture of this process, after a collection."""
    gc.collect()
    _LIBC.malloc_trim(0)  # what malloc keeps for later is no leak
    kinds = Counter(kind_of(type(found)) for found in gc.get_objects())
    return Held(
        pss_kib=_pss_kib(),
        blocks=sys.getallocatedblocks(),
        fds=sum(1 for _ in Path("/proc/self/fd").iterdir()),
        tasks=trio.lowlevel.current_statistics().tasks_living,
        kinds={k: n for k, n in kinds.items() if n >= MANY or k.startswith(WATCHED)},
    )


def kind_of(cls: type) -> str:
    """Return the name under which instances of *cls* are counted."""
    return f"{cls.__module__}.{cls.__qualname__}"


def _pss_kib() -> int:
    for line in Path("/proc/self/smaps_rollup").read_text().splitlines():
        if line.startswith("Pss:"):
            return int(line.split()[1])
    raise RuntimeError("the kernel does not say how much memory this process uses")

"""What another process has in its memory, as far as the kernel shows it."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path

__all__ = ["found_in"]

BLOCK = 64 * 1024
# Freed memory is often written over at its beginning: half of a secret is a find, too.
PART = 16
# What is not writable was never written to.
_MAPPING = re.compile(r"([0-9a-f]+)-([0-9a-f]+) rw[x-]p")
_ZEROS = bytes(BLOCK)


def found_in(pid: int, secrets: Mapping[str, bytes]) -> set[str]:
    """Return the names of those *secrets* of which 16 bytes or more are in the process's memory."""
    memory = b"".join(_memory(pid))
    return {name for name, secret in secrets.items() if any(p in memory for p in _parts(secret))}


def _parts(secret: bytes) -> Iterator[bytes]:
    for at in range(0, len(secret) - PART + 1, PART):
        yield secret[at : at + PART]


def _memory(pid: int) -> Iterator[bytes]:
    """Yield what is writable, without blocks of zeros."""
    maps = Path(f"/proc/{pid}/maps").read_text(encoding="utf-8")
    with Path(f"/proc/{pid}/mem").open("rb", buffering=0) as memory:
        for first, last in _MAPPING.findall(maps):
            for start in range(int(first, 16), int(last, 16), BLOCK):
                try:
                    block = os.pread(memory.fileno(), min(BLOCK, int(last, 16) - start), start)
                except OSError:  # gone meanwhile
                    break
                if block != _ZEROS[: len(block)]:
                    yield block

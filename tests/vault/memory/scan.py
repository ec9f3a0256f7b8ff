"""What another process has in its memory, as far as the kernel shows it."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path

__all__ = ["found_in"]

CHUNK = 16 * 1024 * 1024
# Freed memory is often written over at its beginning: half of a secret is a find, too.
PART = 16
_MAPPING = re.compile(r"([0-9a-f]+)-([0-9a-f]+) r[w-][x-]p \S+ \S+ \S+ *(.*)")


def found_in(pid: int, secrets: Mapping[str, bytes]) -> set[str]:
    """Return the names of those *secrets* of which 16 bytes or more are in the process's memory."""
    parts = {part: name for name, secret in secrets.items() for part in _parts(secret)}
    pattern = re.compile(b"|".join(re.escape(part) for part in parts))
    return {parts[match.group()] for chunk in _memory(pid) for match in pattern.finditer(chunk)}


def _parts(secret: bytes) -> Iterator[bytes]:
    for at in range(0, len(secret) - PART + 1, PART):
        yield secret[at : at + PART]


def _memory(pid: int) -> Iterator[bytes]:
    maps = Path(f"/proc/{pid}/maps").read_text(encoding="utf-8")
    with Path(f"/proc/{pid}/mem").open("rb", buffering=0) as memory:
        for first, last, name in _MAPPING.findall(maps):
            if name in {"[vvar]", "[vsyscall]", "[vvar_vclock]"}:
                continue
            yield from _region(memory.fileno(), int(first, 16), int(last, 16))


def _region(descriptor: int, start: int, end: int) -> Iterator[bytes]:
    overlap = b""
    while start < end:
        try:
            chunk = os.pread(descriptor, min(CHUNK, end - start), start)
        except OSError:  # a guard page, or gone meanwhile
            return
        if not chunk:
            return
        yield overlap + chunk
        overlap = chunk[-PART + 1 :]
        start += len(chunk)

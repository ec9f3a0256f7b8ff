"""Disks that fail: full, read-only, broken, or without power."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from random import Random  # noqa: TID251  seeded

import apsw

__all__ = ["FaultyDisk", "PowerLoss", "faulty_disk"]


class FaultyDisk(apsw.VFS):
    """A disk on which writes and flushes raise what is set.

    Attributes:
        write_error: Raised by each write.
        sync_error: Raised by each flush.
        power: Records what is really on the disk, if set.
        temporary_files: How many files without a name were opened.
    """

    def __init__(self, name: str) -> None:
        super().__init__(name, base="")
        self.name = name
        self.write_error: apsw.Error | None = None
        self.sync_error: apsw.Error | None = None
        self.power: PowerLoss | None = None
        self.temporary_files = 0

    def xOpen(self, name: str | apsw.URIFilename | None, flags: list[int]) -> apsw.VFSFile:
        if name is None:
            self.temporary_files += 1
        return _File(self, name, flags)

    def xDelete(self, filename: str, syncdir: bool) -> None:
        super().xDelete(filename, syncdir)
        if self.power is not None:
            self.power.deleted(filename)


class _File(apsw.VFSFile):
    def __init__(
        self, disk: FaultyDisk, name: str | apsw.URIFilename | None, flags: list[int]
    ) -> None:
        super().__init__("", name, flags)
        self._disk = disk
        self._path = name if isinstance(name, str) else "" if name is None else name.filename()

    def xWrite(self, data: bytes, offset: int) -> None:
        if self._disk.write_error is not None:
            raise self._disk.write_error
        super().xWrite(data, offset)
        if self._disk.power is not None:
            self._disk.power.written(self._path, bytes(data), offset)

    def xTruncate(self, newsize: int) -> None:
        super().xTruncate(newsize)
        if self._disk.power is not None:
            self._disk.power.truncated(self._path, newsize)

    def xSync(self, flags: int) -> None:
        if self._disk.sync_error is not None:
            raise self._disk.sync_error
        super().xSync(flags)
        if self._disk.power is not None:
            self._disk.power.synced(self._path)


@contextmanager
def faulty_disk() -> Iterator[FaultyDisk]:
    """Register a disk for the block; its name is the VFS to open a store with."""
    disk = FaultyDisk("alknet-test-disk")
    try:
        yield disk
    finally:
        disk.unregister()


class PowerLoss:
    """What would be on the disk if the power failed now.

    All that was flushed, and of what was written since, in no order, a random half.

    Args:
        randomness: Decides what is lost.
        on_write: Called after each write, before it is flushed.
    """

    def __init__(self, randomness: Random, on_write: Callable[[], None]) -> None:
        self._random = randomness
        self._on_write = on_write
        self._flushed: dict[str, bytearray] = {}
        self._pending: dict[str, list[tuple[int, bytes]]] = {}

    def written(self, path: str, data: bytes, offset: int) -> None:
        self._pending.setdefault(path, []).append((offset, data))
        self._on_write()

    def truncated(self, path: str, size: int) -> None:
        self.synced(path)
        del self._flushed[path][size:]

    def synced(self, path: str) -> None:
        file = self._flushed.setdefault(path, bytearray())
        for offset, data in self._pending.pop(path, []):
            _write(file, offset, data)

    def deleted(self, path: str) -> None:
        self._flushed.pop(path, None)
        self._pending.pop(path, None)

    def save(self, directory: Path) -> None:
        """Write to *directory* what survives."""
        directory.mkdir()
        for path in {*self._flushed, *self._pending}:
            file = bytearray(self._flushed.get(path, b""))
            for offset, data in self._pending.get(path, []):
                if self._random.random() < 0.5:
                    _write(file, offset, data)
            (directory / Path(path).name).write_bytes(file)


def _write(file: bytearray, offset: int, data: bytes) -> None:
    file.extend(bytes(max(offset + len(data) - len(file), 0)))
    file[offset : offset + len(data)] = data

"""The state file itself: its JSON, its lock, and how it is replaced. Everything here blocks."""

from __future__ import annotations

import contextlib
import fcntl
import os
import time
from collections.abc import Iterator
from pathlib import Path

import msgspec

from alknet.core.identity import ApiKey, Peer
from alknet.errors import AlknetError, StoreError
from alknet.stores.records import Change, Records
from alknet.vault.durable import replace_file, store_errors

__all__ = ["Signature", "StateFile"]

FORMAT = 1
# Who holds the lock works for milliseconds; one that is stopped must not hang all others.
LOCK_TIMEOUT_S = 5.0
LOCK_RETRY_S = 0.01

Signature = tuple[int, int, int] | None
"""What tells one generation from the next (mtime in ns, inode, size); None for no file."""


class _Content(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    format: int
    peers: tuple[Peer, ...] = ()
    api_keys: tuple[ApiKey, ...] = ()


class _AnyFormat(msgspec.Struct):
    format: int = FORMAT


class StateFile:
    """One JSON file, changed by one process at a time."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock_path = path.with_name(path.name + ".lock")
        self._backup_path = path.with_name(path.name + ".bak")

    def signature(self) -> Signature:
        """Say which generation is there now. Raises StoreError if the system does not tell."""
        with store_errors(f"cannot look at {self.path}"):
            try:
                return _signature(self.path.stat())
            except FileNotFoundError:
                return None

    def load(self) -> tuple[Signature, Records]:
        """Read the file without the lock, which replacing in one step makes safe.

        Raises:
            StoreError: It cannot be read, or is damaged.
        """
        signature, data = self._read()
        return signature, self._decode(data)

    def transact(self, change: Change) -> tuple[Signature, Records]:
        """Apply *change* to what is there now and make it last.

        What *change* raises passes through, and nothing is written then.

        Raises:
            StoreError: The file is damaged, cannot be written, or its lock is not to be had.
        """
        with self._locked():
            signature, data = self._read()
            before = self._decode(data)
            after = change(before)
            if (after.peers, after.api_keys) == (before.peers, before.api_keys):
                return signature, after
            with store_errors(f"cannot write {self.path}"):
                if data is not None:
                    replace_file(self._backup_path, data)
                replace_file(self.path, _encode(after))
            return self.signature(), after

    def _read(self) -> tuple[Signature, bytes | None]:
        with store_errors(f"cannot read {self.path}"):
            try:
                with self.path.open("rb") as file:
                    return _signature(os.fstat(file.fileno())), file.read()
            except FileNotFoundError:
                return None, None

    def _decode(self, data: bytes | None) -> Records:
        if data is None:
            return Records()
        try:
            found = msgspec.json.decode(data, type=_AnyFormat).format
            if found == FORMAT:  # what another holds is not for us to judge
                content = msgspec.json.decode(data, type=_Content)
                return Records.of(content.peers, content.api_keys)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError, AlknetError) as exc:
            raise StoreError(
                f"{self.path} is damaged ({exc}): it is left as it is; repair it, or put "
                f"{self._backup_path.name} in its place"
            ) from exc
        raise StoreError(f"{self.path} has format {found}: written by another alknet")

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        with store_errors(f"cannot lock {self._lock_path}"):
            _check_owner(self.path.parent)
            flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC
            descriptor = os.open(self._lock_path, flags, 0o600)
        try:
            self._wait_for_lock(descriptor)
            yield
        finally:
            os.close(descriptor)  # also unlocks

    def _wait_for_lock(self, descriptor: int) -> None:
        deadline = time.monotonic() + LOCK_TIMEOUT_S
        with store_errors(f"cannot lock {self._lock_path}"):
            while True:
                try:
                    return fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError:
                    if time.monotonic() > deadline:
                        raise StoreError(f"another process holds {self._lock_path}") from None
                time.sleep(LOCK_RETRY_S)


def _check_owner(directory: Path) -> None:
    # What root writes with mode 0600, the node that runs as another user could not read.
    owner = directory.stat().st_uid
    if owner != os.geteuid():
        raise StoreError(
            f"{directory} belongs to another user (uid {owner}), who could not read what you "
            f"write: run the command as that user (sudo -u '#{owner}' alknet …)"
        )


def _signature(info: os.stat_result) -> Signature:
    return info.st_mtime_ns, info.st_ino, info.st_size


def _encode(records: Records) -> bytes:
    content = _Content(
        FORMAT,
        tuple(sorted(records.peers.values(), key=lambda peer: peer.name)),
        tuple(sorted(records.api_keys.values(), key=lambda key: key.prefix)),
    )
    return msgspec.json.format(msgspec.json.encode(content), indent=2) + b"\n"

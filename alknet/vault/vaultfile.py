"""The vault on disk: whole generations, one writer at a time, the one before kept.

``vault.alk`` is replaced in one step; ``vault.alk.prev`` is the generation before, ``vault.lock``
is held by whoever writes, ``vault.seen`` remembers the newest generation that was met here, so
that an older file in its place is noticed. All are for their user alone (mode 0600).
"""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
from collections.abc import Iterator
from pathlib import Path

import msgspec

from alknet.errors import AlknetError, LocalError, Malformed, NotFound, StoreError
from alknet.vault.container import (
    MAX_VAULT_BYTES,
    Container,
    Header,
    decode_container_untrusted,
)
from alknet.vault.durable import replace_file, store_errors, sync_directory
from alknet.vault.keyfile import check_private

__all__ = ["VAULT_FILE", "NotConfirmed", "RolledBack", "Signature", "VaultFile"]

log = logging.getLogger(__name__)

VAULT_FILE = "vault.alk"
# The end of the file, which no two generations share: two writes within one tick of the clock may
# leave the same time, size and, by the second, the inode that the first one freed.
TAG_BYTES = 16

Signature = tuple[int, int, int, bytes]


class RolledBack(LocalError):
    """The file is older than one that was here before."""


class NotConfirmed(StoreError):
    """The new generation is in place, but the disk did not say that it will last."""


class _Seen(msgspec.Struct, frozen=True):
    vault_id: bytes
    generation: int


class VaultFile:
    """The files of the vault in one directory; blocks on the disk."""

    def __init__(self, home: Path) -> None:
        self.path = home / VAULT_FILE
        self._previous = home / f"{VAULT_FILE}.prev"
        self._lock = home / "vault.lock"
        self._seen = home / "vault.seen"

    def exists(self) -> bool:
        """Return whether there is a vault, or what is left of one: the generation before."""
        return self.path.exists() or self._previous.exists()

    def read(self) -> Container:
        """Read the newest generation.

        Raises:
            NotFound: There is no vault.
            LocalError: It is gone, damaged or no vault; the message says where an intact one may
                be.
            StoreError: The system refuses.
        """
        with store_errors(f"cannot read {self.path}"):
            try:
                with self.path.open("rb") as file:
                    check_private(self.path, os.fstat(file.fileno()))
                    data = file.read(MAX_VAULT_BYTES + 1)
            except FileNotFoundError:
                raise self._missing() from None
        if len(data) > MAX_VAULT_BYTES:
            raise LocalError(f"{self.path} is longer than {MAX_VAULT_BYTES} bytes")
        try:
            return decode_container_untrusted(data)
        except Malformed as exc:
            raise LocalError(f"{self.path}: {exc}{self.hint()}") from exc

    def write(self, data: bytes, header: Header) -> None:
        """Put a new generation in place; call it within `writing`.

        After a crash at any point, the old or the new generation is there, whole.

        Raises:
            NotConfirmed: The new generation is in place; a power failure now may undo it.
            StoreError: The system refuses; the old generation stays.
        """
        with store_errors(f"cannot write {self.path}, nothing was changed"):
            self._keep_previous()
            try:
                replace_file(self.path, data)
            except OSError as exc:
                if not self._holds(data):
                    raise
                raise NotConfirmed(
                    f"{self.path} was written, but the disk did not confirm it "
                    f"({exc.strerror or exc}): a power failure now may undo it"
                ) from exc
        self._note(header)

    def meet(self, header: Header, *, is_accepted: bool = False) -> None:
        """Note that this generation was met; call it outside of `writing`.

        Where that fails, an older file in its place may go unnoticed, and that is all: it is
        logged, for what was to be done is done.

        Args:
            is_accepted: It may be older than what was met before, and counts from now on.
        """
        seen = self._read_seen()
        if seen == _Seen(header.vault_id, header.generation):
            return
        try:
            with self.writing():
                seen = self._read_seen()
                is_news = seen is None or seen.vault_id != header.vault_id
                if is_accepted or is_news or (seen and seen.generation < header.generation):
                    self._note(header)
        except StoreError as exc:
            log.warning("vault.generation_not_noted", extra={"error": str(exc)})

    def _note(self, header: Header) -> None:
        try:
            replace_file(self._seen, msgspec.json.encode(_Seen(header.vault_id, header.generation)))
        except OSError as exc:
            log.warning(
                "vault.generation_not_noted",
                extra={"path": str(self._seen), "error": exc.strerror or str(exc)},
            )

    def check_generation(self, header: Header, met: Header | None = None) -> None:
        """Compare with the newest generation that was met here.

        Args:
            met: What this process has met itself, for the note may be lost. An older generation
                that is the one noted was accepted since, by another process.

        Raises:
            RolledBack: This one is older.
        """
        seen = self._read_seen()
        noted = seen.generation if seen and seen.vault_id == header.vault_id else 0
        own = met.generation if met and met.vault_id == header.vault_id else 0
        newest = noted if noted == header.generation else max(noted, own)
        if header.generation < newest:
            raise RolledBack(
                f"{self.path} is generation {header.generation}, but generation {newest} was in "
                "use here: an old copy has taken its place, and what was changed since is missing; "
                "'alknet vault verify --accept-older' goes on with it"
            )

    @contextlib.contextmanager
    def writing(self) -> Iterator[None]:
        """Be the only one that writes; waits for another process, which takes milliseconds."""
        flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC
        with store_errors(f"cannot lock {self._lock}"):
            descriptor = os.open(self._lock, flags, 0o600)
        try:
            with store_errors(f"cannot lock {self._lock}"):
                fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield
        finally:
            os.close(descriptor)

    def signature(self) -> Signature | None:
        """Return what changes when the file does; None while there is none."""
        try:
            with self.path.open("rb", buffering=0) as file:
                found = os.fstat(file.fileno())
                tag = os.pread(file.fileno(), TAG_BYTES, max(found.st_size - TAG_BYTES, 0))
        except OSError:
            return None
        return found.st_mtime_ns, found.st_ino, found.st_size, tag

    def hint(self) -> str:
        """Return where to look for an intact file, to go on after a message."""
        if not self._previous.exists():
            return "; restore it from a backup ('alknet restore') or from the words"
        return f"; the generation before is in {self._previous}"

    def _holds(self, data: bytes) -> bool:
        try:
            return self.path.read_bytes() == data
        except OSError:
            return False

    def _keep_previous(self) -> None:
        if not self.path.exists():
            return
        temporary = self._previous.with_name(f".{self._previous.name}.new")
        temporary.unlink(missing_ok=True)
        try:
            temporary.hardlink_to(self.path)
        except OSError:  # a file system without links
            replace_file(self._previous, self.path.read_bytes())
            return
        temporary.replace(self._previous)
        sync_directory(self.path.parent)

    def _read_seen(self) -> _Seen | None:
        try:
            return msgspec.json.decode(self._seen.read_bytes(), type=_Seen)
        except (OSError, msgspec.DecodeError):
            return None  # a lost note must not lock anybody out

    def _missing(self) -> AlknetError:
        if self._previous.exists():
            return LocalError(
                f"{self.path} is gone{self.hint()}: copy that file to its place, then "
                "'alknet vault verify --accept-older' goes on with it"
            )
        return NotFound(f"no vault in {self.path.parent}: 'alknet init' makes one")

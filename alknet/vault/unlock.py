"""Where the key of a slot comes from: a file, a passphrase, the system's keyring, an age identity.

`find_entropy` tries what it was given against the slots of a header and says, when nothing fits,
what would. A key file in the home lets a node restart unattended; whoever copies the home then
has the secrets too.
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Protocol

import msgspec

from alknet.errors import LocalError, NotFound, Unavailable
from alknet.vault.container import Header
from alknet.vault.durable import store_errors, sync_directory
from alknet.vault.envelope import Damaged
from alknet.vault.keyfile import check_private
from alknet.vault.locked import LockedBuffer, read_exactly
from alknet.vault.slots import (
    KEY_FILE_BYTES,
    Slot,
    SlotKind,
    open_age_slot,
    open_passphrase_slot,
    open_slot,
)

__all__ = [
    "HOME_KEY_FILE",
    "KEYRING_SERVICE",
    "UnlockWith",
    "create_key_file",
    "find_entropy",
    "find_opener",
    "forget_keyring_key",
    "new_keyring_key",
    "read_key_file",
]

HOME_KEY_FILE = "vault.key"
"""The key file that a new home gets, beside the vault that it opens."""

KEYRING_SERVICE = "alknet vault"
WORDS = "words"
"""Beside the kinds of slots, what opens any vault."""


class UnlockWith(msgspec.Struct, frozen=True, kw_only=True):
    """What the caller has. Nothing of it is changed or wiped here.

    Attributes:
        key_files: Each of 32 bytes.
        passphrase: UTF-8 bytes, or None.
        age_identities: Texts ``AGE-SECRET-KEY-1…``.
        keyring: Whether to ask the system's keyring.
        words: What 24 words or shares gave, which is the entropy itself if they are right.
    """

    key_files: tuple[Path, ...] = ()
    passphrase: bytearray | None = None
    age_identities: tuple[str, ...] = ()
    keyring: bool = False
    words: LockedBuffer | None = None

    @property
    def kinds(self) -> tuple[str, ...]:
        """What kinds of slots it is for, and ``words``."""
        has = {
            WORDS: self.words is not None,
            SlotKind.KEY_FILE.value: bool(self.key_files),
            SlotKind.KEYRING.value: self.keyring,
            SlotKind.AGE.value: bool(self.age_identities),
            SlotKind.PASSPHRASE.value: self.passphrase is not None,
        }
        return tuple(kind for kind, is_there in has.items() if is_there)


def find_entropy(header: Header, given: UnlockWith) -> LockedBuffer:
    """Return the entropy alone of `find_opener`."""
    return find_opener(header, given)[0]


def find_opener(header: Header, given: UnlockWith) -> tuple[LockedBuffer, str]:
    """Return the entropy from the first slot that opens with what was given, and its kind.

    Cheap ways come first; a passphrase is tried once for each passphrase slot, at its cost. Words
    fit no slot and are taken as they are: `Vault.unlock` and `Vault.check` know if they are right.

    Raises:
        Unavailable: No slot fits what was given; the message names the kinds that there are.
        Damaged: Something was tried, and nothing opens the vault.
        LocalError: A key file cannot be used.
    """
    if given.words is not None:
        return LockedBuffer.of(given.words.view), WORDS
    attempts = list(_attempts(header, given))
    if not attempts:
        kinds = ", ".join(sorted({slot.kind.value for slot in header.slots})) or "the words alone"
        raise Unavailable(f"the vault is locked, and needs one of: {kinds}")
    for kind, attempt in attempts:
        try:
            return attempt(), kind.value
        except Damaged:
            continue
    raise Damaged(_refusal(given))


def _refusal(given: UnlockWith) -> str:
    if given.passphrase is not None:
        return "wrong passphrase: it opens no slot of this vault"
    return "none of the keys that were given opens this vault"


def _attempts(
    header: Header, given: UnlockWith
) -> Iterable[tuple[SlotKind, Callable[[], LockedBuffer]]]:
    vault_id = header.vault_id
    for path in given.key_files:
        for slot in _of(header.slots, SlotKind.KEY_FILE):
            yield slot.kind, partial(_with_key_file, vault_id, slot, path)
    if given.keyring:
        for slot in _of(header.slots, SlotKind.KEYRING):
            yield slot.kind, partial(_with_keyring, vault_id, slot)
    if given.age_identities:
        for slot in _of(header.slots, SlotKind.AGE):
            yield slot.kind, partial(open_age_slot, vault_id, slot, given.age_identities)
    if given.passphrase is not None:
        for slot in _of(header.slots, SlotKind.PASSPHRASE):
            yield slot.kind, partial(open_passphrase_slot, vault_id, slot, given.passphrase)


def _of(slots: Sequence[Slot], kind: SlotKind) -> list[Slot]:
    return [slot for slot in slots if slot.kind is kind]


def _with_key_file(vault_id: bytes, slot: Slot, path: Path) -> LockedBuffer:
    with read_key_file(path) as key:
        return open_slot(vault_id, slot, key.view)


def _with_keyring(vault_id: bytes, slot: Slot) -> LockedBuffer:
    with _keyring_key(vault_id) as key:
        return open_slot(vault_id, slot, key.view)


# Key files.


def create_key_file(path: Path) -> LockedBuffer:
    """Write a new key file of mode 0600 and return its key.

    Raises:
        StoreError: It exists, or cannot be written; nothing is left behind.
    """
    key = LockedBuffer.random(KEY_FILE_BYTES)
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
    with store_errors(f"cannot write {path}"):
        descriptor = os.open(path, flags, 0o600)
        try:
            os.writev(descriptor, [key.view])
            os.fsync(descriptor)
        except BaseException:
            path.unlink(missing_ok=True)
            raise
        finally:
            os.close(descriptor)
        sync_directory(path.parent)
    return key


def read_key_file(path: Path) -> LockedBuffer:
    """Return the key of a file, straight into locked memory.

    Raises:
        NotFound: There is none.
        LocalError: Others may read it, or it is not 32 bytes long.
        StoreError: It cannot be read.
    """
    with store_errors(f"cannot read {path}"):
        try:
            descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            raise NotFound(f"no key file {path}") from None
        try:
            info = os.fstat(descriptor)
            check_private(path, info)
            if info.st_size != KEY_FILE_BYTES:
                raise LocalError(f"{path} is no key file: it has {info.st_size} bytes, not 32")
            key = LockedBuffer(KEY_FILE_BYTES)
            read_exactly(descriptor, key.view)
            return key
        finally:
            os.close(descriptor)


# The system's keyring. It is optional, and takes and gives text.


class _Keyring(Protocol):
    def set_password(self, service: str, username: str, password: str) -> None: ...
    def get_password(self, service: str, username: str) -> str | None: ...
    def delete_password(self, service: str, username: str) -> None: ...


def new_keyring_key(vault_id: bytes) -> LockedBuffer:
    """Put a new key into the keyring and return it.

    Raises:
        Unavailable: There is no keyring, or none that keeps secrets.
    """
    keyring = _keyring()
    text = secrets.token_hex(KEY_FILE_BYTES)
    try:
        keyring.set_password(KEYRING_SERVICE, vault_id.hex(), text)
    except Exception as exc:  # noqa: BLE001  # boundary: back ends raise what they like
        raise Unavailable(f"the keyring did not take the key: {type(exc).__name__}") from None
    return LockedBuffer.of(bytes.fromhex(text))


def forget_keyring_key(vault_id: bytes) -> None:
    """Remove the vault's key from the keyring, if it is there."""
    keyring = _keyring()
    try:
        keyring.delete_password(KEYRING_SERVICE, vault_id.hex())
    except Exception as exc:  # noqa: BLE001  # boundary: back ends raise what they like
        raise Unavailable(f"the keyring did not remove the key: {type(exc).__name__}") from None


def _keyring_key(vault_id: bytes) -> LockedBuffer:
    keyring = _keyring()
    try:
        text = keyring.get_password(KEYRING_SERVICE, vault_id.hex())
    except Exception as exc:  # noqa: BLE001  # boundary: back ends raise what they like
        raise Unavailable(f"the keyring cannot be read: {type(exc).__name__}") from None
    try:
        return LockedBuffer.of(bytes.fromhex(text or "none"))
    except ValueError:
        raise Damaged("the keyring has no key of this vault") from None


def _keyring() -> _Keyring:
    try:
        import keyring
    except ImportError:
        raise Unavailable(
            "no keyring support: install it with \"pip install 'alknet[keyring]'\""
        ) from None
    backend = keyring.get_keyring()
    # "fail" keeps nothing, "plaintext" keeps everything in a file that anyone's copy shows.
    if backend.priority < 1 or "plaintext" in type(backend).__module__:
        raise Unavailable(f"this system has no keyring that keeps secrets ({backend.name})")
    return backend

"""The ways to unlock a vault: each slot wraps the same 32 bytes of entropy, as in LUKS.

Adding, changing or removing one rewrites some hundred bytes and touches no secret. A slot's key
comes from a passphrase (Argon2id, RFC 9106), a key file, the system's keyring or an age
identity. The 24 words, and enough SLIP-39 shares of them, *are* the entropy and need no slot.
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Callable, Sequence
from enum import Enum
from typing import TypeVar

import msgspec
import pyrage
from cryptography.hazmat.primitives.kdf.argon2 import Argon2id

from alknet.errors import LocalError
from alknet.vault.envelope import Damaged, decrypt, derive_kek, encrypt
from alknet.vault.locked import LockedBuffer

__all__ = [
    "KEY_FILE_BYTES",
    "PassphraseCost",
    "Slot",
    "SlotKind",
    "age_slot",
    "key_file_slot",
    "keyring_slot",
    "open_age_slot",
    "open_passphrase_slot",
    "open_slot",
    "passphrase_slot",
]

T = TypeVar("T")

KEY_BYTES = 32
SALT_BYTES = 16
KEY_FILE_BYTES = 32
# A passphrase shorter than this falls to guessing whatever Argon2 costs.
MIN_PASSPHRASE_BYTES = 8
# RFC 9106's second choice is the floor of what a vault file may ask for; a file that asks for
# more than the ceiling would take the machine's memory.
MIN_MEMORY_KIB, MIN_ITERATIONS = 64 * 1024, 3
MAX_MEMORY_KIB, MAX_ITERATIONS, MAX_LANES = 4 * 1024 * 1024, 64, 64
MAX_AGE_BYTES = 16 * 1024


class SlotKind(Enum):
    """What unlocks a slot."""

    PASSPHRASE = "passphrase"  # noqa: S105  a name
    KEY_FILE = "key-file"
    KEYRING = "keyring"
    AGE = "age"


class PassphraseCost(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What one guess costs; by default half a second and 256 MiB on a small machine."""

    memory_kib: int = 256 * 1024
    iterations: int = 3
    lanes: int = 2

    def check(self) -> None:
        """Raise LocalError if it is below the floor or above the ceiling."""
        if self.memory_kib < MIN_MEMORY_KIB or self.iterations < MIN_ITERATIONS:
            raise LocalError(
                f"a passphrase must cost at least {MIN_MEMORY_KIB} KiB and {MIN_ITERATIONS} passes"
            )
        if self.memory_kib > MAX_MEMORY_KIB or self.iterations > MAX_ITERATIONS:
            raise LocalError("this passphrase slot asks for more memory or passes than it may")
        if not 1 <= self.lanes <= MAX_LANES:
            raise LocalError(f"{self.lanes} lanes, expected 1 to {MAX_LANES}")


class Slot(
    msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True, omit_defaults=True
):
    """One way to unlock, as it is written in the vault's header; nothing of it is secret.

    Attributes:
        id: Eight hex digits.
        label: For people.
        salt: Of the passphrase or of the key's derivation; empty for age.
        cost: Of a passphrase.
        recipient: Of an age slot, its public key.
        sealed_key: Of an age slot, the slot's key as an age file.
        wrapped: Nonce, entropy and tag, under the slot's key.
    """

    id: str
    kind: SlotKind
    label: str = ""
    created_at: float = 0.0
    salt: bytes = b""
    cost: PassphraseCost | None = None
    recipient: str = ""
    sealed_key: bytes = b""
    wrapped: bytes = b""


def passphrase_slot(
    vault_id: bytes,
    entropy: memoryview,
    passphrase: bytearray,
    *,
    cost: PassphraseCost | None = None,
    label: str = "",
    now: float = 0.0,
) -> Slot:
    """Make a slot that a passphrase opens. Takes about half a second.

    Raises:
        LocalError: The passphrase is shorter than 8 bytes, or the cost is out of bounds.
    """
    if len(passphrase) < MIN_PASSPHRASE_BYTES:
        raise LocalError(f"a passphrase has at least {MIN_PASSPHRASE_BYTES} characters")
    cost = cost or PassphraseCost()
    slot = _new(SlotKind.PASSPHRASE, label, now, salt=os.urandom(SALT_BYTES), cost=cost)
    with _stretch(passphrase, slot) as key:
        return _wrap(slot, vault_id, entropy, key)


def key_file_slot(
    vault_id: bytes, entropy: memoryview, key: memoryview, *, label: str = "", now: float = 0.0
) -> Slot:
    """Make a slot that the 32 random bytes of a file open."""
    return _random_key_slot(SlotKind.KEY_FILE, vault_id, entropy, key, label, now)


def keyring_slot(
    vault_id: bytes, entropy: memoryview, key: memoryview, *, label: str = "", now: float = 0.0
) -> Slot:
    """Make a slot that 32 random bytes in the system's keyring open."""
    return _random_key_slot(SlotKind.KEYRING, vault_id, entropy, key, label, now)


def age_slot(
    vault_id: bytes, entropy: memoryview, recipient: str, *, label: str = "", now: float = 0.0
) -> Slot:
    """Make a slot that the identity of an age recipient (``age1…``) opens.

    Raises:
        LocalError: It is no recipient.
    """
    public = _age_recipient(recipient)
    slot = _new(SlotKind.AGE, label, now, recipient=recipient)
    with LockedBuffer.random(KEY_BYTES) as key:
        sealed = pyrage.encrypt(bytes(key.view), [public])
        slot = msgspec.structs.replace(slot, sealed_key=sealed)
        return _wrap(slot, vault_id, entropy, key)


def open_passphrase_slot(vault_id: bytes, slot: Slot, passphrase: bytearray) -> LockedBuffer:
    """Return the entropy.

    Raises:
        Damaged: Another passphrase.
        LocalError: The slot's cost is out of bounds.
    """
    with _stretch(passphrase, slot) as key:
        return _unwrap(slot, vault_id, key)


def open_slot(vault_id: bytes, slot: Slot, key: memoryview) -> LockedBuffer:
    """Return the entropy of a slot that a key file or the keyring opens.

    Raises:
        Damaged: Another key.
    """
    with _expand(slot, key) as slot_key:
        return _unwrap(slot, vault_id, slot_key)


def open_age_slot(vault_id: bytes, slot: Slot, identities: Sequence[str]) -> LockedBuffer:
    """Return the entropy of a slot that one of *identities* (``AGE-SECRET-KEY-1…``) opens.

    Raises:
        Damaged: None of them does.
        LocalError: One is no identity.
    """
    known = [_age_identity(text) for text in identities]
    if len(slot.sealed_key) > MAX_AGE_BYTES:
        raise Damaged("the slot's age file is too long")
    try:
        plain = pyrage.decrypt(slot.sealed_key, known)
    except pyrage.DecryptError:
        raise Damaged("none of the age identities opens the slot") from None
    with LockedBuffer.of(plain) as key:
        return _unwrap(slot, vault_id, key)


def _new(
    kind: SlotKind,
    label: str,
    now: float,
    *,
    salt: bytes = b"",
    cost: PassphraseCost | None = None,
    recipient: str = "",
) -> Slot:
    return Slot(
        id=secrets.token_hex(4),
        kind=kind,
        label=label,
        created_at=now,
        salt=salt,
        cost=cost,
        recipient=recipient,
    )


def _random_key_slot(
    kind: SlotKind, vault_id: bytes, entropy: memoryview, key: memoryview, label: str, now: float
) -> Slot:
    slot = _new(kind, label, now, salt=os.urandom(SALT_BYTES))
    with _expand(slot, key) as slot_key:
        return _wrap(slot, vault_id, entropy, slot_key)


def _wrap(slot: Slot, vault_id: bytes, entropy: memoryview, key: LockedBuffer) -> Slot:
    wrapped = encrypt(key.view, entropy, _context(slot, vault_id))
    return msgspec.structs.replace(slot, wrapped=wrapped)


def _unwrap(slot: Slot, vault_id: bytes, key: LockedBuffer) -> LockedBuffer:
    return decrypt(key.view, slot.wrapped, _context(slot, vault_id))


def _context(slot: Slot, vault_id: bytes) -> bytes:
    return b"alknet slot\0" + vault_id + slot.id.encode() + slot.kind.value.encode()


def _stretch(passphrase: bytearray, slot: Slot) -> LockedBuffer:
    cost = slot.cost or PassphraseCost()
    cost.check()
    key = LockedBuffer(KEY_BYTES)
    Argon2id(
        salt=slot.salt,
        length=KEY_BYTES,
        iterations=cost.iterations,
        lanes=cost.lanes,
        memory_cost=cost.memory_kib,
    ).derive_into(passphrase, key.view)  # type: ignore[arg-type]  # takes any buffer
    return key


def _expand(slot: Slot, key: memoryview) -> LockedBuffer:
    if len(key) != KEY_FILE_BYTES:
        raise LocalError(f"the key of a {slot.kind.value} slot has {KEY_FILE_BYTES} bytes")
    return derive_kek(key, slot.salt, f"alknet slot {slot.kind.value}")


def _age_recipient(text: str) -> pyrage.x25519.Recipient:
    return _parsed(pyrage.x25519.Recipient.from_str, text, "an age recipient (age1…)")


def _age_identity(text: str) -> pyrage.x25519.Identity:
    return _parsed(pyrage.x25519.Identity.from_str, text, "an age identity (AGE-SECRET-KEY-1…)")


def _parsed(parse: Callable[[str], T], text: str, what: str) -> T:
    try:
        return parse(text)
    except (pyrage.RecipientError, pyrage.IdentityError):
        raise LocalError(f"this is not {what}") from None

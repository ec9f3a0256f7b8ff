"""Statements that one key of a node takes the place of another, sans-IO.

::

    old key (32) | new key (32) | time (8) | signature of the old key (64) | of the new key (64)

The time is in whole seconds since the Unix epoch, big-endian. The old key signs
``"alknet-succession-v1" 0 "old" 0`` and the first 72 bytes, the new key the same with ``"new"``:
the old one to say who comes after it, the new one so that nobody names a key that he does not have.
Neither prefix begins anything else that these keys sign. Statements chain: a peer that knew the
first key of three follows two of them.

Whoever has stolen the old key can make a statement, too: who follows one is shown it first, and a
stolen key is answered by removing the peer, not by rotating.
"""

from __future__ import annotations

import struct
from collections.abc import Collection, Sequence
from itertools import pairwise
from typing import Literal

import msgspec
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from alknet.errors import Denied, Malformed

__all__ = [
    "Answer",
    "MAX_STATEMENTS",
    "STATEMENT_BYTES",
    "Succession",
    "chain_to",
    "check_chain",
    "decode_succession_untrusted",
    "follow_succession",
    "sign_succession",
]

PREFIX = b"alknet-succession-v1\0"
_BODY = struct.Struct(">32s32sQ")
SIGNATURE_BYTES = 64
STATEMENT_BYTES = _BODY.size + 2 * SIGNATURE_BYTES
# Two a year for 32 years, and in base64 a third of the frame that strangers may be sent.
MAX_STATEMENTS = 64
# The last second of the year 9999: calendars end there.
LAST_SECOND = 253_402_300_799

Answer = Literal["waits", "known", "unknown"]
"""What a node makes of another's new key: it waits for the owner's word; it is the peer's key
already; or the old key is no enabled peer's."""


class Succession(msgspec.Struct, frozen=True):
    """A statement; its signatures are good only once `is_signed` says so.

    Attributes:
        old: The key that was the node's, 32 bytes.
        new: The key that is, 32 bytes.
        signed_at: Whole seconds since the Unix epoch.
        by_old: Its signature, 64 bytes.
        by_new: The new key's.
    """

    old: bytes
    new: bytes
    signed_at: int
    by_old: bytes
    by_new: bytes

    def encode(self) -> bytes:
        """Return the 200 bytes."""
        return _BODY.pack(self.old, self.new, self.signed_at) + self.by_old + self.by_new

    def is_signed(self) -> bool:
        """Return whether both keys have signed it, and are two."""
        if self.old == self.new:
            return False
        body = _BODY.pack(self.old, self.new, self.signed_at)
        return _verifies(self.old, b"old", body, self.by_old) and _verifies(
            self.new, b"new", body, self.by_new
        )


def sign_succession(old: Ed25519PrivateKey, new: Ed25519PrivateKey, *, now: float) -> Succession:
    """State that *new* takes the place of *old*."""
    keys = old.public_key().public_bytes_raw(), new.public_key().public_bytes_raw()
    body = _BODY.pack(*keys, int(now))
    by_old, by_new = old.sign(_message(b"old", body)), new.sign(_message(b"new", body))
    return Succession(*keys, int(now), by_old, by_new)


def decode_succession_untrusted(data: bytes) -> Succession:
    """Take a statement apart; its signatures are not checked.

    Raises:
        Malformed: It has not 200 bytes, or a time that no calendar has.
    """
    if len(data) != STATEMENT_BYTES:
        raise Malformed(f"a statement of {len(data)} bytes, expected {STATEMENT_BYTES}")
    old, new, signed_at = _BODY.unpack_from(data)
    if signed_at > LAST_SECOND:
        raise Malformed(f"a statement of {signed_at} seconds since 1970: there is no such date")
    cut = _BODY.size + SIGNATURE_BYTES
    return Succession(old, new, signed_at, data[_BODY.size : cut], data[cut:])


def chain_to(statements: Sequence[Succession], key: bytes) -> list[Succession]:
    """Return those of *statements*, which are in order, that lead to *key* without a gap.

    The newest `MAX_STATEMENTS` at most; none if none leads there.
    """
    chain: list[Succession] = []
    for statement in reversed(statements):
        if statement.new == key:
            chain.append(statement)
            key = statement.old
    return chain[:MAX_STATEMENTS][::-1]


def follow_succession(
    statements: Sequence[Succession], known: Collection[bytes], key: bytes
) -> list[Succession]:
    """Return the statements that lead from a *known* key to *key*, all of them verified.

    Args:
        statements: As a peer sent them, oldest first.
        known: The keys that are trusted.
        key: The one that the peer has proven to have.

    Raises:
        Denied: They do not lead there, a signature is wrong, a time runs backwards, or there are
            more than 64.
    """
    if len(statements) > MAX_STATEMENTS:
        raise Denied(f"{len(statements)} statements, at most {MAX_STATEMENTS}")
    path = list(statements)
    while path and path[0].old not in known:
        path = path[1:]
    if not path or path[-1].new != key:
        raise Denied("no statement of a known key leads to the key that answers")
    check_chain(path)
    return path


def check_chain(statements: Sequence[Succession]) -> None:
    """Verify that *statements* follow from one another: two signatures of each are checked.

    Raises:
        Denied: They do not, a time runs backwards, or a signature is wrong.
    """
    for one, following in pairwise(statements):
        if one.new != following.old or one.signed_at > following.signed_at:
            raise Denied("the statements do not follow from one another")
    if not all(statement.is_signed() for statement in statements):
        raise Denied("a statement is not signed by both of its keys")


def _message(role: bytes, body: bytes) -> bytes:
    return PREFIX + role + b"\0" + body


def _verifies(key: bytes, role: bytes, body: bytes, signature: bytes) -> bool:
    try:
        Ed25519PublicKey.from_public_bytes(key).verify(signature, _message(role, body))
    except (InvalidSignature, ValueError):
        return False
    return True

"""Ed25519 keys derived from a seed along a path, hardened steps only.

Source: https://github.com/satoshilabs/slips/blob/master/slip-0010.md
"""

from __future__ import annotations

import hmac
import re

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from alknet.errors import LocalError

__all__ = ["ExtendedKey", "derive", "parse_path"]

HARDENED = 1 << 31
# One byte holds the depth in BIP32's serialisation, whose paths these are.
MAX_DEPTH = 255


class ExtendedKey:
    """A private key and the chain code that its children need. Its ``repr`` shows neither."""

    __slots__ = ("chain_code", "private_bytes")

    def __init__(self, private_bytes: bytes, chain_code: bytes) -> None:
        self.private_bytes = private_bytes
        self.chain_code = chain_code

    @classmethod
    def master(cls, seed: bytes) -> ExtendedKey:
        """Return the key at ``m``.

        Args:
            seed: 16 to 64 bytes; 64 from `words.seed_from_words`.

        Raises:
            LocalError: The seed is too short or too long.
        """
        if not 16 <= len(seed) <= 64:
            raise LocalError(f"a seed has 16 to 64 bytes, not {len(seed)}")
        return cls._split(hmac.digest(b"ed25519 seed", seed, "sha512"))

    @classmethod
    def _split(cls, digest: bytes) -> ExtendedKey:
        return cls(digest[:32], digest[32:])

    def child(self, index: int) -> ExtendedKey:
        """Return the hardened child *index*, 0 to 2^31-1 (written ``index'``)."""
        if not 0 <= index < HARDENED:
            raise LocalError(f"child index {index} is not from 0 to {HARDENED - 1}")
        data = b"\0" + self.private_bytes + (index + HARDENED).to_bytes(4, "big")
        return self._split(hmac.digest(self.chain_code, data, "sha512"))

    def private_key(self) -> Ed25519PrivateKey:
        """Return the key for signing."""
        return Ed25519PrivateKey.from_private_bytes(self.private_bytes)

    def __repr__(self) -> str:
        return "<ExtendedKey>"


def derive(seed: bytes, path: str) -> ExtendedKey:
    """Return the key at *path* below the master key of *seed*.

    Raises:
        LocalError: The seed has a wrong size, or the path is wrong as in `parse_path`.
    """
    key = ExtendedKey.master(seed)
    for index in parse_path(path):
        key = key.child(index)
    return key


def parse_path(path: str) -> tuple[int, ...]:
    """Return the indices of a path such as ``m/74'/0'`` (``h`` and ``H`` mean ``'`` as well).

    Raises:
        LocalError: It does not begin with ``m``, a step is not hardened or not a number below
            2^31, or there are more than 255 steps.
    """
    root, *steps = path.split("/")
    if root != "m":
        raise LocalError(f"derivation path {path[:80]!r} does not begin with 'm'")
    if len(steps) > MAX_DEPTH:
        raise LocalError(f"derivation path of {len(steps)} steps, at most {MAX_DEPTH}")
    return tuple(_parse_step(step) for step in steps)


def _parse_step(step: str) -> int:
    match = _STEP.fullmatch(step)
    if match is None or int(match[1]) >= HARDENED:
        raise LocalError(f"derivation step {step[:20]!r} is not a number from 0 to {HARDENED - 1}")
    if not match[2]:
        raise LocalError(f"derivation step {step!r} must be hardened for Ed25519: {step}'")
    return int(match[1])


_STEP = re.compile(r"(0|[1-9][0-9]{0,9})(['hH]?)")

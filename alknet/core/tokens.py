"""API tokens: ``alk_<8 characters>_<52 characters>``, a public prefix and a 256-bit secret.

The text is shown once, when it is made; only prefix and SHA-256 are kept (`identity.ApiKey`). A
fast hash is right here: 256 random bits cannot be guessed, however fast the guessing.
"""

from __future__ import annotations

import hashlib
import hmac
import re
import secrets

import msgspec

from alknet.core import zbase32
from alknet.errors import Malformed

__all__ = ["MintedToken", "mint_token", "token_hash", "token_matches", "token_prefix_untrusted"]


class MintedToken(msgspec.Struct, frozen=True):
    """A new token. Its ``repr`` does not show the secret.

    Attributes:
        text: The whole token, to be shown to its user once and then forgotten.
        prefix: Names the token in lists and in its identity, ``key:<prefix>``.
        hash: What to keep.
    """

    text: str
    prefix: str
    hash: bytes

    def __repr__(self) -> str:
        return f"<MintedToken alk_{self.prefix}_...>"


def mint_token() -> MintedToken:
    """Make a new token from the system's randomness.

    The prefix has 40 bits; whoever stores it checks that it is not taken.
    """
    prefix = zbase32.encode(secrets.token_bytes(5))
    text = f"alk_{prefix}_{zbase32.encode(secrets.token_bytes(32))}"
    return MintedToken(text, prefix, token_hash(text))


def token_hash(text: str) -> bytes:
    """Return the 32 bytes by which a token is recognised: SHA-256 of its whole text."""
    return hashlib.sha256(text.encode()).digest()


def token_matches(text: str, expected_hash: bytes) -> bool:
    """Whether *text* is the token of that hash, in a time that says nothing about either."""
    return hmac.compare_digest(token_hash(text), expected_hash)


def token_prefix_untrusted(text: str) -> str:
    """Return the prefix of a token that someone sent.

    Raises:
        Malformed: It has not the form of a token. The message does not repeat it.
    """
    match = _TOKEN.fullmatch(text)
    if match is None:
        raise Malformed("malformed token")
    return match[1]


_TOKEN = re.compile(rf"alk_([{zbase32.ALPHABET}]{{8}})_[{zbase32.ALPHABET}]{{52}}")

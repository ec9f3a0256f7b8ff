"""Envelope encryption: a random key for each secret, wrapped by a key of the vault.

A *DEK* (data encryption key) encrypts one version of one secret; a *KEK* (key encryption key)
of the vault wraps it. All is AES-256-GCM with random nonces: a DEK is used once, and a KEK wraps
fewer than 2^32 of them (NIST SP 800-38D sec. 8.3). What is authenticated beside the data names
the vault, the secret's path and its version, so that two records cannot be swapped.
"""

from __future__ import annotations

import base64
import os
import re
import struct

import msgspec
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from alknet.errors import LocalError, Malformed
from alknet.vault.locked import LockedBuffer
from alknet.vault.roles import KeyRole, path_of

__all__ = [
    "FIRST_KEK",
    "MAX_KEK",
    "Damaged",
    "Sealed",
    "derive_kek",
    "kek_path",
    "open_sealed",
    "rewrap",
    "seal",
    "sealed_from_text_untrusted",
    "sealed_to_text",
]

KEY_BYTES = 32
NONCE_BYTES = 12
TAG_BYTES = 16
WRAPPED_BYTES = KEY_BYTES + TAG_BYTES
# Versions 0 and 1 of the key path were other schemes of the seeds' design.
FIRST_KEK = 2
# A secret is a key, a token, a certificate: bulk belongs in files that such a key encrypts.
MAX_SECRET_BYTES = 1024 * 1024
MAX_KEK = 2**31 - 1

_TEXT = re.compile(r"alkv1:v([0-9]{1,10}):([A-Za-z0-9_-]+)")


class Damaged(LocalError):
    """What was to be decrypted is not what was encrypted, or not under this key."""


class Sealed(msgspec.Struct, frozen=True):
    """One encrypted value.

    Attributes:
        kek_version: Which of the vault's keys wraps the DEK.
        wrapped_dek: Nonce and wrapped key, 60 bytes.
        ciphertext: Nonce, encrypted value and tag.
    """

    kek_version: int
    wrapped_dek: bytes
    ciphertext: bytes


def kek_path(version: int) -> str:
    """Return the derivation path of the child key that KEK *version* comes from."""
    if not FIRST_KEK <= version <= MAX_KEK:
        raise LocalError(f"there is no key version {version}: the first is {FIRST_KEK}")
    return path_of(KeyRole.ENCRYPTION, version - FIRST_KEK)


def derive_kek(child: memoryview, vault_id: bytes, info: str) -> LockedBuffer:
    """Return a key that HKDF-SHA256 (RFC 5869) makes of a child key for one purpose."""
    key = LockedBuffer(KEY_BYTES)
    HKDF(SHA256(), KEY_BYTES, salt=vault_id, info=info.encode()).derive_into(child, key.view)
    return key


def seal(
    kek: memoryview, kek_version: int, context: bytes, plaintext: bytes | memoryview
) -> Sealed:
    """Encrypt *plaintext* under a DEK of its own.

    Args:
        context: What it is, see `context_of`; needed again to open it.

    Raises:
        LocalError: It is longer than 1 MiB.
    """
    if len(plaintext) > MAX_SECRET_BYTES:
        raise LocalError(f"a secret of {len(plaintext)} bytes, at most {MAX_SECRET_BYTES}")
    with LockedBuffer.random(KEY_BYTES) as dek:
        ciphertext = encrypt(dek.view, plaintext, context)
        wrapped = encrypt(kek, dek.view, _wrap_context(context, kek_version))
    return Sealed(kek_version, wrapped, ciphertext)


def open_sealed(kek: memoryview, context: bytes, sealed: Sealed) -> LockedBuffer:
    """Decrypt into memory of its own; the caller closes it.

    Raises:
        Damaged: Another key, another context, or altered bytes.
    """
    with _unwrap(kek, context, sealed) as dek:
        return decrypt(dek.view, sealed.ciphertext, context)


def rewrap(
    old_kek: memoryview, kek: memoryview, kek_version: int, context: bytes, sealed: Sealed
) -> Sealed:
    """Wrap the DEK anew; the ciphertext stays, and the plaintext never appears.

    Raises:
        Damaged: As in `open_sealed`.
    """
    with _unwrap(old_kek, context, sealed) as dek:
        wrapped = encrypt(kek, dek.view, _wrap_context(context, kek_version))
    return Sealed(kek_version, wrapped, sealed.ciphertext)


def context_of(vault_id: bytes, path: str, version: int) -> bytes:
    """Return what is authenticated with a secret; each part is preceded by its length."""
    name = path.encode()
    return struct.pack(
        f">B{len(vault_id)}sH{len(name)}sQ", len(vault_id), vault_id, len(name), name, version
    )


def sealed_to_text(sealed: Sealed) -> str:
    """Write a sealed value that is kept outside the vault: ``alkv1:v<n>:<base64url>``."""
    data = base64.urlsafe_b64encode(sealed.wrapped_dek + sealed.ciphertext).decode().rstrip("=")
    return f"alkv1:v{sealed.kek_version}:{data}"


def sealed_from_text_untrusted(text: str) -> Sealed:
    """Read what `sealed_to_text` wrote.

    Raises:
        Malformed: It is something else, or too long.
    """
    if len(text) > 2 * MAX_SECRET_BYTES:
        raise Malformed("a sealed value of that length")
    match = _TEXT.fullmatch(text)
    if match is None:
        raise Malformed("not a sealed value: it begins with 'alkv1:v'")
    try:
        data = base64.urlsafe_b64decode(match[2] + "=" * (-len(match[2]) % 4))
    except ValueError as exc:
        raise Malformed("not a sealed value: its base64url is broken") from exc
    cut = NONCE_BYTES + WRAPPED_BYTES
    if len(data) < cut + NONCE_BYTES + TAG_BYTES:
        raise Malformed("not a sealed value: it is too short")
    return Sealed(int(match[1]), data[:cut], data[cut:])


def encrypt(key: memoryview, plaintext: bytes | memoryview, context: bytes) -> bytes:
    """AES-256-GCM: return nonce, ciphertext and tag."""
    nonce = os.urandom(NONCE_BYTES)
    return nonce + AESGCM(key).encrypt(nonce, plaintext, context)


def decrypt(key: memoryview, data: bytes, context: bytes) -> LockedBuffer:
    """Decrypt what `encrypt` returned, into locked memory.

    Raises:
        Damaged: As in `open_sealed`.
    """
    if len(data) < NONCE_BYTES + TAG_BYTES:
        raise Damaged("encrypted data is cut short")
    plain = LockedBuffer(len(data) - NONCE_BYTES - TAG_BYTES)
    try:
        AESGCM(key).decrypt_into(data[:NONCE_BYTES], data[NONCE_BYTES:], context, plain.view)
    except InvalidTag:
        plain.close()
        raise Damaged("encrypted data is damaged, or belongs somewhere else") from None
    return plain


def _unwrap(kek: memoryview, context: bytes, sealed: Sealed) -> LockedBuffer:
    return decrypt(kek, sealed.wrapped_dek, _wrap_context(context, sealed.kek_version))


def _wrap_context(context: bytes, kek_version: int) -> bytes:
    return b"dek" + struct.pack(">I", kek_version) + context

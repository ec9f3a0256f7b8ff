"""Files encrypted with age (https://age-encryption.org/v1): to recipients, or with a passphrase.

What is written here the ``age`` program reads, and the other way round. Passphrases and plaintext
pass through Python's ``str`` and ``bytes``, which cannot be wiped: for short-lived commands.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Iterable, Sequence
from typing import TypeAlias

import pyrage

from alknet.errors import LocalError
from alknet.vault.envelope import Damaged

__all__ = [
    "AgeIdentity",
    "AgeRecipient",
    "decrypt_file",
    "decrypt_file_with_passphrase",
    "encrypt_file",
    "encrypt_file_with_passphrase",
    "read_identities",
    "read_recipients",
    "wants_passphrase",
]

AgeRecipient: TypeAlias = pyrage.x25519.Recipient | pyrage.ssh.Recipient
AgeIdentity: TypeAlias = pyrage.x25519.Identity | pyrage.ssh.Identity

# As for a vault: a shorter one falls to guessing whatever scrypt costs.
MIN_PASSPHRASE = 8
FIRST_LINE = b"age-encryption.org/v1\n"
ARMOR_BEGIN = b"-----BEGIN AGE ENCRYPTED FILE-----"
# The first line and the stanza of a passphrase are in the first lines of the armor.
ARMOR_HEAD_BYTES = 256
# What pyrage says when the key is wrong, and not the file.
NO_IDENTITY, NO_PASSPHRASE = "no matching keys", "decryption failed"


def read_recipients(text: str) -> list[AgeRecipient]:
    """Return the recipients of a file, one a line: ``age1…`` or an SSH public key.

    Blank lines and those that begin with ``#`` say nothing.

    Raises:
        LocalError: A line is something else; the message has its number.
    """
    return [_recipient(line, number) for number, line in _lines(text)]


def read_identities(text: str) -> list[AgeIdentity]:
    """Return the identities of a file that ``age-keygen`` wrote, or of an OpenSSH private key.

    Raises:
        LocalError: There is something else in it; the message does not say what.
    """
    if text.lstrip().startswith("-----BEGIN"):
        return [_ssh_identity(text)]
    return [_identity(line, number) for number, line in _lines(text)]


def encrypt_file(data: bytes, recipients: Sequence[AgeRecipient], *, armored: bool) -> bytes:
    """Encrypt to *recipients*, each of whom can read it.

    Raises:
        LocalError: There is no recipient.
    """
    if not recipients:
        raise LocalError("nobody to encrypt to: name a recipient or a passphrase")
    encrypted: bytes = pyrage.encrypt(data, list(recipients), armored=armored)
    return encrypted


def encrypt_file_with_passphrase(data: bytes, passphrase: str, *, armored: bool) -> bytes:
    """Encrypt under scrypt, which takes about a second.

    Raises:
        LocalError: The passphrase is shorter than 8 characters.
    """
    if len(passphrase) < MIN_PASSPHRASE:
        raise LocalError(f"a passphrase has at least {MIN_PASSPHRASE} characters")
    encrypted: bytes = pyrage.passphrase.encrypt(data, passphrase, armored=armored)
    return encrypted


def decrypt_file(data: bytes, identities: Sequence[AgeIdentity]) -> bytes:
    """Decrypt with the first of *identities* that fits.

    Raises:
        Damaged: None fits, or the file is cut short or altered.
    """
    try:
        plain: bytes = pyrage.decrypt(data, list(identities))
    except pyrage.DecryptError as exc:
        raise Damaged(_reason(exc, NO_IDENTITY, "none of the identities opens it")) from None
    return plain


def decrypt_file_with_passphrase(data: bytes, passphrase: str) -> bytes:
    """Decrypt what a passphrase encrypted; raises Damaged like `decrypt_file`."""
    try:
        plain: bytes = pyrage.passphrase.decrypt(data, passphrase)
    except pyrage.DecryptError as exc:
        raise Damaged(_reason(exc, NO_PASSPHRASE, "wrong passphrase")) from None
    return plain


def wants_passphrase(data: bytes) -> bool:
    """Return whether a passphrase opens the file, as opposed to an identity.

    Raises:
        LocalError: It is no age file.
    """
    head = data
    if data.lstrip().startswith(ARMOR_BEGIN):
        lines = data.lstrip()[len(ARMOR_BEGIN) :].split()
        try:
            head = base64.b64decode(b"".join(lines[:4])[:ARMOR_HEAD_BYTES])
        except binascii.Error:
            raise LocalError("it is no age file: its armor is broken") from None
    if not head.startswith(FIRST_LINE):
        raise LocalError("it is no age file")
    return head[len(FIRST_LINE) :].startswith(b"-> scrypt ")


def _reason(exc: Exception, unknown_key: str, message: str) -> str:
    is_key = unknown_key in str(exc).lower()
    return message if is_key else "it is cut short or altered"


def _lines(text: str) -> Iterable[tuple[int, str]]:
    for number, line in enumerate(text.splitlines(), start=1):
        if (found := line.strip()) and not found.startswith("#"):
            yield number, found


def _recipient(line: str, number: int) -> AgeRecipient:
    try:
        if line.startswith("ssh-"):
            return pyrage.ssh.Recipient.from_str(line)
        return pyrage.x25519.Recipient.from_str(line)
    except (pyrage.RecipientError, ValueError):
        raise LocalError(
            f"line {number} is not an age recipient (age1…) or SSH public key"
        ) from None


def _identity(line: str, number: int) -> AgeIdentity:
    try:
        return pyrage.x25519.Identity.from_str(line)
    except (pyrage.IdentityError, ValueError):
        raise LocalError(f"line {number} is not an age identity (AGE-SECRET-KEY-1…)") from None


def _ssh_identity(text: str) -> AgeIdentity:
    try:
        return pyrage.ssh.Identity.from_buffer(text.encode())
    except (pyrage.IdentityError, ValueError):
        raise LocalError("this is not an OpenSSH private key that needs no passphrase") from None

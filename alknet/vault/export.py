"""All secrets of a vault in one document, for another vault or another program.

JSON, ``{"format": "alknet vault export 1", "secrets": [{"path", "value", …}]}``, base64;
plain or as an age file. The newest values only, and neither keys nor words.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import msgspec
import pyrage

from alknet.errors import LocalError
from alknet.vault.vault import Vault

__all__ = ["export_of", "import_into"]

AGE_MAGIC = b"age-encryption.org/"


class _Secret(msgspec.Struct, frozen=True):
    path: str
    value: bytes
    expires_at: float | None = None


class _Export(msgspec.Struct, frozen=True):
    format: Literal["alknet vault export 1"]
    secrets: list[_Secret]


def export_of(vault: Vault, recipient: str | None) -> tuple[bytes, int]:
    """Return an export of an unlocked vault, and how many secrets are in it.

    Args:
        recipient: Of age, whom it is encrypted for; None for plain JSON.

    Raises:
        LocalError: It is no recipient.
    """
    secrets = []
    for info, value in vault.newest_values():
        with value:
            secrets.append(_Secret(info.path, bytes(value.view), info.expires_at))
    data = msgspec.json.encode(_Export("alknet vault export 1", secrets))
    if recipient is not None:
        try:
            public = pyrage.x25519.Recipient.from_str(recipient)
        except pyrage.RecipientError:
            raise LocalError("this is not an age recipient (age1…)") from None
        data = pyrage.encrypt(data, [public])
    return data, len(secrets)


def import_into(
    vault: Vault, data: bytes, identities: Sequence[str], *, now: float, replaces: bool
) -> int:
    """Store the secrets of an export in one write, and return how many there are.

    Args:
        identities: Of age, for an encrypted export.
        replaces: Store a new version of a secret that exists.

    Raises:
        LocalError: It is no export, or none of *identities* opens it.
        Conflict: A secret exists, and *replaces* is False; nothing was stored.
    """
    try:
        found = msgspec.json.decode(_opened(data, identities), type=_Export)
    except (msgspec.DecodeError, UnicodeDecodeError):
        raise LocalError("this is no export of a vault") from None
    secrets = [(one.path, one.value, one.expires_at) for one in found.secrets]
    vault.put_all(secrets, now=now, replaces=replaces)
    return len(secrets)


def _opened(data: bytes, identities: Sequence[str]) -> bytes:
    if not data.startswith(AGE_MAGIC):
        return data
    if not identities:
        raise LocalError("this export is encrypted: name an age identity that opens it")
    try:
        known = [pyrage.x25519.Identity.from_str(text) for text in identities]
        return bytes(pyrage.decrypt(data, known))
    except (pyrage.IdentityError, pyrage.DecryptError):
        raise LocalError("the age identity does not open this export") from None

"""What a vault knows of a secret beside its value."""

from __future__ import annotations

import msgspec

from alknet.errors import NotFound
from alknet.vault.container import Secret

__all__ = ["SecretInfo", "info_of", "without_version"]


class SecretInfo(msgspec.Struct, frozen=True):
    """What may be shown of a secret.

    Attributes:
        versions: Numbers that can still be read, the newest last.
        kek_version: The key that the newest value is under.
    """

    path: str
    versions: tuple[int, ...]
    created_at: float
    expires_at: float | None
    kek_version: int | None


def info_of(path: str, secret: Secret) -> SecretInfo:
    """Return what may be shown of a secret."""
    newest = secret.versions[-1]
    return SecretInfo(
        path=path,
        versions=tuple(entry.version for entry in secret.versions if entry.sealed),
        created_at=newest.created_at,
        expires_at=secret.expires_at,
        kek_version=newest.sealed.kek_version if newest.sealed else None,
    )


def without_version(path: str, secret: Secret, version: int) -> Secret:
    """Return *secret* with the value of one version destroyed; NotFound if it has none."""
    if not any(entry.version == version and entry.sealed for entry in secret.versions):
        raise NotFound(f"{path} has no version {version}")
    versions = tuple(
        msgspec.structs.replace(entry, sealed=None) if entry.version == version else entry
        for entry in secret.versions
    )
    return msgspec.structs.replace(secret, versions=versions)

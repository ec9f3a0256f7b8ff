"""Homes from before there were vaults: the key lies in a file, as it is."""

from __future__ import annotations

from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from alknet.vault.keyfile import KEY_FILE

__all__ = ["write_key"]


def write_key(home: Path, key: Ed25519PrivateKey) -> Path:
    """Put *key* into *home* and return the path of its file."""
    path = home / KEY_FILE
    path.touch(mode=0o600)
    path.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    return path

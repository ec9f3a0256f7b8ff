"""``succession.json``: how a home's node came to its key; and the step to the next one.

The file holds statements (`alknet.core.succession`) in base64, oldest first. Nothing in it is
secret: the node shows it to everybody.
"""

from __future__ import annotations

from pathlib import Path

import msgspec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from alknet.core.succession import (
    Succession,
    chain_to,
    decode_succession_untrusted,
    sign_succession,
)
from alknet.errors import Conflict, Malformed, StoreError
from alknet.vault.durable import replace_file, store_errors
from alknet.vault.roles import KeyRole, path_of
from alknet.vault.vault import Vault

__all__ = ["SUCCESSION_FILE", "read_succession", "rotate_identity"]

SUCCESSION_FILE = "succession.json"


def read_succession(home: Path, key: bytes) -> list[Succession]:
    """Return the statements of a home that lead to *key*, oldest first.

    A rotation that was cut short has left one that leads further; it is not among them.

    Raises:
        StoreError: The file cannot be read or is damaged.
    """
    path = home / SUCCESSION_FILE
    with store_errors(f"cannot read {path}"):
        try:
            data = path.read_bytes()
        except FileNotFoundError:
            return []
    try:
        found = msgspec.json.decode(data, type=list[bytes])
        return chain_to([decode_succession_untrusted(one) for one in found], key)
    except (msgspec.DecodeError, UnicodeDecodeError, Malformed) as exc:
        raise StoreError(f"cannot read {path}: it is damaged ({exc})") from exc


def rotate_identity(
    vault: Vault, home: Path, *, now: float, device: int | None = None
) -> Succession:
    """Give the node the key of another device number, with a statement of the old key.

    The statement is in the home before the vault changes: killed in between, the node has its old
    key, and the next attempt goes on. A node that runs keeps the old key until it is restarted.

    Args:
        vault: That of *home*, unlocked.
        device: The number; by default the next one, or the present one if the node's key was
            brought in and is not of the words.

    Raises:
        Conflict: That key is the node's already, or has been; or another process rotated it
            just now.
        LocalError: There is no device of that number.
        Unavailable: The vault is locked.
        StoreError: A file cannot be read or written; the old key stays.
    """
    old = vault.identity()
    old_public = old.public_key().public_bytes_raw()
    if device is None:
        device = vault.header.device
        if _key(vault, device).public_key().public_bytes_raw() == old_public:
            device += 1
    statement = sign_succession(old, _key(vault, device), now=now)
    chain = read_succession(home, old_public)
    if statement.new in {old_public, *(one.old for one in chain)}:
        raise Conflict(f"the key of device {device} is this node's, or was: choose another number")
    encoded = [one.encode() for one in (*chain, statement)]

    def write_statements() -> None:
        with store_errors(f"cannot write {home / SUCCESSION_FILE}, nothing was changed"):
            replace_file(home / SUCCESSION_FILE, msgspec.json.encode(encoded))

    vault.set_identity(
        device=device, public_key=statement.new, replacing=old_public, first=write_statements
    )
    return statement


def _key(vault: Vault, device: int) -> Ed25519PrivateKey:
    (derived,) = vault.derive([path_of(KeyRole.IDENTITY, device)])
    with derived:
        return Ed25519PrivateKey.from_private_bytes(derived.view)

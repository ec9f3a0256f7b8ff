"""Which key comes from where below the words, and what each may be used for.

The paths are those of the seeds' design (coin type 74, unregistered in SLIP-0044); all steps are
hardened, as Ed25519 wants. docs/reference/keys.md is made from `ROLES`.
"""

from __future__ import annotations

from enum import Enum

import msgspec

from alknet.errors import LocalError

__all__ = ["ROLES", "KeyRole", "RoleInfo", "path_of"]

MAX_INDEX = 2**31 - 1


class KeyRole(Enum):
    """What a derived key is for."""

    IDENTITY = "identity"
    SSH_HOST = "ssh-host"
    SSH_USER = "ssh-user"
    SIGNING = "signing"
    X25519 = "x25519"
    HMAC = "hmac"
    ENCRYPTION = "encryption"


class RoleInfo(msgspec.Struct, frozen=True):
    """Where the keys of a role are, and what they do.

    Attributes:
        prefix: Of the path; the last step is the key's number, hardened.
        algorithm: What the 32 bytes at the path are.
        use: For people.
        is_indexed: There can be several.
    """

    prefix: str
    algorithm: str
    use: str
    is_indexed: bool = True


ROLES = {
    KeyRole.IDENTITY: RoleInfo(
        "m/74'/0'/0'", "Ed25519", "the node's identity; number n is device n of the same words"
    ),
    KeyRole.SSH_HOST: RoleInfo("m/74'/0'/1'", "Ed25519", "the SSH host key", is_indexed=False),
    KeyRole.SSH_USER: RoleInfo("m/74'/0'/2'", "Ed25519", "SSH user keys, served by the agent"),
    KeyRole.SIGNING: RoleInfo("m/74'/0'/3'", "Ed25519", "keys of 'vault/sign' and 'vault/verify'"),
    KeyRole.X25519: RoleInfo("m/74'/0'/4'", "X25519", "keys of 'vault/x25519'"),
    KeyRole.ENCRYPTION: RoleInfo(
        "m/74'/2'/0'", "HKDF-SHA256", "key version n+2 of the vault: it wraps the keys of secrets"
    ),
    KeyRole.HMAC: RoleInfo("m/74'/2'/1'", "HKDF-SHA256", "keys of 'vault/hmac'"),
}


def path_of(role: KeyRole, index: int = 0) -> str:
    """Return the derivation path of a key.

    Raises:
        LocalError: The role has one key only, or the number is not from 0 to 2^31-1.
    """
    info = ROLES[role]
    if not 0 <= index <= (MAX_INDEX if info.is_indexed else 0):
        raise LocalError(f"there is no {role.value} key number {index}")
    return f"{info.prefix}/{index}'"

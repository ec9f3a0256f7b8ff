"""The vault of a node's home: where its identity comes from, and what unlocks it unasked.

A home made by `create_home_vault` has a key file beside the vault, so that the node starts by
itself; whoever copies the whole home has its secrets. Removing that slot, after adding a
passphrase, makes the node ask at every start.
"""

from __future__ import annotations

import os
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from alknet.errors import NotFound
from alknet.vault.derivation import derive_keys
from alknet.vault.durable import replace_file, store_errors, sync_directory
from alknet.vault.envelope import Damaged
from alknet.vault.keyfile import KEY_FILE, read_key
from alknet.vault.locked import LockedBuffer
from alknet.vault.roles import KeyRole, path_of
from alknet.vault.slots import key_file_slot
from alknet.vault.unlock import HOME_KEY_FILE, UnlockWith, create_key_file, find_entropy
from alknet.vault.vault import Vault, create_vault
from alknet.vault.vaultfile import VaultFile

__all__ = [
    "CREDENTIAL_NAME",
    "IDENTITY_SECRET",
    "create_home_vault",
    "has_vault",
    "identity_key_of",
    "migrate_key_file",
    "open_home_vault",
    "unlock_home_vault",
]

IDENTITY_SECRET = "node/identity"  # noqa: S105  a path
"""Where an identity is that was made before there were vaults: no words lead to it."""

CREDENTIAL_NAME = "alknet-vault-key"
"""The name of the systemd credential that is a key file (``LoadCredentialEncrypted=``)."""


def has_vault(home: Path) -> bool:
    """Return whether the home has a vault."""
    return VaultFile(home).exists()


def create_home_vault(
    home: Path, entropy: LockedBuffer, *, now: float, device: int = 0
) -> tuple[Vault, Ed25519PrivateKey]:
    """Make a home's vault with a key file beside it; return it unlocked, and the identity.

    *entropy* is the vault's from now on. The vault's file comes last: a home with one is whole.

    Raises:
        Conflict: There is a vault already.
        LocalError: There is no device of that number.
        StoreError: A file could not be written; none stays behind.
    """
    (child,) = derive_keys(entropy.view, [path_of(KeyRole.IDENTITY, device)])
    with child:
        key = Ed25519PrivateKey.from_private_bytes(child.view)
    vault = _create(home, entropy, key, now=now, device=device)
    return vault, key


def open_home_vault(home: Path) -> Vault:
    """Return the home's vault, locked; raises like `VaultFile.read`."""
    return Vault(VaultFile(home))


def unlock_home_vault(
    vault: Vault, home: Path, given: UnlockWith | None = None, *, accepts_older: bool = False
) -> None:
    """Unlock with what was given, else with what the home or systemd provides.

    Raises:
        Unavailable: Nothing was given, and there is neither key file nor credential that fits.
        Damaged: What was given does not open it.
        RolledBack: The file is an old one, unless *accepts_older*.
    """
    given = given or UnlockWith(key_files=tuple(_provided(home)))
    vault.unlock(find_entropy(vault.header, given), accepts_older=accepts_older)


def identity_key_of(vault: Vault) -> Ed25519PrivateKey:
    """Return the node's key from its unlocked vault.

    Raises:
        Unavailable: The vault is locked.
        Damaged: It is not the key that the header names.
    """
    key = _imported(vault) or _derived(vault)
    if vault.header.public_key not in {b"", key.public_key().public_bytes_raw()}:
        raise Damaged("the vault's identity is not the one that its header names")
    return key


def migrate_key_file(home: Path, backup: Path, *, now: float) -> Vault:
    """Move the key of an older home into a new vault; return it unlocked.

    The old file goes to *backup*, a directory of mode 0700, when the vault is whole. Killed at
    any point, the home has its key in one place or in both, and the next call goes on.

    Raises:
        NotFound: There is no key file.
        LocalError: The key file is damaged or not private.
        StoreError: A file could not be written.
    """
    key = read_key(home)
    entropy = LockedBuffer.random(32)
    vault = _create(home, entropy, key, now=now, device=0, is_imported=True)
    with store_errors(f"cannot keep {KEY_FILE} in {backup}"):
        backup.mkdir(mode=0o700, exist_ok=True)
        replace_file(backup / KEY_FILE, (home / KEY_FILE).read_bytes())
        (home / KEY_FILE).unlink()
        sync_directory(home)
    return vault


def _create(
    home: Path,
    entropy: LockedBuffer,
    key: Ed25519PrivateKey,
    *,
    now: float,
    device: int,
    is_imported: bool = False,
) -> Vault:
    path = home / HOME_KEY_FILE
    file = VaultFile(home)
    if not file.exists():
        path.unlink(missing_ok=True)  # of an attempt that did not come to its vault
    with create_key_file(path) as file_key:
        try:
            vault = create_vault(
                file,
                entropy,
                lambda vault_id, root: [
                    key_file_slot(vault_id, root, file_key.view, label=HOME_KEY_FILE, now=now)
                ],
                now=now,
                device=device,
                public_key=key.public_key().public_bytes_raw(),
                secrets=_identity_secret(key) if is_imported else (),
            )
        except BaseException:
            path.unlink(missing_ok=True)
            raise
    return vault


def _identity_secret(key: Ed25519PrivateKey) -> tuple[tuple[str, bytes], ...]:
    raw = key.private_bytes(Encoding.Raw, PrivateFormat.Raw, NoEncryption())
    return ((IDENTITY_SECRET, raw),)


def _provided(home: Path) -> list[Path]:
    """The key files that need no asking, and are there."""
    found = [home / HOME_KEY_FILE]
    if directory := os.environ.get("CREDENTIALS_DIRECTORY"):
        found.append(Path(directory) / CREDENTIAL_NAME)
    return [path for path in found if path.exists()]


def _imported(vault: Vault) -> Ed25519PrivateKey | None:
    try:
        with vault.get(IDENTITY_SECRET, now=0.0) as raw:
            return Ed25519PrivateKey.from_private_bytes(raw.view)
    except NotFound:
        return None


def _derived(vault: Vault) -> Ed25519PrivateKey:
    (child,) = vault.derive([path_of(KeyRole.IDENTITY, vault.header.device)])
    with child:
        return Ed25519PrivateKey.from_private_bytes(child.view)

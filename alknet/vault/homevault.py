"""The vault of a node's home: where its identity comes from, and what unlocks it unasked.

A home made by `create_home_vault` has a key file beside the vault, so that the node starts by
itself; whoever copies the whole home has its secrets. Removing that slot, after adding a
passphrase, makes the node ask at every start.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from alknet.errors import Conflict, LocalError, NotFound
from alknet.vault.derivation import ENTROPY_BYTES
from alknet.vault.durable import replace_file, store_errors, sync_directory
from alknet.vault.keyfile import KEY_FILE, read_key
from alknet.vault.locked import LockedBuffer
from alknet.vault.roles import KeyRole, path_of
from alknet.vault.slots import Slot, key_file_slot, passphrase_slot
from alknet.vault.unlock import HOME_KEY_FILE, UnlockWith, create_key_file, find_opener
from alknet.vault.vault import IDENTITY_SECRET, Vault, create_vault
from alknet.vault.vaultfile import NotConfirmed, VaultFile

__all__ = [
    "BACKUP",
    "CREDENTIAL_NAME",
    "create_home_vault",
    "has_node",
    "has_vault",
    "home_identity",
    "home_public_key",
    "home_vault",
    "migrate_key_file",
    "open_home_vault",
    "needs_vault",
    "unlock_home_vault",
    "what_unlocks",
]

BACKUP = "backup"
"""The directory in a home for what an update has replaced."""

CREDENTIAL_NAME = "alknet-vault-key"
"""The name of the systemd credential that is a key file (``LoadCredentialEncrypted=``)."""


def has_vault(home: Path) -> bool:
    """Return whether the home has a vault."""
    return VaultFile(home).exists()


def create_home_vault(
    home: Path,
    entropy: LockedBuffer,
    *,
    now: float,
    device: int = 0,
    passphrase: bytearray | None = None,
    has_key_file: bool = True,
) -> tuple[Vault, Ed25519PrivateKey]:
    """Make a home's vault; return it unlocked, and the identity.

    *entropy* is the vault's from now on. The vault's file comes last: a home with one is whole.

    Args:
        passphrase: Opens it too; takes half a second.
        has_key_file: Put a key file beside it, so that the node starts unasked.

    Raises:
        Conflict: There is a vault already.
        LocalError: There is no device of that number, the passphrase is too short, or neither
            passphrase nor key file is wanted.
        StoreError: A file could not be written; none stays behind.
    """
    if passphrase is None and not has_key_file:
        entropy.close()
        raise LocalError("a vault needs a passphrase or a key file")
    try:
        path_of(KeyRole.IDENTITY, device)
    except LocalError:
        entropy.close()
        raise
    maker = _SlotMaker(home, passphrase, has_key_file=has_key_file, now=now)
    vault = maker.make(
        lambda file, slots: create_vault(file, entropy, slots, now=now, device=device)
    )
    return vault, vault.identity()


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
    given = given or what_unlocks(home)
    entropy, by = find_opener(vault.header, given)
    vault.unlock(entropy, accepts_older=accepts_older, by=by)


def home_vault(home: Path, given: UnlockWith | None = None, *, now: float) -> Vault:
    """Return the home's vault, unlocked; a home from before there were vaults gets one first.

    Its ``node.key`` is kept in ``backup/``.

    Raises:
        NotFound: There is no node in the home.
        Unavailable: As `unlock_home_vault`; so are Damaged and RolledBack.
        LocalError: A file is damaged or not private.
        StoreError: A file could not be read or written.
    """
    if needs_vault(home):
        with contextlib.suppress(NotFound):  # another process was faster
            return migrate_key_file(home, home / BACKUP, now=now)
    vault = open_home_vault(home)
    unlock_home_vault(vault, home, given)
    return vault


def home_identity(home: Path, given: UnlockWith | None = None) -> Ed25519PrivateKey:
    """Return the node's key from a home of any age; changes nothing. Raises like `home_vault`."""
    old_key = _old_key(home)
    if old_key is not None:
        return old_key
    vault = open_home_vault(home)
    try:
        unlock_home_vault(vault, home, given)
        return vault.identity()
    finally:
        vault.lock()


def home_public_key(home: Path) -> bytes:
    """Return the 32 bytes of the node's id, locked or not; raises like `VaultFile.read`."""
    old_key = _old_key(home)
    if old_key is not None:
        return old_key.public_key().public_bytes_raw()
    return open_home_vault(home).header.public_key


def needs_vault(home: Path) -> bool:
    """Return whether the home is one from before there were vaults, or on its way from there."""
    return (home / KEY_FILE).exists()


def has_node(home: Path) -> bool:
    """Return whether the home has a node's key, in a vault or as a file."""
    # In this order: meanwhile another process may move the key into a vault.
    return needs_vault(home) or has_vault(home)


def migrate_key_file(home: Path, backup: Path, *, now: float) -> Vault:
    """Move the key of an older home into a new vault; return it unlocked.

    The old file goes to *backup*, a directory of mode 0700, when the vault is whole. Killed at
    any point, the home has its key in one place or in both, and the next call goes on.

    Raises:
        NotFound: There is no key file.
        Conflict: The home has a vault, and of another node.
        LocalError: The key file is damaged or not private.
        StoreError: A file could not be written.
    """
    with _held(home / KEY_FILE):
        return _migrate(home, backup, now=now)


def _migrate(home: Path, backup: Path, *, now: float) -> Vault:
    key = read_key(home)
    if has_vault(home):
        vault = open_home_vault(home)
        if vault.header.public_key != key.public_key().public_bytes_raw():
            raise Conflict(f"{home} has a vault, and in {KEY_FILE} the key of another node")
        unlock_home_vault(vault, home)
    else:
        vault = _vault_of(home, key, now=now)
    with store_errors(f"cannot keep {KEY_FILE} in {backup}"):
        backup.mkdir(mode=0o700, exist_ok=True)
        replace_file(backup / KEY_FILE, (home / KEY_FILE).read_bytes())
        (home / KEY_FILE).unlink()
        sync_directory(home)
    return vault


def _old_key(home: Path) -> Ed25519PrivateKey | None:
    """Return the key of a home without a vault, None where there is one; raises like `read_key`."""
    if has_vault(home):
        return None
    try:
        return read_key(home)
    except NotFound:
        if has_vault(home):  # another process has moved it there meanwhile
            return None
        raise


@contextlib.contextmanager
def _held(path: Path) -> Iterator[None]:
    """Let one process at a time work on a file that is removed at the end; NotFound without it."""
    with store_errors(f"cannot lock {path}"):
        try:
            descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            raise NotFound(f"no key in {path.parent}: run 'alknet init' first") from None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _vault_of(home: Path, key: Ed25519PrivateKey, *, now: float) -> Vault:
    raw = key.private_bytes(Encoding.Raw, PrivateFormat.Raw, NoEncryption())
    return _SlotMaker(home, None, has_key_file=True, now=now).make(
        lambda file, slots: create_vault(
            file,
            LockedBuffer.random(ENTROPY_BYTES),
            slots,
            now=now,
            public_key=key.public_key().public_bytes_raw(),
            secrets=((IDENTITY_SECRET, raw),),
        )
    )


class _SlotMaker:
    """Makes the first slots of a home's vault, and takes the key file back if that fails."""

    def __init__(
        self, home: Path, passphrase: bytearray | None, *, has_key_file: bool, now: float
    ) -> None:
        self._home = home
        self._passphrase = passphrase
        self._has_key_file = has_key_file
        self._now = now
        self._made: Path | None = None

    def make(self, create: Callable[[VaultFile, _MakeSlots], Vault]) -> Vault:
        try:
            return create(VaultFile(self._home), self._slots)
        except NotConfirmed:  # the vault is there, and the key file belongs to it
            raise
        except BaseException:
            if self._made is not None:
                self._made.unlink(missing_ok=True)
            raise

    def _slots(self, vault_id: bytes, root: memoryview) -> list[Slot]:
        slots = []
        if self._has_key_file:
            path = self._home / HOME_KEY_FILE
            if path.exists():  # of an attempt that was killed, or of a vault that was moved away
                path.replace(path.with_name(f"{HOME_KEY_FILE}.old"))
            with create_key_file(path) as key:
                self._made = path
                slots.append(
                    key_file_slot(vault_id, root, key.view, label=HOME_KEY_FILE, now=self._now)
                )
        if self._passphrase is not None:
            slots.append(passphrase_slot(vault_id, root, self._passphrase, now=self._now))
        return slots


def what_unlocks(home: Path) -> UnlockWith:
    """Return the key files that need no asking: in the home, and of systemd."""
    found = [home / HOME_KEY_FILE]
    if directory := os.environ.get("CREDENTIALS_DIRECTORY"):
        found.append(Path(directory) / CREDENTIAL_NAME)
    return UnlockWith(key_files=tuple(path for path in found if path.exists()))


_MakeSlots = Callable[[bytes, memoryview], Sequence[Slot]]

"""A whole home as one archive, and back: what a node is, knows and keeps, without its key file.

In the archive are the vault, the database, the configuration and the keys trusted on first use.
Not in it: the home's ``vault.key`` (else whoever reads a backup would have all secrets), the key
of resets, sockets and locks, and certificates that ``node.toml`` names elsewhere.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import msgspec

from alknet.core.home import CONFIG_FILE, STATE_FILE
from alknet.core.nodeid import NodeId
from alknet.errors import Conflict, LocalError, Malformed
from alknet.stores.home import DATABASE_FILE
from alknet.stores.known import KNOWN_FILE
from alknet.stores.sqlite.snapshot import check_database, snapshot_database
from alknet.stores.succession import SUCCESSION_FILE
from alknet.vault.archive import decode_archive_untrusted, encode_archive
from alknet.vault.building import building_home
from alknet.vault.container import Header
from alknet.vault.durable import store_errors, write_private
from alknet.vault.envelope import Damaged
from alknet.vault.locked import LockedBuffer
from alknet.vault.slots import SlotKind, key_file_slot
from alknet.vault.unlock import HOME_KEY_FILE, create_key_file
from alknet.vault.vault import Vault
from alknet.vault.vaultfile import VAULT_FILE, VaultFile

__all__ = ["MANIFEST", "archive_home", "recovery_ways", "restore_home"]

MANIFEST = "backup.json"
FORMAT = 1
# As they are; the vault and the database need more care.
PLAIN_FILES = (CONFIG_FILE, STATE_FILE, KNOWN_FILE, SUCCESSION_FILE)
KNOWN_NAMES = frozenset({MANIFEST, VAULT_FILE, DATABASE_FILE, *PLAIN_FILES})


class _Manifest(msgspec.Struct, frozen=True):
    format: int
    id: str


def archive_home(home: Path) -> bytes:
    """Return the home's files as a tar archive, all of one moment; the node may run. Blocks.

    Writers of the vault wait meanwhile, so that every key version that the database's secrets
    are under is in the vault that is archived.

    Raises:
        NotFound: The home has no vault.
        LocalError: The vault is damaged.
        StoreError: A file cannot be read.
    """
    file = VaultFile(home)
    file.read()  # says what to do if there is none
    files = {}
    with file.writing():
        header = file.read().header
        with store_errors(f"cannot read {home}"):
            files[VAULT_FILE] = file.path.read_bytes()
            for name in PLAIN_FILES:
                with suppress(FileNotFoundError):  # the store may take one over at any time
                    files[name] = (home / name).read_bytes()
        if (home / DATABASE_FILE).exists():
            files[DATABASE_FILE] = snapshot_database(home / DATABASE_FILE)
    manifest = _Manifest(FORMAT, str(NodeId(header.public_key)))
    files[MANIFEST] = msgspec.json.encode(manifest)
    return encode_archive(files)


def restore_home(
    home: Path,
    archive: bytes,
    find_entropy: Callable[[Header], LockedBuffer],
    *,
    now: float,
    has_key_file: bool = True,
) -> NodeId:
    """Make *home*, which must not exist or be empty, from an archive; whole or not at all. Blocks.

    Args:
        find_entropy: Opens the vault, from its words or what opens one of its slots.
        has_key_file: Give the home a new key file, so that its node starts unasked. The old
            home's key file does not open the restored vault in any case.

    Raises:
        Conflict: There is something in *home*.
        LocalError: The archive is damaged, or of a later version.
        Damaged: What was given does not open the vault.
        StoreError: A file cannot be written.
    """
    _refuse_used(home)
    files = _read(archive)
    with building_home(home) as building:
        with store_errors(f"cannot write {building}"):
            for name in files.keys() - {MANIFEST}:
                write_private(building / name, files[name])
        if DATABASE_FILE in files:
            check_database(building / DATABASE_FILE)
        vault = Vault(VaultFile(building))
        _unlock(vault, find_entropy(vault.header))
        try:
            node_id = NodeId.from_public_key(vault.identity().public_key())
            _replace_key_file(vault, building, has_key_file=has_key_file, now=now)
        finally:
            vault.lock()
        (building / f"{VAULT_FILE}.prev").unlink(missing_ok=True)  # the old key file opens it
    return node_id


def _refuse_used(home: Path) -> None:
    with store_errors(f"cannot use {home}"):
        if home.is_symlink() or (home.exists() and not home.is_dir()):
            raise Conflict(f"{home} is in the way, and is no directory")
        if home.exists() and any(home.iterdir()):
            raise Conflict(f"{home} is not empty: a backup is restored into a new home only")


def _read(archive: bytes) -> dict[str, bytes]:
    try:
        files = decode_archive_untrusted(archive, KNOWN_NAMES)
        manifest = msgspec.json.decode(files.get(MANIFEST, b""), type=_Manifest)
    except (Malformed, msgspec.DecodeError, UnicodeDecodeError) as exc:
        raise LocalError(f"this is no backup of a node: {exc}") from exc
    if manifest.format != FORMAT:
        raise LocalError(f"a backup of format {manifest.format}: this program knows {FORMAT}")
    if VAULT_FILE not in files:
        raise LocalError("this is no backup of a node: it has no vault")
    return files


def _unlock(vault: Vault, entropy: LockedBuffer) -> None:
    try:
        vault.unlock(entropy)
    except Damaged:  # it names a file that will not be there
        raise Damaged(
            "the backup's vault does not open with this: these are the words, or the key, of "
            "another node"
        ) from None


def _replace_key_file(vault: Vault, home: Path, *, has_key_file: bool, now: float) -> None:
    """Give the vault a key file of its own; that of the lost home opens it no more."""
    stale = [
        slot.id
        for slot in vault.header.slots
        if slot.kind is SlotKind.KEY_FILE and slot.label == HOME_KEY_FILE
    ]
    if has_key_file:
        with create_key_file(home / HOME_KEY_FILE) as key:
            vault.add_slot(
                lambda vault_id, entropy: key_file_slot(
                    vault_id, entropy, key.view, label=HOME_KEY_FILE, now=now
                )
            )
    for slot_id in stale:
        if len(vault.header.slots) == 1:
            raise LocalError("without a key file nothing but the words would open this vault")
        vault.remove_slot(slot_id)


def recovery_ways(home: Path) -> list[str]:
    """Name what opens the vault of a backup of *home*: the words, and slots but the key file's."""
    slots = VaultFile(home).read().header.slots
    kinds = [slot.kind.value for slot in slots if slot.label != HOME_KEY_FILE]
    return ["words", *dict.fromkeys(kinds)]

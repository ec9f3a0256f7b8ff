"""What homes kept before they had a store: peers and tokens in ``state.json``.

`migrate` brings them into the store and moves the file into ``backup/``. While the file is where
it was, the migration is not complete: killed at any point, it goes on at the next start.
"""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

import msgspec
import trio

from alknet.core.home import STATE_FILE
from alknet.core.identity import ApiKey, Peer
from alknet.core.storage import ABSENT, Op, Put
from alknet.errors import AlknetError, StoreError, Unavailable
from alknet.stores.audit import Entry
from alknet.stores.config_peers import ConfigPeers
from alknet.stores.identities import StoredIdentities, new_peer_row
from alknet.stores.tables import API_KEYS, PEERS
from alknet.vault.durable import store_errors, sync_directory, write_private

__all__ = ["BACKUP_DIRECTORY", "migrate", "needs_migration"]

log = logging.getLogger(__name__)

BACKUP_DIRECTORY = "backup"
FORMAT = 1
# Rows of one write, beside its row of the audit log.
CHUNK = 5_000
# A migration of 100,000 peers takes some seconds.
LOCK_TIMEOUT_S = 60.0
LOCK_RETRY_S = 0.02


class _Content(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    format: int
    peers: tuple[Peer, ...] = ()
    api_keys: tuple[ApiKey, ...] = ()


class _AnyFormat(msgspec.Struct):
    format: int = FORMAT


def needs_migration(home: Path) -> bool:
    """Whether *home* still has a state file."""
    return (home / STATE_FILE).exists()


async def migrate(home: Path, identities: StoredIdentities) -> None:
    """Take over the state file of *home*, if there is one. Cancelled, it goes on next time.

    What the store has already is kept: a peer of the file whose name or key is taken there is
    left out and named in the log; the backup has it.

    Raises:
        StoreError: The file cannot be read, is damaged, or the backup cannot be written. It stays.
        Unavailable: Another process has been migrating for a minute, or the store is busy.
    """
    with _locked(home / f"{STATE_FILE}.lock") as lock:
        await _wait_for(lock, home)
        if not needs_migration(home):
            return
        data, content = _read(home / STATE_FILE)
        _back_up(home, data)
        count = await _take_over(identities, content)
        with store_errors(f"cannot remove {home / STATE_FILE}"):
            (home / f"{STATE_FILE}.bak").unlink(missing_ok=True)
            (home / STATE_FILE).unlink()
            (home / f"{STATE_FILE}.lock").unlink(missing_ok=True)
            sync_directory(home)
    log.info("store.migrated", extra={"rows": count, "backup": str(home / BACKUP_DIRECTORY)})


async def _take_over(identities: StoredIdentities, content: _Content) -> int:
    ops = [*_new_peers(identities, content.peers), *_new_keys(identities, content.api_keys)]
    for start in range(0, len(ops), CHUNK):
        chunk = ops[start : start + CHUNK]
        entry = Entry("store.migrate", STATE_FILE, {"rows": str(len(chunk))})
        await identities.audit.write(chunk, entry)
    return len(ops)


def _new_peers(identities: StoredIdentities, peers: Sequence[Peer]) -> Iterator[Op]:
    store = identities.store
    for peer in peers:
        row = new_peer_row(peer)
        taken = [f for f in row.fingerprints if store.find(PEERS, "fingerprints", f)]
        found = store.get(PEERS, row.name)
        if found is None and not taken:
            yield Put(PEERS, row.name, row, ABSENT)
        elif found is None or found.value.fingerprints != row.fingerprints:
            log.warning("store.not_migrated", extra={"peer": row.name})


def _new_keys(identities: StoredIdentities, keys: Sequence[ApiKey]) -> Iterator[Op]:
    for key in keys:
        key.validate()
        if identities.store.get(API_KEYS, key.prefix) is None:
            yield Put(API_KEYS, key.prefix, key, ABSENT)


def _read(path: Path) -> tuple[bytes, _Content]:
    with store_errors(f"cannot read {path}"):
        data = path.read_bytes()
    try:
        found = msgspec.json.decode(data, type=_AnyFormat).format
        if found == FORMAT:  # what another holds is not for us to judge
            content = msgspec.json.decode(data, type=_Content)
            ConfigPeers(content.peers)  # no name and no key occurs twice
            for key in content.api_keys:
                key.validate()
            return data, content
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError, AlknetError) as exc:
        raise StoreError(
            f"{path} is damaged ({exc}): it is left as it is; repair it, or put "
            f"{path.name}.bak in its place"
        ) from exc
    raise StoreError(f"{path} has format {found}: written by another alknet")


def _back_up(home: Path, data: bytes) -> None:
    """Keep the file under a free name; what an earlier attempt kept is not kept twice."""
    directory = home / BACKUP_DIRECTORY
    with store_errors(f"cannot write a backup in {directory}"):
        directory.mkdir(mode=0o700, exist_ok=True)
        number = 0
        while True:
            target = directory / (f"{STATE_FILE}.{number}" if number else STATE_FILE)
            if not target.exists():
                write_private(target, data)
                sync_directory(directory)
                return
            if target.read_bytes() == data:
                return
            number += 1


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[int]:
    with store_errors(f"cannot lock {path}"):
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        yield descriptor
    finally:
        os.close(descriptor)  # also unlocks


async def _wait_for(lock: int, home: Path) -> None:
    with trio.move_on_after(LOCK_TIMEOUT_S):
        while True:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                await trio.sleep(LOCK_RETRY_S)
            else:
                return
    raise Unavailable(f"another process is still migrating {home}", retry_after_s=LOCK_TIMEOUT_S)

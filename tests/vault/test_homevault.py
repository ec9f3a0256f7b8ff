"""A home's vault gives its identity back, and homes older than vaults keep theirs."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from alknet.errors import Conflict, LocalError, NotFound, Unavailable
from alknet.vault import homevault
from alknet.vault.derive import identity_key
from alknet.vault.durable import write_private
from alknet.vault.homevault import (
    CREDENTIAL_NAME,
    create_home_vault,
    has_node,
    has_vault,
    home_identity,
    home_public_key,
    migrate_key_file,
    open_home_vault,
    unlock_home_vault,
)
from alknet.vault.keyfile import create_home
from alknet.vault.locked import LockedBuffer
from alknet.vault.recovery import words_from_entropy
from alknet.vault.unlock import UnlockWith
from tests.vault.oldhome import write_key

ENTROPY = bytes(range(32))


@pytest.fixture
def home(tmp_path: Path) -> Path:
    create_home(tmp_path / "home")
    return tmp_path / "home"


def raw(key: Ed25519PrivateKey) -> bytes:
    return key.public_key().public_bytes_raw()


def test_the_identity_is_that_of_the_words(home: Path) -> None:
    vault, key = create_home_vault(home, LockedBuffer.of(ENTROPY), now=1.0)
    assert raw(key) == raw(identity_key(words_from_entropy(memoryview(ENTROPY))))
    assert vault.header.public_key == raw(key)


def test_a_home_unlocks_itself_with_its_key_file(home: Path) -> None:
    _, key = create_home_vault(home, LockedBuffer.of(ENTROPY), now=1.0)
    vault = open_home_vault(home)
    assert not vault.is_unlocked
    unlock_home_vault(vault, home)
    assert raw(vault.identity()) == raw(key)


def test_a_device_has_an_identity_of_its_own(tmp_path: Path) -> None:
    keys = set()
    for device in (0, 1, 7):
        home = tmp_path / str(device)
        create_home(home)
        vault, key = create_home_vault(home, LockedBuffer.of(ENTROPY), now=1.0, device=device)
        assert raw(vault.identity()) == raw(key)
        keys.add(raw(key))
    assert len(keys) == 3


def test_without_its_key_file_it_says_what_it_needs(home: Path) -> None:
    create_home_vault(home, LockedBuffer.of(ENTROPY), now=1.0)
    (home / "vault.key").unlink()
    with pytest.raises(Unavailable, match="key-file"):
        unlock_home_vault(open_home_vault(home), home)


def test_a_systemd_credential_is_as_good(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    create_home_vault(home, LockedBuffer.of(ENTROPY), now=1.0)
    (home / "vault.key").rename(tmp_path / CREDENTIAL_NAME)
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(tmp_path))
    vault = open_home_vault(home)
    unlock_home_vault(vault, home)
    assert vault.is_unlocked


def test_a_second_vault_is_refused_and_the_first_still_opens(home: Path) -> None:
    _, key = create_home_vault(home, LockedBuffer.of(ENTROPY), now=1.0)
    with pytest.raises(Conflict):
        create_home_vault(home, LockedBuffer.random(32), now=2.0)
    vault = open_home_vault(home)
    unlock_home_vault(vault, home)
    assert raw(vault.identity()) == raw(key)


def test_an_older_home_keeps_its_identity(home: Path, tmp_path: Path) -> None:
    key = Ed25519PrivateKey.generate()
    write_key(home, key)
    before = (home / "node.key").read_bytes()
    migrate_key_file(home, home / "backup", now=1.0)
    assert not (home / "node.key").exists()
    assert (home / "backup" / "node.key").read_bytes() == before
    assert (home / "backup").stat().st_mode & 0o777 == 0o700
    vault = open_home_vault(home)
    unlock_home_vault(vault, home)
    assert raw(vault.identity()) == raw(key)


def test_an_attempt_that_was_killed_is_begun_anew(home: Path) -> None:
    write_key(home, Ed25519PrivateKey.generate())
    (home / "vault.key").write_bytes(bytes(32))
    (home / "vault.key").chmod(0o600)
    migrate_key_file(home, home / "backup", now=1.0)
    assert has_vault(home)


def test_a_migration_that_was_killed_before_its_end_goes_on(home: Path) -> None:
    key = Ed25519PrivateKey.generate()
    write_key(home, key)
    old = (home / "node.key").read_bytes()
    migrate_key_file(home, home / "backup", now=1.0)
    write_private(home / "node.key", old)
    vault = migrate_key_file(home, home / "backup", now=2.0)
    assert raw(vault.identity()) == raw(key)
    assert not (home / "node.key").exists()


@pytest.mark.parametrize("ask", [lambda home: raw(home_identity(home)), home_public_key, has_node])
def test_a_key_that_moves_into_a_vault_meanwhile_is_found_there(
    ask: Callable[[Path], object], home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_key(home, Ed25519PrivateKey.generate())
    answer = ask(home)

    def look_before_another_moves_it(path: Path) -> bool:
        monkeypatch.undo()
        found = has_vault(path)
        migrate_key_file(home, home / "backup", now=1.0).lock()
        return found

    monkeypatch.setattr(homevault, "has_vault", look_before_another_moves_it)
    assert ask(home) == answer
    monkeypatch.undo()
    with contextlib.suppress(NotFound):
        migrate_key_file(home, home / "backup", now=1.0).lock()
    assert ask(home) == answer


def test_a_key_of_another_node_beside_a_vault_is_left_alone(home: Path) -> None:
    create_home_vault(home, LockedBuffer.of(ENTROPY), now=1.0)
    write_key(home, Ed25519PrivateKey.generate())
    with pytest.raises(Conflict, match="another node"):
        migrate_key_file(home, home / "backup", now=2.0)
    assert (home / "node.key").exists()


def test_without_a_key_file_the_passphrase_opens_it(home: Path) -> None:
    passphrase = bytearray(b"correct horse")
    _, key = create_home_vault(
        home, LockedBuffer.of(ENTROPY), now=1.0, passphrase=passphrase, has_key_file=False
    )
    assert not (home / "vault.key").exists()
    vault = open_home_vault(home)
    with pytest.raises(Unavailable, match="passphrase"):
        unlock_home_vault(vault, home)
    unlock_home_vault(vault, home, UnlockWith(passphrase=passphrase))
    assert raw(vault.identity()) == raw(key)


def test_a_vault_that_nothing_opens_is_not_made(home: Path) -> None:
    with pytest.raises(LocalError, match="a passphrase or a key file"):
        create_home_vault(home, LockedBuffer.of(ENTROPY), now=1.0, has_key_file=False)
    with pytest.raises(LocalError, match="no identity key number"):
        create_home_vault(home, LockedBuffer.of(ENTROPY), now=1.0, device=-1)
    assert list(home.iterdir()) == []


def test_there_is_nothing_to_migrate_in_an_empty_home(home: Path) -> None:
    with pytest.raises(NotFound):
        migrate_key_file(home, home / "backup", now=1.0)
    assert not has_vault(home)


def test_the_key_file_of_a_vault_that_was_moved_away_still_opens_it(home: Path) -> None:
    create_home_vault(home, LockedBuffer.of(ENTROPY), now=1.0)
    moved = (home / "vault.alk").rename(home.with_name("moved"))
    create_home_vault(home, LockedBuffer.random(32), now=2.0)
    moved.replace(home / "vault.alk")
    vault = open_home_vault(home)
    unlock_home_vault(vault, home, UnlockWith(key_files=(home / "vault.key.old",)))
    assert vault.is_unlocked

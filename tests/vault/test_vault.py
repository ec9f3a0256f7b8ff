"""The vault: put, get, rotate, rewrap, lock, and what must be refused."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import msgspec
import pytest

from alknet.errors import Conflict, LocalError, NotFound, StoreError, Unavailable
from alknet.vault import durable
from alknet.vault.container import encode_header
from alknet.vault.derivation import derive_keys
from alknet.vault.envelope import Damaged
from alknet.vault.locked import LockedBuffer
from alknet.vault.roles import KeyRole, path_of
from alknet.vault.slots import key_file_slot, open_slot
from alknet.vault.vault import MAX_VERSIONS, Vault, create_vault
from alknet.vault.vaultfile import NotConfirmed, RolledBack, VaultFile


class Keeper:
    """A new vault in a directory, and the key file that opens it."""

    def __init__(self, home: Path) -> None:
        self.home = home
        self.key = LockedBuffer.random(32)
        self.vault = create_vault(
            VaultFile(home),
            LockedBuffer.random(32),
            lambda vault_id, entropy: [key_file_slot(vault_id, entropy, self.key.view)],
            now=1.0,
        )

    def open_again(self, *, accepts_older: bool = False) -> Vault:
        vault = Vault(VaultFile(self.home))
        entropy = open_slot(vault.header.vault_id, vault.header.slots[0], self.key.view)
        vault.unlock(entropy, accepts_older=accepts_older)
        return vault


@pytest.fixture
def keeper(tmp_path: Path) -> Keeper:
    return Keeper(tmp_path)


def value(vault: Vault, path: str, version: int | None = None) -> bytes:
    with vault.get(path, now=5.0, version=version) as buffer:
        return bytes(buffer.view)


def test_another_process_reads_what_was_put(keeper: Keeper) -> None:
    assert keeper.vault.put("mail/smtp", b"one", now=2.0) == 1
    assert keeper.vault.put("mail/smtp", b"two", now=3.0, expect=1) == 2
    other = keeper.open_again()
    assert value(other, "mail/smtp") == b"two"
    assert value(other, "mail/smtp", 1) == b"one"


def test_two_open_vaults_see_each_other_s_writes(keeper: Keeper) -> None:
    other = keeper.open_again()
    keeper.vault.put("a", b"1", now=2.0)
    other.put("b", b"2", now=2.0)
    assert [info.path for info in keeper.vault.secrets()] == ["a", "b"]


def test_a_generation_is_told_from_another_of_its_time_size_and_inode(keeper: Keeper) -> None:
    for number in range(MAX_VERSIONS):
        keeper.vault.put("a", b"%d" % (number % 10), now=2.0)
    path, freed = keeper.home / "vault.alk", keeper.home / "freed"
    before, other = path.stat(), keeper.open_again()
    freed.hardlink_to(path)
    other.put("a", b"x", now=2.0)
    # As if two had been written within a tick of the clock, the second where the first one was.
    freed.write_bytes(path.read_bytes())
    os.utime(freed, ns=(before.st_mtime_ns, before.st_mtime_ns))
    freed.replace(path)
    after = path.stat()
    assert (after.st_mtime_ns, after.st_ino) == (before.st_mtime_ns, before.st_ino)
    assert after.st_size == before.st_size
    assert value(keeper.vault, "a") == b"x"
    assert keeper.vault.put("a", b"y", now=2.0) == MAX_VERSIONS + 2
    assert value(keeper.vault, "a", MAX_VERSIONS + 1) == b"x"


def test_an_export_is_of_one_moment(keeper: Keeper) -> None:
    for path in "abc":
        keeper.vault.put(path, path.encode(), now=2.0)
    other = keeper.open_again()
    found = keeper.vault.newest_values()
    first, _ = next(found)
    other.remove("b")
    other.put("c", b"new", now=3.0)
    other.remove("c", version=1)
    assert keeper.vault.header.generation < other.header.generation
    keeper.vault.reread()
    assert [first.path, *(info.path for info, _ in found)] == ["a", "b", "c"]
    assert [info.path for info in keeper.vault.secrets()] == ["a", "c"]


def test_secrets_that_another_process_removes_can_be_listed(keeper: Keeper) -> None:
    for path in "abc":
        keeper.vault.put(path, b"1", now=2.0)
    other = keeper.open_again()
    listed = keeper.vault.secrets()
    next(listed)
    other.remove("b")
    keeper.vault.reread()
    assert [info.path for info in listed] == ["b", "c"]


def test_an_unexpected_version_is_a_conflict(keeper: Keeper) -> None:
    keeper.vault.put("a", b"1", now=2.0)
    with pytest.raises(Conflict, match="version 1, not 0"):
        keeper.vault.put("a", b"2", now=2.0, expect=0)
    assert value(keeper.vault, "a") == b"1"


def test_old_versions_are_forgotten(keeper: Keeper) -> None:
    for number in range(MAX_VERSIONS + 2):
        keeper.vault.put("a", b"%d" % number, now=2.0)
    (info,) = keeper.vault.secrets()
    assert info.versions == tuple(range(3, MAX_VERSIONS + 3))


def test_a_destroyed_version_is_gone(keeper: Keeper) -> None:
    keeper.vault.put("a", b"1", now=2.0)
    keeper.vault.put("a", b"2", now=2.0)
    keeper.vault.remove("a", version=1)
    with pytest.raises(NotFound):
        value(keeper.vault, "a", 1)
    assert value(keeper.vault, "a") == b"2"


def test_an_expired_secret_is_not_handed_out(keeper: Keeper) -> None:
    keeper.vault.put("a", b"1", now=2.0, expires_at=5.0)
    with pytest.raises(NotFound, match="expired"):
        value(keeper.vault, "a")


def test_locked_it_says_how_to_unlock(keeper: Keeper) -> None:
    keeper.vault.put("a", b"1", now=2.0)
    keeper.vault.lock()
    with pytest.raises(Unavailable, match="alknet vault unlock"):
        value(keeper.vault, "a")
    assert not keeper.vault.is_unlocked


def test_another_vault_s_entropy_does_not_open_it(keeper: Keeper) -> None:
    vault = Vault(VaultFile(keeper.home))
    with pytest.raises(Damaged, match="key of another vault"):
        vault.unlock(LockedBuffer.random(32))
    assert not vault.is_unlocked


def test_what_is_sealed_for_others_is_bound_to_its_name(keeper: Keeper) -> None:
    text = keeper.vault.encrypt("smtp", b"hunter2")
    with keeper.vault.decrypt("smtp", text) as buffer:
        assert bytes(buffer.view) == b"hunter2"
    with pytest.raises(Damaged):
        keeper.vault.decrypt("imap", text)


def test_after_rotation_old_values_open_and_new_ones_are_under_the_new_key(keeper: Keeper) -> None:
    keeper.vault.put("a", b"1", now=2.0)
    text = keeper.vault.encrypt("smtp", b"hunter2")
    assert keeper.vault.rotate() == 3
    keeper.vault.put("b", b"2", now=2.0)
    assert [info.kek_version for info in keeper.vault.secrets()] == [2, 3]
    assert keeper.vault.rewrap() == 1
    assert [info.kek_version for info in keeper.vault.secrets()] == [3, 3]
    assert value(keeper.open_again(), "a") == b"1"
    keeper.vault.decrypt("smtp", text).close()


def test_a_retired_key_version_opens_nothing_any_more(keeper: Keeper) -> None:
    text = keeper.vault.encrypt("smtp", b"hunter2")
    keeper.vault.rotate()
    moved = keeper.vault.rewrap_text("smtp", text)
    keeper.vault.rewrap(retire=True)
    with pytest.raises(NotFound, match="key version 2"):
        keeper.vault.decrypt("smtp", text)
    keeper.vault.decrypt("smtp", moved).close()


def test_an_old_copy_in_the_file_s_place_is_noticed(keeper: Keeper) -> None:
    keeper.vault.put("a", b"1", now=2.0)
    keeper.vault.put("a", b"2", now=2.0)
    shutil.copy(keeper.home / "vault.alk.prev", keeper.home / "vault.alk")
    with pytest.raises(RolledBack, match="generation 2, but generation 3"):
        keeper.open_again()
    assert value(keeper.open_again(accepts_older=True), "a") == b"1"


def test_a_clock_that_is_set_back_loses_no_version(keeper: Keeper) -> None:
    keeper.vault.put("a", b"1", now=2_000_000_000.0, expires_at=2_000_000_100.0)
    keeper.vault.put("a", b"2", now=3.0)
    again = keeper.open_again()
    assert value(again, "a") == b"2"
    assert value(again, "a", 1) == b"1"
    assert again.verify() == []


@pytest.mark.parametrize("has_note", [True, False], ids=["noted", "not noted"])
def test_an_open_vault_refuses_an_old_copy_as_long_as_it_is_there(
    keeper: Keeper, has_note: bool
) -> None:
    keeper.vault.put("a", b"1", now=2.0)
    keeper.vault.put("a", b"2", now=3.0)
    newest = (keeper.home / "vault.alk").read_bytes()
    shutil.copy(keeper.home / "vault.alk.prev", keeper.home / "vault.alk")
    if not has_note:
        (keeper.home / "vault.seen").unlink()
    for _ in range(2):
        with pytest.raises(RolledBack, match="generation 2, but generation 3"):
            value(keeper.vault, "a")
        with pytest.raises(RolledBack):
            keeper.vault.put("b", b"3", now=4.0)
    (keeper.home / "vault.alk").write_bytes(newest)
    assert value(keeper.vault, "a") == b"2"
    shutil.copy(keeper.home / "vault.alk.prev", keeper.home / "vault.alk")
    keeper.open_again(accepts_older=True)  # by another process
    assert value(keeper.vault, "a") == b"1"


def test_a_truncated_file_names_the_generation_before(keeper: Keeper) -> None:
    keeper.vault.put("a", b"1", now=2.0)
    path = keeper.home / "vault.alk"
    path.write_bytes(path.read_bytes()[:20])
    with pytest.raises(LocalError, match=r"cut short.*vault\.alk\.prev"):
        Vault(VaultFile(keeper.home))


@pytest.mark.parametrize("position", [30, 200, -1])
def test_every_altered_byte_is_noticed(keeper: Keeper, position: int) -> None:
    path = keeper.home / "vault.alk"
    data = bytearray(path.read_bytes())
    data[position] ^= 1
    path.write_bytes(data)
    with pytest.raises(LocalError):
        keeper.open_again()


def test_a_vault_is_never_replaced(keeper: Keeper) -> None:
    with pytest.raises(Conflict, match="never replaced"):
        Keeper(keeper.home)


def test_its_files_are_private(keeper: Keeper) -> None:
    keeper.vault.put("a", b"1", now=2.0)
    modes = {path.name: path.stat().st_mode & 0o777 for path in keeper.home.iterdir()}
    assert set(modes) == {"vault.alk", "vault.alk.prev", "vault.lock", "vault.seen"}
    assert set(modes.values()) == {0o600}


def test_the_last_slot_stays(keeper: Keeper) -> None:
    (slot,) = keeper.vault.header.slots
    with pytest.raises(Conflict, match="last slot"):
        keeper.vault.remove_slot(slot.id)


def test_no_path_can_be_a_traversal_or_a_flag(keeper: Keeper) -> None:
    for path in ("", "/a", "a/", "../a", "-a", "A", "a//b", "a" * 80):
        with pytest.raises(LocalError):
            keeper.vault.put(path, b"", now=2.0)


def test_an_empty_value_is_a_value(keeper: Keeper) -> None:
    keeper.vault.put("a", b"", now=2.0)
    assert value(keeper.vault, "a") == b""


def test_a_write_that_is_in_place_does_not_claim_that_nothing_was_changed(
    keeper: Keeper, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(_: Path) -> None:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(durable, "sync_directory", fail)
    with pytest.raises(NotConfirmed, match="was written, but the disk did not confirm it"):
        keeper.vault.put("a", b"1", now=2.0)
    monkeypatch.undo()
    assert value(keeper.vault, "a") == b"1"


def test_a_note_that_cannot_be_written_is_no_failure_of_the_write(
    keeper: Keeper, caplog: pytest.LogCaptureFixture
) -> None:
    (keeper.home / "vault.seen").unlink()
    (keeper.home / "vault.seen").mkdir()
    keeper.vault.put("a", b"1", now=2.0)
    assert "vault.generation_not_noted" in caplog.text
    assert value(keeper.open_again(), "a") == b"1"


def test_a_write_that_the_disk_refuses_changes_nothing(
    keeper: Keeper, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(durable, "write_private", fail)
    with pytest.raises(StoreError, match="nothing was changed: No space left"):
        keeper.vault.put("a", b"1", now=2.0)
    monkeypatch.undo()
    with pytest.raises(NotFound):
        value(keeper.vault, "a")


def test_the_node_s_own_key_is_no_secret_to_be_shown(keeper: Keeper) -> None:
    with pytest.raises(LocalError, match="neither shown nor changed"):
        value(keeper.vault, "node/identity")
    with pytest.raises(LocalError, match="neither shown nor changed"):
        keeper.vault.put("node/identity", b"1", now=2.0)


def test_a_header_that_asks_for_many_keys_is_refused(keeper: Keeper) -> None:
    path = keeper.home / "vault.alk"
    data = path.read_bytes()
    header = msgspec.structs.replace(keeper.vault.header, kek_version=10**6)
    end = data.index(b"}", data.rindex(b'"public_key"')) + 1
    path.write_bytes(encode_header(header) + data[end:])
    with pytest.raises(LocalError, match="key versions make no sense"):
        Vault(VaultFile(keeper.home))


def test_a_module_in_the_current_directory_is_not_given_the_entropy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "mnemonic.py").write_text("raise SystemExit(1)")
    monkeypatch.chdir(tmp_path)
    for key in derive_keys(memoryview(bytes(32)), [path_of(KeyRole.IDENTITY)]):
        key.close()

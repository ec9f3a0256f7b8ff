"""Each kind of slot opens with its key and with nothing else."""

from __future__ import annotations

from pathlib import Path

import pyrage
import pytest

from alknet.errors import LocalError, NotFound, StoreError, Unavailable
from alknet.vault.container import Header
from alknet.vault.envelope import FIRST_KEK, Damaged
from alknet.vault.locked import LockedBuffer
from alknet.vault.slots import (
    PassphraseCost,
    Slot,
    age_slot,
    key_file_slot,
    passphrase_slot,
)
from alknet.vault.unlock import UnlockWith, create_key_file, find_entropy, read_key_file

ID = bytes(16)
ENTROPY = bytes(range(32))
# The floor of what a vault may ask for: tests guess often.
CHEAP = PassphraseCost(memory_kib=64 * 1024, iterations=3, lanes=1)


def header(*slots: Slot) -> Header:
    return Header(
        vault_id=ID,
        generation=1,
        kek_version=FIRST_KEK,
        min_kek_version=FIRST_KEK,
        created_at=0.0,
        slots=slots,
    )


def opened(found: LockedBuffer) -> bytes:
    with found:
        return bytes(found.view)


def test_a_passphrase_opens_its_slot_and_another_does_not() -> None:
    slot = passphrase_slot(ID, memoryview(ENTROPY), bytearray(b"correct horse"), cost=CHEAP)
    right = UnlockWith(passphrase=bytearray(b"correct horse"))
    assert opened(find_entropy(header(slot), right)) == ENTROPY
    with pytest.raises(Damaged, match="wrong passphrase"):
        find_entropy(header(slot), UnlockWith(passphrase=bytearray(b"correct hose")))


def test_a_short_passphrase_is_refused() -> None:
    with pytest.raises(LocalError, match="at least 8"):
        passphrase_slot(ID, memoryview(ENTROPY), bytearray(b"short"), cost=CHEAP)


@pytest.mark.parametrize(
    "cost",
    [
        PassphraseCost(memory_kib=1024),
        PassphraseCost(iterations=1),
        PassphraseCost(memory_kib=2**31),
        PassphraseCost(lanes=0),
    ],
)
def test_a_file_cannot_ask_for_a_cheap_or_ruinous_passphrase(cost: PassphraseCost) -> None:
    with pytest.raises(LocalError):
        passphrase_slot(ID, memoryview(ENTROPY), bytearray(b"correct horse"), cost=cost)


def test_a_key_file_opens_its_slot(tmp_path: Path) -> None:
    path = tmp_path / "vault.key"
    with create_key_file(path) as key:
        slot = key_file_slot(ID, memoryview(ENTROPY), key.view)
    assert path.stat().st_mode & 0o777 == 0o600
    assert opened(find_entropy(header(slot), UnlockWith(key_files=(path,)))) == ENTROPY


def test_the_second_of_two_key_files_may_be_the_right_one(tmp_path: Path) -> None:
    wrong, right = tmp_path / "a", tmp_path / "b"
    create_key_file(wrong).close()
    with create_key_file(right) as key:
        slot = key_file_slot(ID, memoryview(ENTROPY), key.view)
    with pytest.raises(Damaged, match="none of the keys"):
        find_entropy(header(slot), UnlockWith(key_files=(wrong,)))
    assert opened(find_entropy(header(slot), UnlockWith(key_files=(wrong, right)))) == ENTROPY


def test_an_age_identity_opens_its_slot() -> None:
    identity, other = pyrage.x25519.Identity.generate(), pyrage.x25519.Identity.generate()
    slot = age_slot(ID, memoryview(ENTROPY), str(identity.to_public()))
    assert (
        opened(find_entropy(header(slot), UnlockWith(age_identities=(str(identity),)))) == ENTROPY
    )
    with pytest.raises(Damaged):
        find_entropy(header(slot), UnlockWith(age_identities=(str(other),)))
    with pytest.raises(LocalError, match="not an age identity"):
        find_entropy(header(slot), UnlockWith(age_identities=("AGE-SECRET-KEY-1X",)))


def test_a_slot_of_another_vault_does_not_open() -> None:
    with LockedBuffer.random(32) as key:
        slot = key_file_slot(bytes([1]) * 16, memoryview(ENTROPY), key.view)
    with pytest.raises(Unavailable, match="needs one of: key-file"):
        find_entropy(header(slot), UnlockWith())


def test_without_a_key_the_kinds_are_named() -> None:
    slot = passphrase_slot(ID, memoryview(ENTROPY), bytearray(b"correct horse"), cost=CHEAP)
    with pytest.raises(Unavailable, match="needs one of: passphrase"):
        find_entropy(header(slot), UnlockWith(age_identities=("x",)))


def test_a_key_file_is_never_overwritten_and_must_be_private(tmp_path: Path) -> None:
    path = tmp_path / "vault.key"
    create_key_file(path).close()
    with pytest.raises(StoreError, match="exists"):
        create_key_file(path)
    path.chmod(0o644)
    with pytest.raises(LocalError, match="others may read"):
        read_key_file(path)
    with pytest.raises(NotFound):
        read_key_file(tmp_path / "missing")


def test_a_file_of_another_length_is_no_key_file(tmp_path: Path) -> None:
    path = tmp_path / "vault.key"
    path.write_bytes(bytes(31))
    path.chmod(0o600)
    with pytest.raises(LocalError, match="31 bytes, not 32"):
        read_key_file(path)

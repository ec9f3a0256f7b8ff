"""A restore or a new key that is killed at any step: as before, or as after."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from alknet.core.nodeid import NodeId
from alknet.stores.backup import archive_home, restore_home
from alknet.stores.succession import read_succession, rotate_identity
from alknet.vault.homevault import home_public_key
from alknet.vault.locked import LockedBuffer
from alknet.vault.vault import Vault
from tests.cli.homes import ENTROPY, make_vault_home, open_vault
from tests.vault.test_killed import killed

pytestmark = pytest.mark.slow

# More than either takes: then it was not killed, and we are through.
MAX_STEPS = 80


@pytest.fixture
def home(tmp_path: Path) -> Path:
    make_vault_home(tmp_path / "h")
    vault = open_vault(tmp_path / "h")
    vault.put("a", b"secret", now=1.0)
    vault.lock()
    return tmp_path / "h"


def check(home: Path, key: bytes) -> None:
    vault = open_vault(home)
    assert vault.identity().public_key().public_bytes_raw() == key == home_public_key(home)
    assert vault.verify() == []
    vault.lock()


def test_a_restore_is_whole_or_not_there_and_the_next_one_clears_up(
    home: Path, tmp_path: Path
) -> None:
    archive, key = archive_home(home), home_public_key(home)
    place = tmp_path / "place"
    place.mkdir()
    (place / ".new.0a0b0c0d" / "work").mkdir(parents=True)  # of such a name, and no home
    left_over = 0
    for step in range(1, MAX_STEPS, 3):
        was_killed = killed(step, place / "new", lambda at: at, restored(archive))
        left_over = max(left_over, len(list(place.glob(".new.*"))) - 1)
        if not (place / "new").exists():
            restored(archive)(place / "new")
        check(place / "new", key)
        assert {path.name for path in place.iterdir()} == {"new", ".new.0a0b0c0d"}
        shutil.rmtree(place / "new")
        if not was_killed:
            break
    assert 20 < step < MAX_STEPS - 3
    assert left_over == 1


def test_a_new_key_is_the_nodes_with_its_history_or_is_not(home: Path, tmp_path: Path) -> None:
    old = home_public_key(home)
    seen = set()
    for step in range(1, MAX_STEPS):
        copy = tmp_path / str(step)
        shutil.copytree(home, copy)
        was_killed = killed(step, copy, open_vault, rotated(copy))
        key = home_public_key(copy)
        check(copy, key)
        chain = read_succession(copy, key)
        assert [one.new for one in chain] == ([] if key == old else [key])
        seen.add(key)
        # And it can be done, or done again.
        vault = open_vault(copy)
        assert rotate_identity(vault, copy, now=3.0).old == key
        vault.lock()
        shutil.rmtree(copy)
        if not was_killed:
            break
    assert 5 < step < MAX_STEPS - 1
    assert len(seen) == 2


def restored(archive: bytes) -> Callable[[Path], NodeId]:
    return lambda at: restore_home(at, archive, lambda _: LockedBuffer.of(ENTROPY), now=3.0)


def rotated(home: Path) -> Callable[[Vault], object]:
    return lambda vault: rotate_identity(vault, home, now=2.0)

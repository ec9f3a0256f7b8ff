"""The key of stateless resets on disk: private, whole, made once."""

from __future__ import annotations

from pathlib import Path

import pytest

from alknet.errors import LocalError, StoreError
from alknet.vault.keyfile import create_home
from alknet.vault.resetkey import RESET_KEY_BYTES, RESET_KEY_FILE, load_reset_key


@pytest.fixture
def home(tmp_path: Path) -> Path:
    path = tmp_path / "home"
    create_home(path)
    return path


def test_it_is_made_the_first_time_and_then_read(home: Path) -> None:
    key = load_reset_key(home)
    path = home / RESET_KEY_FILE
    assert len(key) == RESET_KEY_BYTES
    assert load_reset_key(home) == key == path.read_bytes()
    assert path.stat().st_mode & 0o777 == 0o600
    assert [entry.name for entry in home.iterdir()] == [RESET_KEY_FILE]


def test_each_home_has_its_own(home: Path, tmp_path: Path) -> None:
    create_home(tmp_path / "another")
    assert load_reset_key(home) != load_reset_key(tmp_path / "another")


@pytest.mark.parametrize("content", [b"", b"short", bytes(33)], ids=len)
def test_a_damaged_one_is_named_and_left_alone(home: Path, content: bytes) -> None:
    path = home / RESET_KEY_FILE
    path.write_bytes(content)
    path.chmod(0o600)
    with pytest.raises(LocalError, match="is damaged: remove it"):
        load_reset_key(home)
    assert path.read_bytes() == content


def test_one_that_others_can_read_is_refused(home: Path) -> None:
    load_reset_key(home)
    (home / RESET_KEY_FILE).chmod(0o644)
    with pytest.raises(LocalError, match="others may read"):
        load_reset_key(home)


def test_a_home_that_cannot_be_read_is_said(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="cannot write"):
        load_reset_key(tmp_path / "nowhere")

"""The home of a node, and the key that an old one holds: private, or refused."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from alknet.errors import LocalError, NotFound, StoreError
from alknet.vault.keyfile import KEY_FILE, create_home, read_key
from tests.vault.oldhome import write_key


@pytest.fixture
def home(tmp_path: Path) -> Path:
    path = tmp_path / "deep" / "home"
    create_home(path)
    return path


def public(key: Ed25519PrivateKey) -> bytes:
    return key.public_key().public_bytes_raw()


def test_a_key_is_read_back_from_a_private_file_in_a_private_home(home: Path) -> None:
    key = Ed25519PrivateKey.generate()
    write_key(home, key)
    assert public(read_key(home)) == public(key)
    assert home.stat().st_mode & 0o777 == 0o700


def test_a_lax_umask_changes_nothing(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        create_home(tmp_path / "home")
    finally:
        os.umask(before)
    assert (tmp_path / "home").stat().st_mode & 0o777 == 0o700


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o620])
def test_a_key_that_others_may_read_is_refused_with_the_cure(home: Path, mode: int) -> None:
    path = write_key(home, Ed25519PrivateKey.generate())
    path.chmod(mode)
    with pytest.raises(LocalError, match=f"run 'chmod 600 {path}'"):
        read_key(home)


def test_a_home_without_a_key_says_what_to_do(home: Path) -> None:
    with pytest.raises(NotFound, match="alknet init"):
        read_key(home)


def test_a_file_that_is_no_key_is_refused(home: Path) -> None:
    path = home / KEY_FILE
    path.touch(mode=0o600)
    path.write_text("not a key")
    with pytest.raises(LocalError, match="not an unencrypted PKCS#8"):
        read_key(home)
    other = X25519PrivateKey.generate()
    path.write_bytes(other.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    with pytest.raises(LocalError, match="another kind of key"):
        read_key(home)


def test_a_key_that_is_a_directory_is_refused(home: Path) -> None:
    (home / KEY_FILE).mkdir()
    with pytest.raises(StoreError, match="cannot read"):
        read_key(home)


def test_an_empty_home_of_ours_is_made_private(tmp_path: Path) -> None:
    path = tmp_path / "home"
    path.mkdir()
    path.chmod(0o755)
    create_home(path)
    assert path.stat().st_mode & 0o777 == 0o700


def test_a_home_in_use_that_others_may_enter_is_refused_with_the_cure(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    tmp_path.chmod(0o750)
    with pytest.raises(LocalError, match=f"run 'chmod 700 {tmp_path}'"):
        create_home(tmp_path)


def test_a_private_home_in_use_is_taken(home: Path) -> None:
    write_key(home, Ed25519PrivateKey.generate())
    create_home(home)


def test_a_home_that_is_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "home").touch()
    with pytest.raises(LocalError, match="not a directory"):
        create_home(tmp_path / "home")
    with pytest.raises(StoreError, match="cannot create"):
        create_home(tmp_path / "home" / "below")


def test_what_belongs_to_another_user_is_refused(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_key(home, Ed25519PrivateKey.generate())
    stranger = os.stat_result((0o100600, 0, 0, 1, 12345, 0, 0, 0, 0, 0))
    monkeypatch.setattr(os, "geteuid", lambda: 54321)
    with monkeypatch.context() as patch:
        patch.setattr(os, "fstat", lambda descriptor: stranger)
        with pytest.raises(LocalError, match=f"{path} belongs to another user"):
            read_key(home)
    with pytest.raises(LocalError, match="another user"):
        create_home(home)


def test_a_key_that_is_a_device_is_refused(home: Path) -> None:
    (home / KEY_FILE).symlink_to("/dev/null")
    with pytest.raises(LocalError, match="not a regular file"):
        read_key(home)

"""Slots of the system's keyring and of key files: what else goes with them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import keyring
import pytest
from keyring.backend import KeyringBackend
from keyring.backends import fail
from keyring.errors import PasswordDeleteError

from alknet.vault.unlock import KEYRING_SERVICE
from tests.cli.kit import Cli


class InMemory(KeyringBackend):
    """A key store of this process."""

    priority = 1.0

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.kept: dict[tuple[str, str], str] = {}

    def get_password(self, service: str, username: str) -> str | None:
        return self.kept.get((service, username))

    def set_password(self, service: str, username: str, password: str) -> None:
        self.kept[service, username] = password

    def delete_password(self, service: str, username: str) -> None:
        if self.kept.pop((service, username), None) is None:
            raise PasswordDeleteError(username)


@pytest.fixture
def desktop() -> Iterator[InMemory]:
    """A system that has a keyring."""
    before, there = keyring.get_keyring(), InMemory()
    keyring.set_keyring(there)
    yield there
    keyring.set_keyring(before)


@pytest.fixture
def kept(made: Cli) -> Cli:
    made.ok("vault", "put", "a", stdin="secret")
    return made


def slot_of(cli: Cli, kind: str) -> str:
    slots = cli.ok("vault", "slots", "list", "--json").json["slots"]
    (found,) = [slot["id"] for slot in slots if slot["kind"] == kind]
    return str(found)


def test_the_keyring_opens_it_and_loses_its_key_with_the_slot(kept: Cli, desktop: InMemory) -> None:
    kept.ok("vault", "slots", "add", "keyring")
    vault_id = kept.ok("vault", "status", "--json").json["vault_id"]
    assert desktop.kept.keys() == {(KEYRING_SERVICE, vault_id)}
    assert kept.ok("vault", "get", "a", "--keyring").out == "secret"
    again = kept.fails(1, "vault", "slots", "add", "keyring").err
    assert "the keyring has a key of this vault already" in again
    assert kept.ok("vault", "get", "a", "--keyring").out == "secret"
    kept.ok("vault", "slots", "remove", slot_of(kept, "keyring"))
    assert desktop.kept == {}
    assert "needs one of: key-file" in kept.fails(4, "vault", "get", "a", "--keyring").err


@pytest.mark.parametrize("text", [None, "", "not hex", "00"])
def test_a_keyring_with_something_else_opens_nothing(
    kept: Cli, desktop: InMemory, text: str | None
) -> None:
    kept.ok("vault", "slots", "add", "keyring")
    ((service, username),) = desktop.kept
    if text is None:
        desktop.kept.clear()
    else:
        desktop.kept[service, username] = text
    result = kept.fails(1 if text == "00" else 3, "vault", "get", "a", "--keyring")
    assert "bug" not in result.err


def test_without_a_keyring_that_keeps_secrets_there_is_no_slot(kept: Cli) -> None:
    before = keyring.get_keyring()
    keyring.set_keyring(fail.Keyring())  # type: ignore[no-untyped-call]
    try:
        error = kept.fails(4, "vault", "slots", "add", "keyring", "--json").error
    finally:
        keyring.set_keyring(before)
    assert "no keyring that keeps secrets" in error["message"]
    assert len(kept.ok("vault", "slots", "list", "--json").json["slots"]) == 1


def test_the_homes_key_file_goes_with_its_slot_and_no_other(kept: Cli, tmp_path: Path) -> None:
    home_slot = slot_of(kept, "key-file")
    added = kept.ok("vault", "slots", "add", "key-file", tmp_path / "stick", "--json").json
    kept.ok("vault", "slots", "add", "key-file", tmp_path / "other")
    kept.ok("vault", "slots", "remove", added["id"])
    assert (kept.home / "vault.key").exists()
    kept.ok("vault", "slots", "remove", home_slot)
    assert not (kept.home / "vault.key").exists()
    assert kept.ok("vault", "get", "a", "--unlock-file", tmp_path / "other").out == "secret"

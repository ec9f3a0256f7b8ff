"""Tokens: what must not come back, and what must not be shown."""

from __future__ import annotations

import pytest

from alknet.core.config import NodeConfig
from alknet.core.identity import ApiKey
from alknet.stores.home import open_home_identities
from alknet.stores.identities import StoredIdentities
from tests.cli.kit import Cli


def test_a_token_revoked_while_it_is_rotated_has_no_successor(
    made: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    prefix = made.ok("token", "create", "ci", "--json").json["prefix"]
    put = StoredIdentities.put_api_key

    async def too_late(store: StoredIdentities, key: ApiKey) -> None:
        # Another process revokes the old one between our look and our write.
        async with open_home_identities(made.home, NodeConfig()) as other:
            await other.remove_api_key(prefix)
        await put(store, key)

    monkeypatch.setattr(StoredIdentities, "put_api_key", too_late)
    result = made.fails(1, "token", "rotate", "ci", "--json")
    assert result.error["code"] == "NOT_FOUND"
    assert result.out == ""
    assert made.ok("token", "list", "--json").json == {"tokens": []}


def test_a_file_that_is_no_text_holds_no_token(made: Cli) -> None:
    path = made.home / "binary"
    path.write_bytes(b"\xff\xfe\x00")
    error = made.fails(2, "whoami", "--token-file", path, "--json").error
    assert error["code"] == "USAGE"
    assert "there is no token in it" in error["message"]


@pytest.mark.parametrize("text", ["alk with blanks", "\udcff", "line\nbreak"])
def test_what_is_no_token_in_the_environment_is_refused_here(
    made: Cli, monkeypatch: pytest.MonkeyPatch, text: str
) -> None:
    monkeypatch.setenv("ALKNET_TOKEN", text)
    error = made.fails(2, "whoami", "--json").error
    assert error["message"] == "Invalid value for ALKNET_TOKEN: there is no token in it"

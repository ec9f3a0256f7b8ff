"""The tables of a node: what 100,000 peers have in common takes memory once."""

from __future__ import annotations

import msgspec
import pytest

from alknet.core.storage import Table
from alknet.errors import LocalError
from alknet.stores.sqlite.reading import decoded
from alknet.stores.tables import PEERS, PeerRow


def test_peers_share_their_scopes_and_a_row_its_key_with_its_name() -> None:
    names = [f"peer-{number}" for number in range(2)]
    rows = []
    for number, name in enumerate(names):
        text = msgspec.json.encode(PeerRow(name=name, scopes=("fs:read", "echo"))).decode()
        row = decoded(PEERS, name, number, text)
        assert row is not None
        rows.append(row)
    assert [row.key for row in rows] == names
    assert all(row.key is row.value.name for row in rows)
    assert rows[0].value.scopes == ("fs:read", "echo")
    assert rows[0].value.scopes is rows[1].value.scopes


def test_a_row_under_another_key_than_its_field_keeps_that_key() -> None:
    row = decoded(PEERS, "bob", 1, '{"name":"alice"}')
    assert row is not None
    assert (row.key, row.value.name) == ("bob", "alice")


def test_a_peer_of_an_older_alknet_may_not_offer() -> None:
    old = '{"name":"w1","fingerprints":["ed25519:ab"],"scopes":["echo"],"incarnation":"0a"}'
    row = decoded(PEERS, "w1", 1, old)
    assert row is not None
    assert row.value.scopes == ("echo",)
    assert not row.value.may_offer


def test_the_field_of_the_key_must_exist() -> None:
    with pytest.raises(LocalError, match="no field 'nick'"):
        Table("peer", PeerRow, key_field="nick")

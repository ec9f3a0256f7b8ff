"""Commands that change one peer at the same time: no change is lost."""

from __future__ import annotations

import msgspec
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from alknet.core.config import NodeConfig
from alknet.core.identity import Peer
from alknet.core.nodeid import NodeId
from alknet.stores.home import open_home_identities
from alknet.stores.identities import StoredIdentities
from tests.cli.kit import Cli


def new_node() -> NodeId:
    return NodeId.from_public_key(Ed25519PrivateKey.generate().public_key())


def test_a_peer_disabled_while_another_command_changes_it_stays_disabled(
    made: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    made.ok("peer", "add", "bob", new_node())
    update = StoredIdentities.update_peer
    is_first = True

    async def too_late(store: StoredIdentities, peer: Peer, *, was: Peer | None = None) -> None:
        nonlocal is_first
        if is_first:  # another process disables it between our look and our write
            is_first = False
            async with open_home_identities(made.home, NodeConfig()) as other:
                found = other.peer("bob")
                assert found is not None
                await update(other, msgspec.structs.replace(found, enabled=False))
        await update(store, peer, was=was)

    monkeypatch.setattr(StoredIdentities, "update_peer", too_late)
    made.ok("peer", "set", "bob", "--scope", "echo")
    shown = made.ok("peer", "show", "bob", "--json").json
    assert (shown["enabled"], shown["scopes"]) == (False, ["echo"])


def test_a_conflict_that_stays_is_told_once(made: Cli) -> None:
    taken = new_node()
    made.ok("peer", "add", "alice", taken)
    made.ok("peer", "add", "bob", new_node())
    error = made.fails(1, "peer", "set", "bob", "--key", taken, "--json").error
    assert error["code"] == "CONFLICT"
    assert "belongs to peer 'alice'" in error["message"]


def test_a_peer_is_found_as_it_is_written_in_calls(made: Cli) -> None:
    made.ok("peer", "add", "bob", new_node())
    for command in (("set", "@bob", "--scope", "x"), ("rename", "@bob", "rob"), ("remove", "@rob")):
        made.ok("peer", *command)
    assert made.ok("peer", "list", "--json").json == {"peers": []}

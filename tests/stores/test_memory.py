"""Ownership in memory, and stores that begin with rows."""

from __future__ import annotations

import pytest

from alknet.core.identity import ApiKey, NodeId, Peer
from alknet.errors import Conflict, NotFound
from alknet.stores.memory import MemoryIdentityStore, MemoryOwnership


def test_who_spawned_owns_until_the_resource_is_torn_down() -> None:
    owned = MemoryOwnership()
    owned.record("peer:a", "tty", "2")
    owned.record("peer:a", "tty", "1")
    owned.record("peer:a", "pod", "1")
    owned.record("peer:a", "tty", "1")  # saying it again is no change
    assert owned.owns("peer:a", "tty", "1")
    assert not owned.owns("peer:b", "tty", "1")
    assert not owned.owns("peer:a", "tty", "3")
    assert owned.owned("peer:a", "tty") == ["2", "1"]
    owned.release("tty", "1")
    assert not owned.owns("peer:a", "tty", "1")
    assert owned.owned("peer:a", "tty") == ["2"]


def test_a_resource_has_one_owner() -> None:
    owned = MemoryOwnership()
    owned.record("peer:a", "tty", "1")
    with pytest.raises(Conflict, match="tty '1' has another owner"):
        owned.record("peer:b", "tty", "1")
    assert owned.owns("peer:a", "tty", "1")


def test_releasing_what_nobody_owns_is_an_error() -> None:
    with pytest.raises(NotFound):
        MemoryOwnership().release("tty", "1")


def test_a_new_peer_of_an_old_name_inherits_nothing() -> None:
    owned = MemoryOwnership()
    owned.record("peer:a", "tty", "1")
    owned.record("peer:b", "tty", "2")
    owned.release_all("peer:a")
    assert owned.owned("peer:a", "tty") == []
    assert owned.owns("peer:b", "tty", "2")
    owned.record("peer:c", "tty", "1")


def test_a_store_can_begin_with_rows() -> None:
    key = NodeId(bytes([7]) * 32)
    store = MemoryIdentityStore([Peer(name="a", fingerprints=(str(key),))])
    assert store.identify_key(key) is not None
    with pytest.raises(Conflict, match="share key"):
        MemoryIdentityStore([Peer(name=n, fingerprints=(str(key),)) for n in "ab"])


def test_an_api_key_that_occurs_twice_is_refused() -> None:
    key = ApiKey(prefix="y" * 8, name="x", hash=bytes(32))
    with pytest.raises(Conflict, match="api key yyyyyyyy occurs twice"):
        MemoryIdentityStore(api_keys=[key, key])

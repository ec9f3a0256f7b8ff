"""Stores in memory that begin with rows."""

from __future__ import annotations

import pytest

from alknet.core.identity import ApiKey, NodeId, Peer
from alknet.errors import Conflict
from alknet.stores.memory import MemoryIdentityStore


def test_a_store_can_begin_with_rows() -> None:
    key = NodeId(bytes([7]) * 32)
    store = MemoryIdentityStore([Peer(name="a", fingerprints=(str(key),))])
    assert store.identify_key(key) is not None
    with pytest.raises(Conflict, match="share a key"):
        MemoryIdentityStore([Peer(name=n, fingerprints=(str(key),)) for n in "ab"])


def test_an_api_key_that_occurs_twice_is_refused() -> None:
    key = ApiKey(prefix="y" * 8, name="x", hash=bytes(32))
    with pytest.raises(Conflict, match="api key 'yyyyyyyy' occurs twice"):
        MemoryIdentityStore(api_keys=[key, key])

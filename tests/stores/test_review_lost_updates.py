"""Two who change one peer at once: the second learns that it saw an old record."""

from __future__ import annotations

import msgspec
import pytest

from alknet.core.identity import NodeId, Peer
from alknet.errors import Conflict
from alknet.stores.memory import MemoryIdentityStore

BOB = Peer(name="bob", fingerprints=(NodeId(bytes([7]) * 32).fingerprint,), scopes=("echo",))


async def test_an_update_of_a_record_that_has_changed_is_refused() -> None:
    store = MemoryIdentityStore()
    await store.put_peer(BOB)
    disabled = msgspec.structs.replace(BOB, enabled=False)
    await store.update_peer(disabled, was=BOB)
    with pytest.raises(Conflict, match="has changed meanwhile"):
        await store.update_peer(msgspec.structs.replace(BOB, scopes=("x",)), was=BOB)
    assert store.peer("bob") == disabled

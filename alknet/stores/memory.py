"""Identity in memory alone: for tests, and for nodes that are part of another program."""

from __future__ import annotations

from collections.abc import Sequence

from alknet.core.clock import WallClock, wall_clock
from alknet.core.identity import ApiKey, Peer
from alknet.core.storage import ABSENT, Op, Put, RowConflict
from alknet.errors import Conflict
from alknet.stores.identities import StoredIdentities, new_peer_row
from alknet.stores.memory_store import MemoryDatabase, MemoryStore
from alknet.stores.steps import by_name, steps_of
from alknet.stores.tables import API_KEYS, NODE_TABLES, PEERS

__all__ = ["MemoryIdentityStore"]


class MemoryIdentityStore(StoredIdentities):
    """An `IdentityStore` whose writes last as long as the object.

    Args:
        peers: Peers to begin with.
        api_keys: API keys to begin with.
        clock: What judges whether a token has expired.

    Raises:
        Conflict: A name, fingerprint or prefix occurs twice.
        LocalError: A record is not valid.
    """

    def __init__(
        self,
        peers: Sequence[Peer] = (),
        api_keys: Sequence[ApiKey] = (),
        *,
        clock: WallClock = wall_clock,
    ) -> None:
        database = MemoryDatabase()
        _fill(database, peers, api_keys)
        super().__init__(MemoryStore(NODE_TABLES, database), clock=clock)


def _fill(database: MemoryDatabase, peers: Sequence[Peer], api_keys: Sequence[ApiKey]) -> None:
    ops: list[Op] = [Put(PEERS, peer.name, new_peer_row(peer), ABSENT) for peer in peers]
    for key in api_keys:
        key.validate()
        ops.append(Put(API_KEYS, key.prefix, key, ABSENT))
    tables = by_name(NODE_TABLES)
    for op in ops:
        try:
            database.commit(steps_of(op, None, tables))
        except RowConflict as exc:
            if exc.holder is not None:
                raise Conflict(f"peers {exc.holder!r} and {exc.key!r} share a key") from None
            what = "peer" if exc.table == PEERS.name else "api key"
            raise Conflict(f"{what} {exc.key!r} occurs twice") from None

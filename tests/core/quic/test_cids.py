"""Every connection ID that we issue names its shard, and 56 bits of it are random."""

from __future__ import annotations

import pytest
from trio.testing import MockClock

from alknet.core.limits import Limits
from alknet.core.quic.cids import CID_LENGTH, ConnectionIds
from alknet.core.quic.engine import client_engine, server_engine
from alknet.core.quic.policy import client_policy, server_policy
from alknet.core.quic.reset import ResetKey
from alknet.core.tls.trust import PinnedKey
from tests.core.quic.fakenet import FakeNet
from tests.core.quic.pairs import ALPN, quic_client, quic_server
from tests.core.quic.sansio import Link, new_credentials
from tests.core.quic.worlds import exchange

TIGHT = Limits(half_open_before_retry=1)


def test_a_connection_id_is_its_shard_and_random_bytes() -> None:
    cids = ConnectionIds(shard=7)
    issued = {cids.new() for _ in range(1_000)}
    assert len(issued) == 1_000
    assert {(len(cid), cid[0]) for cid in issued} == {(CID_LENGTH, 7)}
    for place in range(1, CID_LENGTH):
        assert len({cid[place] for cid in issued}) > 200
    assert {cid[0] for cid in (ConnectionIds().new() for _ in range(10))} == {0}


@pytest.mark.parametrize("shard", [-1, 256])
def test_a_shard_is_one_byte(shard: int) -> None:
    with pytest.raises(ValueError, match="range"):
        ConnectionIds(shard=shard)


def test_tokens_do_not_depend_on_the_shard() -> None:
    key = ResetKey(bytes(32))
    cid = ConnectionIds(key, shard=3).new()
    assert ConnectionIds(key, shard=5).token(cid) == key.token(cid)


def test_all_connection_ids_of_both_sides_name_their_shard() -> None:
    key, limits = new_credentials(), Limits()
    near, far = ConnectionIds(shard=3), ConnectionIds(shard=200)
    policy = client_policy(PinnedKey(key.node_id), None)
    link = Link(
        client_engine(policy, alpn=ALPN, server_name=None, limits=limits, cids=near),
        lambda cid: server_engine(
            server_policy(key), alpns=[ALPN], limits=limits, original_destination_cid=cid, cids=far
        ),
    )
    link.connect()
    seen: dict[bool, set[bytes]] = {True: set(), False: set()}
    for _ in range(20):  # each change retires one ID and has the other side issue another
        for side, ids in ((link.client, near), (link.server, far)):
            engine = side.engine
            issued = {c.cid: c.stateless_reset_token for c in engine._host_cids}
            seen[side is link.client].add(engine.host_cid)
            assert len(issued) == 4
            seen[side is link.client] |= issued.keys()
            first_of_client = near is ids and engine._host_cids[0].sequence_number == 0
            tokens = list(issued.items())[1 if first_of_client else 0 :]
            assert all(token == ids.token(cid) for cid, token in tokens)
            engine.change_connection_id()
        link.run()
    for is_client, shard in ((True, 3), (False, 200)):
        assert len(seen[is_client]) > 20
        assert {cid[0] for cid in seen[is_client]} == {shard}


async def test_a_retry_names_the_shard_too(autojump_clock: MockClock) -> None:
    """All packets of a client after its first go to an ID of ours, whatever way it came."""
    net = FakeNet()
    targets: set[bytes] = set()

    def keep(data: bytes, _source: object, target: object) -> bool:
        if target == server.address:
            targets.add(data[6:14] if data[0] & 0x80 else data[1:9])
        return True

    async with (
        quic_server(limits=TIGHT, socket=net.host("192.0.2.9"), shard=9) as server,
        quic_client(socket=net.host()) as client,
    ):
        net.filter = keep
        accepting = server.endpoint._accepting
        assert accepting is not None
        accepting.half_open = 1
        policy = client_policy(server.trust, None)
        dialer = await client.connect(server.address, alpn=ALPN, policy=policy)
        await exchange(dialer, await server.accepted.receive(), b"hello" * 1_000)
        assert server.endpoint.counters["retry"] == 1
        assert len(targets) >= 3  # the client's own choice, the Retry's, the server's
        assert len([cid for cid in targets if cid[0] != 9]) <= 1
        assert {cid[0] for cid in server.endpoint._table.routes} == {9}
        accepting.half_open = 0

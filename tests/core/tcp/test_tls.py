"""The TLS stream itself, as a stream of Trio's."""

from __future__ import annotations

import hashlib

import pytest
import trio
from trio.testing import (
    check_half_closeable_stream,
    lockstep_stream_pair,
    memory_stream_pair,
    wait_all_tasks_blocked,
)

from alknet.core.tcp.failures import TlsBroken
from alknet.core.tcp.tls import READ_BYTES, RECORDS_PER_WRITE, TlsStream
from alknet.core.tls.trust import PinnedKey
from alknet.testing.contract import cancel_at_every_checkpoint
from tests.core.tcp.rig import ALPN, CLIENT, SERVER

Pair = tuple[TlsStream, TlsStream]


async def over(near: trio.abc.Stream, far: trio.abc.Stream) -> Pair:
    client = TlsStream.client(
        near, alpn=ALPN, credentials=CLIENT, trust=PinnedKey(SERVER.node_id), server_name=None
    )
    server = TlsStream.server(far, SERVER, [ALPN])
    async with trio.open_nursery() as nursery:
        nursery.start_soon(client.do_handshake)
        nursery.start_soon(server.do_handshake)
    return client, server


async def in_memory() -> Pair:
    return await over(*memory_stream_pair())


async def in_lockstep() -> Pair:
    return await over(*lockstep_stream_pair())


@pytest.mark.slow
async def test_it_is_a_half_closeable_stream_as_trio_defines_it() -> None:
    await check_half_closeable_stream(in_memory, in_lockstep)


async def test_a_transport_that_takes_one_byte_at_a_time_is_enough() -> None:
    with trio.fail_after(60):
        client, server = await in_lockstep()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(client.send_all, b"x" * 1000)
            received = b""
            while len(received) < 1000:
                received += await server.receive_some()


async def test_large_data_arrives_intact_and_sends_are_bounded() -> None:
    data = hashlib.shake_256(b"data").digest(3 << 20)
    client, server = await in_memory()
    transport = client.transport
    assert isinstance(transport, trio.StapledStream)
    writes: list[int] = []
    take = transport.send_stream.send_all

    async def send_all(piece: bytes) -> None:
        writes.append(len(piece))
        await take(piece)

    transport.send_stream.send_all = send_all
    received = bytearray()

    async def receive() -> None:
        while piece := await server.receive_some():
            assert len(piece) <= READ_BYTES
            received.extend(piece)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(receive)
        await client.send_all(data)
        await client.send_eof()
    assert received == data
    # 16,384 bytes and what TLS adds to them, seven times.
    assert max(writes) == RECORDS_PER_WRITE * (16_384 + 22)


async def test_the_end_of_the_transport_without_close_notify_is_an_error() -> None:
    client, server = await in_memory()
    await client.send_all(b"the first half")
    await client.abort()
    assert await server.receive_some() == b"the first half"
    for _ in range(2):
        with pytest.raises(TlsBroken, match="without close_notify") as caught:
            await server.receive_some()
        assert caught.value.by_peer


async def test_damaged_records_end_the_stream_on_both_sides_with_bad_record_mac() -> None:
    near, wire_near = memory_stream_pair()
    wire_far, far = memory_stream_pair()
    damage = 0

    async def carry(source: trio.abc.ReceiveStream, sink: trio.abc.SendStream) -> None:
        while data := await source.receive_some():
            changed = bytearray(data)
            changed[-1] ^= damage
            await sink.send_all(changed)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(carry, wire_near, wire_far)
        nursery.start_soon(carry, wire_far, wire_near)
        client, server = await over(near, far)
        damage = 1
        await client.send_all(b"hello")
        with pytest.raises(TlsBroken) as caught:
            await server.receive_some()
        assert (caught.value.alert, caught.value.by_peer) == (20, False)
        nursery.cancel_scope.cancel()


async def test_a_send_cancelled_in_mid_record_breaks_sending_where_nothing_better_is_known() -> (
    None
):
    with trio.fail_after(60):
        client, server = await in_lockstep()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(client.send_all, b"x" * 1000)
            await wait_all_tasks_blocked()
            nursery.cancel_scope.cancel()
        with pytest.raises(TlsBroken, match="cancelled in mid-record"):
            await client.send_all(b"more")
        # The other direction is as good as before.
        async with trio.open_nursery() as nursery:
            nursery.start_soon(server.send_all, b"still")
            assert await client.receive_some(1) == b"s"


async def test_a_close_cancelled_at_each_checkpoint_closes_the_transport() -> None:
    closed: list[TlsStream] = []

    async def close() -> None:
        await closed[-1].aclose()

    async def check() -> None:
        with pytest.raises(trio.ClosedResourceError):
            await closed[-1].transport.send_all(b"x")
        closed.append((await in_memory())[0])

    await check_first(closed)
    assert await cancel_at_every_checkpoint(close, check) > 0


async def check_first(closed: list[TlsStream]) -> None:
    closed.append((await in_memory())[0])


async def test_operations_after_aclose_raise_closed() -> None:
    client, _ = await in_memory()
    await client.aclose()
    await client.aclose()
    with pytest.raises(trio.ClosedResourceError):
        await client.send_all(b"x")
    with pytest.raises(trio.ClosedResourceError):
        await client.receive_some()


async def test_a_peer_that_never_reads_cannot_hold_up_a_close(
    autojump_clock: trio.testing.MockClock,
) -> None:
    client, server = await in_lockstep()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(client.send_all, b"x" * 1000)
        await wait_all_tasks_blocked()
        nursery.cancel_scope.cancel()
    with trio.fail_after(5):
        await client.aclose()
        await server.aclose()

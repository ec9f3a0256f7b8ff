"""What memory connections do beyond the contract that they share with all carriers."""

from __future__ import annotations

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from alknet.core.contracts import CARRIER_MEMORY, CloseReason, ConnectionEnded, StreamReset
from alknet.core.identity import ANONYMOUS, NodeId
from alknet.core.limits import Limits
from alknet.errors import LocalError
from alknet.testing.contract import cancel_at_every_checkpoint
from alknet.testing.memory import MAX_DATAGRAM_SIZE, MemoryConnection, memory_connection_pair

KIB = 1024
ONE, TWO = NodeId(b"\x01" * 32), NodeId(b"\x02" * 32)


async def test_each_end_sees_the_others_key() -> None:
    async with memory_connection_pair(
        alpn="a/1", dialer_key=ONE, acceptor_key=TWO, server_name="node.example"
    ) as (dialer, acceptor):
        assert (dialer.peer_key, acceptor.peer_key) == (TWO, ONE)
        assert (dialer.is_dialer, acceptor.is_dialer) == (True, False)
        assert dialer.alpn == acceptor.alpn == "a/1"
        assert dialer.carrier is acceptor.carrier is CARRIER_MEMORY
        assert acceptor.server_name == "node.example"
        assert acceptor.identity is ANONYMOUS


async def test_leaving_the_block_closes_both_ends() -> None:
    async with memory_connection_pair() as (dialer, acceptor):
        pass
    assert dialer.close_reason == CloseReason(0, "", by_peer=False)
    assert acceptor.close_reason == CloseReason(0, "", by_peer=True)


async def test_stream_ids_are_numbered_as_in_quic() -> None:
    async with memory_connection_pair() as (dialer, acceptor):
        found = [
            (await end.open_stream(unidirectional=uni)).stream_id
            for end in (dialer, acceptor)
            for uni in (False, False, True)
        ]
    assert found == [0, 4, 2, 1, 5, 3]


async def test_a_stream_is_seen_with_its_first_bytes() -> None:
    async with memory_connection_pair() as (dialer, acceptor):
        quiet, loud = await dialer.open_stream(), await dialer.open_stream()
        await loud.send_all(b"x")
        assert (await acceptor.accept_stream()).stream_id == loud.stream_id
        await quiet.send_all(b"x")
        assert (await acceptor.accept_stream()).stream_id == quiet.stream_id


async def blocked_sender(limits: Limits, streams: int, sizes: int) -> list[int]:
    """Open streams and send on each as much as goes without a reader; how much went on each."""
    sent = [0] * streams

    async def send(n: int, dialer: MemoryConnection) -> None:
        stream = await dialer.open_stream()
        for _ in range(sizes):
            await stream.send_all(bytes(KIB))
            sent[n] += KIB

    async with memory_connection_pair(limits=limits) as (dialer, _):
        async with trio.open_nursery() as nursery:
            for n in range(streams):
                nursery.start_soon(send, n, dialer)
            await wait_all_tasks_blocked()
            nursery.cancel_scope.cancel()
    return sent


async def test_the_window_of_a_stream_is_exact() -> None:
    limits = Limits(stream_receive_window_bytes=8 * KIB)
    assert await blocked_sender(limits, streams=2, sizes=20) == [8 * KIB, 8 * KIB]


async def test_the_window_of_a_connection_is_shared_and_exact() -> None:
    limits = Limits(connection_receive_window_bytes=8 * KIB)
    assert sum(await blocked_sender(limits, streams=3, sizes=20)) == 8 * KIB


async def test_dropped_bytes_give_the_connections_window_back() -> None:
    limits = Limits(connection_receive_window_bytes=4 * KIB)
    async with memory_connection_pair(limits=limits) as (dialer, acceptor):
        first, second = await dialer.open_stream(), await dialer.open_stream()
        await first.send_all(bytes(4 * KIB))
        async with trio.open_nursery() as nursery:
            nursery.start_soon(second.send_all, bytes(4 * KIB))
            await wait_all_tasks_blocked()
            assert nursery.child_tasks
            (await acceptor.accept_stream()).stop_sending(7)
        with pytest.raises(StreamReset) as refused:
            await first.send_all(b"x")
        assert refused.value.code == 7
        second.reset(8)
        assert acceptor.unread_bytes == 0


async def test_opening_waits_for_the_peers_limit_and_goes_on_when_a_stream_is_done() -> None:
    async with memory_connection_pair(limits=Limits(streams_per_connection=2)) as (
        dialer,
        acceptor,
    ):
        first = await dialer.open_stream()
        await dialer.open_stream()
        await dialer.open_stream(unidirectional=True)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(dialer.open_stream)
            await wait_all_tasks_blocked()
            assert nursery.child_tasks
            await first.send_eof()
            far = await acceptor.accept_stream()
            await far.send_eof()
            assert await first.receive_some() == b""
            await wait_all_tasks_blocked()
            assert not nursery.child_tasks


async def test_a_peer_that_opens_and_resets_cannot_pass_the_limit(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with memory_connection_pair(limits=Limits(streams_per_connection=3)) as (
        dialer,
        acceptor,
    ):
        for _ in range(3):
            stream = await dialer.open_stream()
            stream.reset(1)
            await stream.aclose()
        with trio.move_on_after(1) as scope:
            await dialer.open_stream()
        assert scope.cancelled_caught
        await (await acceptor.accept_stream()).aclose()
        await dialer.open_stream()


async def test_finished_streams_are_forgotten() -> None:
    async with memory_connection_pair() as (dialer, acceptor):
        for _ in range(5):
            near = await dialer.open_stream()
            await near.send_eof()
            far = await acceptor.accept_stream()
            await far.aclose()
            await near.aclose()
        assert dialer.open_streams == 0
        assert not dialer._streams
        assert not acceptor._streams


async def test_what_came_before_the_peer_closed_can_still_be_read() -> None:
    async with memory_connection_pair() as (dialer, acceptor):
        await (await dialer.open_stream()).send_all(b"last words")
        far = await acceptor.accept_stream()
        dialer.close(3, "busy")
        assert await far.receive_some() == b"last words"
        with pytest.raises(ConnectionEnded) as ended:
            await far.receive_some()
        assert ended.value.close == CloseReason(3, "busy", by_peer=True)


async def test_a_lost_connection_is_nobodys_close() -> None:
    async with memory_connection_pair() as (dialer, acceptor):
        async with trio.open_nursery() as nursery:

            async def waits() -> None:
                with pytest.raises(ConnectionEnded, match="cable cut"):
                    await dialer.accept_stream()

            nursery.start_soon(waits)
            await wait_all_tasks_blocked()
            acceptor.lose("cable cut")
        assert (await dialer.wait_closed()).is_transport
        assert (await acceptor.wait_closed()).is_transport
        with pytest.raises(ConnectionEnded):
            await acceptor.open_stream()


async def test_reasons_are_cut_as_on_the_wire() -> None:
    async with memory_connection_pair() as (dialer, acceptor):
        dialer.close(1, "é" * 400)
        assert (await acceptor.wait_closed()).reason == "é" * 256


async def test_datagrams_past_the_queue_push_out_the_oldest() -> None:
    async with memory_connection_pair(limits=Limits(datagrams_queued=2)) as (dialer, acceptor):
        for data in (b"1", b"2", b"3"):
            dialer.send_datagram(data)
        assert [await acceptor.receive_datagram() for _ in range(2)] == [b"2", b"3"]
        with pytest.raises(LocalError, match="longer"):
            dialer.send_datagram(bytes(MAX_DATAGRAM_SIZE + 1))


async def test_an_exchange_cancelled_anywhere_leaves_no_stream() -> None:
    async with memory_connection_pair() as (dialer, acceptor):

        async def exchange() -> None:
            near = await dialer.open_stream()
            try:
                await near.send_all(b"question")
                far = await acceptor.accept_stream()
                try:
                    assert await far.receive_some() == b"question"
                    await far.send_all(b"answer")
                finally:
                    await far.aclose()
                assert await near.receive_some() == b"answer"
            finally:
                await near.aclose()

        async def no_stream_is_left() -> None:
            with trio.move_on_after(0):
                while True:
                    await (await acceptor.accept_stream()).aclose()
            await wait_all_tasks_blocked()
            while acceptor._arrivals[False].items:
                await (await acceptor.accept_stream()).aclose()
            assert dialer.open_streams == 0
            assert not dialer._streams
            assert acceptor.unread_bytes == dialer.unread_bytes == 0

        assert await cancel_at_every_checkpoint(exchange, no_stream_is_left) >= 6

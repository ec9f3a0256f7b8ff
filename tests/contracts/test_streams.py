"""What every `Stream` promises, whatever carries it."""

from __future__ import annotations

import hashlib

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from alknet.core.contracts import Stream
from alknet.core.limits import Limits
from alknet.testing.contract import cancel_at_every_checkpoint
from tests.contracts.carriers import (
    CAPABILITIES,
)
from tests.contracts.connections import (
    Pusher,
    echo,
    note_end,
    over_all,
    pair,
    receive_all,
    receive_exactly,
    stream_pair,
)

MIB = 1 << 20


@over_all
async def test_bytes_go_both_ways(carrier: str) -> None:
    async with stream_pair(carrier) as (near, far, _, _):
        for word in (b"a", b"bytes", bytes(range(256)) * 64):
            await echo(near, far, word)


@over_all
async def test_sending_nothing_is_no_end(carrier: str) -> None:
    async with stream_pair(carrier) as (near, far, _, _):
        await near.send_all(b"")
        await echo(near, far, b"x")


@over_all
async def test_any_buffer_can_be_sent(carrier: str) -> None:
    async with stream_pair(carrier) as (near, far, _, _):
        await near.send_all(bytearray(b"ab"))
        await near.send_all(memoryview(b"cdef")[1:3])
        assert await receive_exactly(far, 4) == b"abde"


@over_all
async def test_receive_some_takes_at_most_what_is_asked(carrier: str) -> None:
    async with stream_pair(carrier) as (near, far, _, _):
        await near.send_all(b"abcdef")
        assert await far.receive_some(1) == b"a"
        assert b"bcd".startswith(await far.receive_some(3))
        with pytest.raises(ValueError, match="max_bytes"):
            await far.receive_some(0)


@over_all
@pytest.mark.slow
async def test_8_mib_each_way_at_once_arrive_intact(carrier: str) -> None:
    data = hashlib.shake_256(b"data").digest(8 * MIB)
    async with stream_pair(carrier) as (near, far, _, _):
        received: dict[str, bytes] = {}

        async def send(stream: Stream) -> None:
            await stream.send_all(data)
            await stream.send_eof()

        async def receive(name: str, stream: Stream) -> None:
            received[name] = await receive_all(stream)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(send, near)
            nursery.start_soon(send, far)
            nursery.start_soon(receive, "near", near)
            nursery.start_soon(receive, "far", far)
        assert received["near"] == data
        assert received["far"] == data


@over_all
async def test_half_close_leaves_the_other_direction(carrier: str) -> None:
    async with stream_pair(carrier) as (near, far, _, _):
        await near.send_all(b"question")
        await near.send_eof()
        assert await receive_all(far) == b"question"
        await far.send_all(b"answer")
        await far.send_eof()
        assert await receive_all(near) == b"answer"


@over_all
async def test_eof_is_repeated(carrier: str) -> None:
    async with stream_pair(carrier) as (near, far, _, _):
        await near.send_eof()
        await near.send_eof()
        for _ in range(3):
            assert await far.receive_some() == b""


@over_all
async def test_sending_after_eof_raises_closed(carrier: str) -> None:
    async with stream_pair(carrier) as (near, _, _, _):
        await near.send_eof()
        with pytest.raises(trio.ClosedResourceError):
            await near.send_all(b"more")


@over_all
async def test_closing_a_stream_is_idempotent_and_ends_its_use(carrier: str) -> None:
    async with stream_pair(carrier) as (near, _, _, _):
        await near.aclose()
        await near.aclose()
        with pytest.raises(trio.ClosedResourceError):
            await near.send_all(b"more")
        with pytest.raises(trio.ClosedResourceError):
            await near.receive_some()


@over_all
async def test_what_was_sent_before_aclose_arrives(carrier: str) -> None:
    async with stream_pair(carrier) as (near, far, _, _):
        await near.send_all(b"last words")
        await near.aclose()
        assert await receive_all(far) == b"last words"


@over_all
async def test_closing_a_stream_ends_calls_that_wait_on_it(carrier: str) -> None:
    async with stream_pair(carrier) as (near, _, _, _):
        ended: list[type[BaseException]] = []
        async with trio.open_nursery() as nursery:
            nursery.start_soon(note_end, near.receive_some, ended)
            await wait_all_tasks_blocked()
            await near.aclose()
        assert ended == [trio.ClosedResourceError]


@over_all
async def test_two_receivers_at_once_are_refused(carrier: str) -> None:
    async with stream_pair(carrier) as (near, far, _, _):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(near.receive_some)
            await wait_all_tasks_blocked()
            with pytest.raises(trio.BusyResourceError):
                await near.receive_some()
            await far.send_all(b"x")


@over_all
async def test_two_senders_at_once_are_refused(carrier: str) -> None:
    async with stream_pair(carrier) as (near, _, _, _):
        pusher = Pusher(near)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(pusher.run)
            await pusher.until_stuck()
            with pytest.raises(trio.BusyResourceError):
                await near.send_all(b"x")
            pusher.scope.cancel()


@over_all
@pytest.mark.slow
async def test_a_reader_that_never_reads_bounds_the_sender(carrier: str) -> None:
    limits = Limits()
    bound = limits.stream_receive_window_bytes + limits.stream_send_buffer_bytes + MIB // 2
    if not CAPABILITIES[carrier].many_streams:
        # The kernel's: net.ipv4.tcp_wmem and tcp_rmem, 4 and 6 MiB on stock Linux, both filled.
        bound = 16 * MIB
    async with stream_pair(carrier, limits) as (near, far, _, _):
        pusher = Pusher(near)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(pusher.run)
            stuck_at = await pusher.until_stuck()
            assert 0 < stuck_at <= bound
            # Reading sets it going again, and no byte is torn or lost.
            assert await receive_exactly(far, stuck_at) == b"x" * stuck_at
            assert await pusher.until_stuck() > stuck_at
            pusher.scope.cancel()


@over_all
@pytest.mark.slow
async def test_a_cancelled_blocked_send_leaves_the_stream_usable(carrier: str) -> None:
    async with stream_pair(carrier) as (near, far, _, _):
        pusher = Pusher(near)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(pusher.run)
            await pusher.until_stuck()
            pusher.scope.cancel()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(near.send_all, b"y")
            assert set(await receive_exactly(far, pusher.taken)) == {ord("x")}
            rest = bytearray()
            while not rest.endswith(b"y"):
                rest += await far.receive_some()
            assert set(rest[:-1]) <= {ord("x")}


@over_all
async def test_a_receive_cancelled_at_each_checkpoint_takes_nothing(carrier: str) -> None:
    async with stream_pair(carrier) as (near, far, _, _):
        await near.send_all(b"0123456789")
        taken = bytearray()

        async def take() -> None:
            taken.extend(await far.receive_some(1))

        assert await cancel_at_every_checkpoint(take) > 0
        await near.send_eof()
        assert bytes(taken) + await receive_all(far) == b"0123456789"


@over_all
async def test_a_receive_cancelled_while_it_waits_takes_nothing(carrier: str) -> None:
    async with stream_pair(carrier) as (near, far, _, _):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(far.receive_some)
            await wait_all_tasks_blocked()
            nursery.cancel_scope.cancel()
        await echo(near, far, b"afterwards")


@over_all
async def test_a_send_cancelled_at_each_checkpoint_leaves_the_stream_usable(carrier: str) -> None:
    async with stream_pair(carrier) as (near, far, _, _):

        async def send() -> None:
            await near.send_all(b"x" * 1000)

        assert await cancel_at_every_checkpoint(send) > 0
        await near.send_eof()
        received = await receive_all(far)
        assert len(received) >= 1000
        assert set(received) == {ord("x")}


@over_all
async def test_an_accept_cancelled_at_each_checkpoint_takes_no_stream(carrier: str) -> None:
    async with pair(carrier) as (dialer, acceptor):
        near = await dialer.open_stream()
        await near.send_all(b"x")
        accepted: list[Stream] = []

        async def accept() -> None:
            accepted.append(await acceptor.accept_stream())

        assert await cancel_at_every_checkpoint(accept) > 0
        assert len(accepted) == 1
        assert await accepted[0].receive_some() == b"x"

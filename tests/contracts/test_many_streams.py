"""What connections promise whose carrier has many streams."""

from __future__ import annotations

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from alknet.core.contracts import Stream, StreamReset
from alknet.core.limits import Limits
from alknet.testing.contract import cancel_at_every_checkpoint
from tests.contracts.connections import (
    Pusher,
    echo,
    note_end,
    over_many_streams,
    pair,
    receive_all,
    send_without_end,
    stream_pair,
    streams_between,
)


@over_many_streams
@pytest.mark.parametrize("opener", [0, 1])
async def test_both_sides_open_streams(carrier: str, opener: int) -> None:
    async with pair(carrier) as ends:
        near, far = await streams_between(ends[opener], ends[1 - opener])
        assert near.stream_id == far.stream_id
        await echo(near, far, b"hello")


@over_many_streams
@pytest.mark.parametrize("opener", [0, 1])
async def test_unidirectional_streams(carrier: str, opener: int) -> None:
    async with pair(carrier) as ends:
        near = await ends[opener].open_stream(unidirectional=True)
        await near.send_all(b"one way")
        await near.send_eof()
        far = await ends[1 - opener].accept_uni_stream()
        assert await receive_all(far) == b"one way"
        with pytest.raises(trio.ClosedResourceError):
            await near.receive_some()
        with pytest.raises(trio.ClosedResourceError):
            await far.send_all(b"back")


@over_many_streams
async def test_reset_is_seen_with_its_code(carrier: str) -> None:
    async with stream_pair(carrier) as (near, far, dialer, acceptor):
        near.reset(77)
        with pytest.raises(StreamReset) as caught:
            await receive_all(far)
        assert caught.value.code == 77
        with pytest.raises(trio.ClosedResourceError):
            await near.send_all(b"more")
        await echo(*await streams_between(acceptor, dialer), b"others go on")


@over_many_streams
async def test_a_reset_wakes_a_receiver_that_waits(carrier: str) -> None:
    async with stream_pair(carrier) as (near, far, _, _):
        ended: list[type[BaseException]] = []
        async with trio.open_nursery() as nursery:
            nursery.start_soon(note_end, far.receive_some, ended)
            await wait_all_tasks_blocked()
            near.reset(1)
        assert ended == [StreamReset]


@over_many_streams
async def test_stop_sending_is_seen_with_its_code(carrier: str) -> None:
    async with stream_pair(carrier) as (near, far, _, _):
        far.stop_sending(5)
        far.stop_sending(6)
        with pytest.raises(StreamReset) as caught:
            await send_without_end(near)
        assert caught.value.code == 5
        with pytest.raises(trio.ClosedResourceError):
            await far.receive_some()
        await far.send_all(b"the other direction lives")
        assert await near.receive_some(9) == b"the other"


@over_many_streams
async def test_closing_a_stream_tells_the_sender_to_stop(carrier: str) -> None:
    async with stream_pair(carrier) as (near, far, _, _):
        await far.aclose()
        with pytest.raises(StreamReset):
            await send_without_end(near)


@over_many_streams
async def test_a_stuck_stream_does_not_block_others(carrier: str) -> None:
    async with stream_pair(carrier) as (near, _, dialer, acceptor):
        pusher = Pusher(near)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(pusher.run)
            await pusher.until_stuck()
            await echo(*await streams_between(dialer, acceptor), b"over here")
            await echo(*await streams_between(acceptor, dialer), b"and here")
            pusher.scope.cancel()


@over_many_streams
async def test_opening_beyond_the_limit_waits_for_a_stream_to_end(carrier: str) -> None:
    async with pair(carrier, Limits(streams_per_connection=3)) as (dialer, acceptor):
        open_now = [await streams_between(dialer, acceptor) for _ in range(3)]
        with trio.move_on_after(0.05) as scope:
            await dialer.open_stream()
        assert scope.cancelled_caught
        near, far = open_now.pop()
        await near.aclose()
        await far.aclose()
        await echo(*await streams_between(dialer, acceptor), b"a free place")


@over_many_streams
async def test_an_open_cancelled_at_each_checkpoint_opens_no_stream(carrier: str) -> None:
    async with pair(carrier, Limits(streams_per_connection=2)) as (dialer, acceptor):
        opened: list[Stream] = []

        async def open_one() -> None:
            opened.append(await dialer.open_stream())

        assert await cancel_at_every_checkpoint(open_one) > 0
        assert len(opened) == 1
        await echo(*await streams_between(dialer, acceptor), b"the second place")


@over_many_streams
@pytest.mark.slow
async def test_a_hundred_streams_at_once(carrier: str) -> None:
    async with pair(carrier) as (dialer, acceptor):

        async def serve() -> None:
            async with trio.open_nursery() as serving:
                for _ in range(100):
                    serving.start_soon(answer, await acceptor.accept_stream())

        async def answer(stream: Stream) -> None:
            await stream.send_all((await receive_all(stream))[::-1])
            await stream.aclose()

        async def ask(number: int) -> None:
            stream = await dialer.open_stream()
            question = f"{number:03}".encode() * 500
            await stream.send_all(question)
            await stream.send_eof()
            assert await receive_all(stream) == question[::-1]
            await stream.aclose()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(serve)
            for number in range(100):
                nursery.start_soon(ask, number)

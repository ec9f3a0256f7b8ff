"""Streams and connections cancelled at each of their checkpoints: nothing is lost, taken or left.

Each use is cancelled at its first checkpoint, its second, and so on, while the other end is at
work: so the cancel comes while it waits for room, for bytes, for a place or for the end.
"""

from __future__ import annotations

import itertools
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack

import pytest
import trio

from alknet.core.contracts import Connection, Stream, StreamReset
from alknet.core.limits import Limits
from alknet.testing import cancel_at_every_checkpoint
from tests.contracts.connections import (
    echo,
    over_all,
    over_many_streams,
    pair,
    receive_all,
    receive_exactly,
    stream_pair,
    streams_between,
)

KIB = 1024
# More than any carrier takes without its reader: the sender waits for room in between.
MUCH = 1024 * KIB
SMALL_WINDOWS = Limits(
    stream_send_buffer_bytes=64 * KIB,
    stream_receive_window_bytes=64 * KIB,
    connection_receive_window_bytes=128 * KIB,
)


@over_all
@pytest.mark.slow
async def test_a_send_that_waits_for_room_leaves_a_part_and_in_order(carrier: str) -> None:
    """Each try sends another byte: they arrive one run after the other, the last one whole."""
    numbers = itertools.count()
    async with stream_pair(carrier, SMALL_WINDOWS) as (near, far, _, _), trio.open_nursery() as n:
        received: list[bytes] = []

        async def read() -> None:
            received.append(await receive_all(far))

        n.start_soon(read)
        tried = await cancel_at_every_checkpoint(
            lambda: near.send_all(bytes([next(numbers)]) * MUCH), limit=250
        )
        assert tried > 2
        await near.send_eof()
    runs = [(value, len(list(run))) for value, run in itertools.groupby(received[0])]
    values = [value for value, _ in runs]
    assert values == sorted(set(values))
    assert all(length <= MUCH for _, length in runs)
    assert runs[-1] == (tried, MUCH)


@over_all
async def test_a_receive_takes_nothing_while_bytes_keep_coming(carrier: str) -> None:
    wanted = b"".join(number.to_bytes(4) for number in range(3_000))
    taken = bytearray()
    async with stream_pair(carrier) as (near, far, _, _), trio.open_nursery() as nursery:

        async def send() -> None:
            for start in range(0, len(wanted), 10):
                await near.send_all(wanted[start : start + 10])
            await near.send_eof()

        async def take() -> None:
            for _ in range(10):
                taken.extend(await far.receive_some(9))

        nursery.start_soon(send)
        assert await cancel_at_every_checkpoint(take) > 5
        assert bytes(taken) + await receive_all(far) == wanted


class Fresh:
    """A connection and a stream of it for each try."""

    def __init__(self, carrier: str) -> None:
        self.carrier = carrier
        self.stack = AsyncExitStack()
        self.near: Stream
        self.far: Stream
        self.dialer: Connection
        self.acceptor: Connection

    async def renew(self) -> None:
        await self.stack.aclose()
        ends = await self.stack.enter_async_context(stream_pair(self.carrier))
        self.near, self.far, self.dialer, self.acceptor = ends


async def try_each(
    carrier: str,
    use: Callable[[Fresh], Awaitable[object]],
    check: Callable[[Fresh], Awaitable[None]],
) -> int:
    """Cancel *use* at each checkpoint, with a connection of its own; *check* each afterwards."""
    fresh = Fresh(carrier)
    await fresh.renew()

    async def check_and_renew() -> None:
        await check(fresh)
        await fresh.renew()

    tried = await cancel_at_every_checkpoint(lambda: use(fresh), check_and_renew)
    await fresh.stack.aclose()
    return tried


@over_all
async def test_a_finish_can_be_finished(carrier: str) -> None:
    async def finish(it: Fresh) -> None:
        await it.near.send_all(b"all of it")
        await it.near.send_eof()

    async def check(it: Fresh) -> None:
        await it.near.send_eof()
        assert await receive_all(it.far) in {b"", b"all of it"}
        await it.far.send_all(b"the other way")
        assert await receive_exactly(it.near, 13) == b"the other way"

    assert await try_each(carrier, finish, check) > 0


@over_all
async def test_a_stream_that_was_to_be_closed_is(carrier: str) -> None:
    async def close(it: Fresh) -> None:
        it.near.send_now(b"before")
        await it.near.aclose()

    async def check(it: Fresh) -> None:
        with pytest.raises(trio.ClosedResourceError):
            await it.near.send_all(b"x")
        with pytest.raises(trio.ClosedResourceError):
            await it.near.receive_some()
        assert await receive_all(it.far) in {b"", b"before"}

    assert await try_each(carrier, close, check) > 0


@over_all
async def test_a_connection_that_was_to_be_closed_is(carrier: str) -> None:
    async def close(it: Fresh) -> None:
        await it.dialer.aclose(1, "enough")

    async def check(it: Fresh) -> None:
        seen = await it.acceptor.wait_closed()
        assert seen.by_peer
        assert not it.acceptor.carrier.close_code or (seen.code, seen.reason) == (1, "enough")
        own = await it.dialer.wait_closed()
        assert (own.code, own.reason, own.by_peer) == (1, "enough", False)

    assert await try_each(carrier, close, check) > 0


@over_all
async def test_whoever_waits_for_the_end_can_be_followed_by_another(carrier: str) -> None:
    async def wait(it: Fresh) -> None:
        it.acceptor.close()
        await it.dialer.wait_closed()

    async def check(it: Fresh) -> None:
        assert (await it.dialer.wait_closed()).by_peer
        assert not (await it.acceptor.wait_closed()).by_peer

    assert await try_each(carrier, wait, check) > 0


@over_many_streams
@pytest.mark.slow
async def test_a_send_that_is_given_up_and_reset_frees_its_stream(carrier: str) -> None:
    """Two places for streams, and many more tries than that."""
    limits = Limits(
        streams_per_connection=2,
        stream_send_buffer_bytes=64 * KIB,
        stream_receive_window_bytes=64 * KIB,
    )
    async with pair(carrier, limits) as (dialer, acceptor):
        ends: list[tuple[Stream, Stream]] = [await streams_between(dialer, acceptor)]

        async def send_and_read() -> None:
            near, far = ends[0]
            async with trio.open_nursery() as nursery:
                nursery.start_soon(receive_exactly, far, 256 * KIB)
                await near.send_all(bytes(256 * KIB))

        async def reset_and_renew() -> None:
            near, far = ends.pop()
            near.reset(7)
            near.reset(8)
            with pytest.raises(StreamReset) as caught:
                await receive_all(far)
            assert caught.value.code == 7
            with pytest.raises(trio.ClosedResourceError):
                await near.send_all(b"more")
            await far.aclose()
            await near.aclose()
            ends.append(await streams_between(dialer, acceptor))

        assert await cancel_at_every_checkpoint(send_and_read, reset_and_renew) > 2
        await echo(*ends[0], b"the last one")


@over_many_streams
async def test_an_open_that_waits_for_a_place_takes_none(carrier: str) -> None:
    async with pair(carrier, Limits(streams_per_connection=1)) as (dialer, acceptor):
        ends = [await streams_between(dialer, acceptor)]
        opened: list[Stream] = []

        async def open_when_there_is_room() -> None:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(free)
                opened.append(await dialer.open_stream())

        async def free() -> None:
            with trio.CancelScope(shield=True):
                near, far = ends.pop()
                await near.aclose()
                await far.aclose()

        async def check() -> None:
            if not opened:
                opened.append(await dialer.open_stream())
            near = opened.pop()
            assert not opened
            await near.send_all(b"!")
            far = await acceptor.accept_stream()
            assert await far.receive_some(1) == b"!"
            ends.append((near, far))

        assert await cancel_at_every_checkpoint(open_when_there_is_room, check) > 0


@over_many_streams
async def test_an_accept_that_waits_loses_no_stream(carrier: str) -> None:
    async with pair(carrier) as (dialer, acceptor):
        opened = 0
        accepted: list[bytes] = []

        async def accept() -> None:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(open_one)
                await take()

        async def open_one() -> None:
            nonlocal opened
            with trio.CancelScope(shield=True):
                stream = await dialer.open_stream()
                await stream.send_all(bytes([opened]))
                await stream.send_eof()
            opened += 1

        async def take() -> None:
            stream = await acceptor.accept_stream()
            with trio.CancelScope(shield=True):
                accepted.append(await receive_all(stream))

        async def check() -> None:
            while len(accepted) < opened:
                await take()

        assert await cancel_at_every_checkpoint(accept, check) > 0
        assert accepted == [bytes([number]) for number in range(opened)]

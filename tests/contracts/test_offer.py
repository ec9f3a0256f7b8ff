"""What a taker is offered: bytes that it takes nobody else gets; all others `receive_some` does."""

from __future__ import annotations

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from alknet.core.contracts import Stream, StreamReset
from alknet.core.identity import Identity
from alknet.core.limits import Limits
from tests.contracts.connections import over_all, receive_all, receive_exactly, stream_pair

PEER = Identity("peer:known", ())
# Carriers that offer, what peers send; the others give everything to who waits.
offering = pytest.mark.parametrize("carrier", ["quic"])


class Reader:
    """A task in `receive_some`, and a taker beside it."""

    def __init__(self, stream: Stream, *, takes: bool = True) -> None:
        self.takes = takes
        self.taken: list[bytes] = []
        self.read: list[bytes] = []
        self.both = b""
        self._stream = stream
        stream.offer(self.take)

    def take(self, data: bytes) -> bool:
        if self.takes:
            self.taken.append(data)
            self.both += data
        return self.takes

    async def run(self) -> None:
        while data := await self._stream.receive_some():
            self.read.append(bytes(data))
            self.both += data


@over_all
async def test_all_arrives_once_and_in_order(carrier: str) -> None:
    sent = b"".join(b"%05d" % n * (400 if n % 7 == 0 else 3) for n in range(200))
    async with stream_pair(carrier) as (near, far, _, _), trio.open_nursery() as nursery:
        reader = Reader(far)
        nursery.start_soon(reader.run)
        at = 0
        for n in range(400):
            size = 5 + n * 37 % (3_000 if n % 5 == 0 else 60)
            await near.send_all(sent[at : at + size])
            at += size
            reader.takes = n % 3 != 0
            if n % 4 == 0:
                await wait_all_tasks_blocked()
        await near.send_all(sent[at:])
        await near.send_eof()
    assert reader.both == sent


@offering
async def test_few_bytes_are_taken_without_waking_who_waits(carrier: str) -> None:
    async with stream_pair(carrier) as (near, far, _, acceptor), trio.open_nursery() as nursery:
        acceptor.identity = PEER
        reader = Reader(far)
        nursery.start_soon(reader.run)
        for word in (b"one", b"two", b"six"):
            await wait_all_tasks_blocked(0.01)
            await near.send_all(word)
            while reader.both[-3:] != word:
                await trio.sleep(0.001)
        await near.send_eof()
    assert reader.taken  # perhaps not all: what else is told may come behind


@over_all
async def test_what_a_taker_leaves_is_received(carrier: str) -> None:
    async with stream_pair(carrier) as (near, far, _, _), trio.open_nursery() as nursery:
        reader = Reader(far, takes=False)
        nursery.start_soon(reader.run)
        await wait_all_tasks_blocked()
        await near.send_all(b"left")
        await near.send_eof()
    assert b"".join(reader.read) == b"left"
    assert not reader.taken


@over_all
async def test_nothing_is_taken_while_nobody_waits(carrier: str) -> None:
    async with stream_pair(carrier) as (near, far, _, _):
        reader = Reader(far)
        await near.send_all(b"early")
        await wait_all_tasks_blocked(0.02)
        assert not reader.taken
        assert await receive_exactly(far, 5) == b"early"
        await near.send_eof()
        assert await receive_all(far) == b""


@over_all
async def test_nothing_is_taken_by_who_was_taken_back(carrier: str) -> None:
    async with stream_pair(carrier) as (near, far, _, _), trio.open_nursery() as nursery:
        reader = Reader(far)
        far.offer(None)
        nursery.start_soon(reader.run)
        await wait_all_tasks_blocked()
        await near.send_all(b"late")
        await near.send_eof()
    assert b"".join(reader.read) == b"late"
    assert not reader.taken


@offering
async def test_a_cancelled_reader_has_no_taker(carrier: str) -> None:
    async with stream_pair(carrier) as (near, far, _, acceptor):
        acceptor.identity = PEER
        reader = Reader(far)
        with trio.move_on_after(0.01):
            await reader.run()
        await near.send_all(b"after")
        await wait_all_tasks_blocked(0.02)
        assert not reader.taken
        assert await receive_exactly(far, 5) == b"after"


@offering
async def test_what_is_taken_gives_its_credit_back(carrier: str) -> None:
    limits = Limits(stream_receive_window_bytes=20_000, connection_receive_window_bytes=20_000)
    async with (
        stream_pair(carrier, limits) as (near, far, _, acceptor),
        trio.open_nursery() as nursery,
    ):
        acceptor.identity = PEER
        reader = Reader(far)
        nursery.start_soon(reader.run)
        for n in range(100):
            await near.send_all(bytes(900))
            while len(reader.both) < 900 * (n + 1):
                await trio.sleep(0)
        assert len(reader.taken) > 50
        await near.send_eof()


@offering
async def test_a_reset_ends_who_waits_beside_a_taker(carrier: str) -> None:
    async with stream_pair(carrier) as (near, far, _, acceptor), trio.open_nursery() as nursery:
        acceptor.identity = PEER
        reader = Reader(far)

        async def until_reset() -> None:
            with pytest.raises(StreamReset):
                await reader.run()

        nursery.start_soon(until_reset)
        await near.send_all(b"word")
        while reader.both != b"word":
            await trio.sleep(0.001)
        near.reset(7)

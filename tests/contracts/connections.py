"""What the tests of `Connection` share: pairs over each carrier, and ways to use them."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from alknet.core.contracts import Connection, Stream
from alknet.core.limits import Limits
from tests.contracts.carriers import (
    ALL,
    CARRIERS,
    CLOSE_CODE,
    DATAGRAMS,
    MANY_STREAMS,
    NO_CLOSE_CODE,
    NO_DATAGRAMS,
    ONE_STREAM,
)

over_all = pytest.mark.parametrize("carrier", ALL)
over_many_streams = pytest.mark.parametrize("carrier", MANY_STREAMS)
over_one_stream = pytest.mark.parametrize("carrier", ONE_STREAM)
over_datagrams = pytest.mark.parametrize("carrier", DATAGRAMS)
over_no_datagrams = pytest.mark.parametrize("carrier", NO_DATAGRAMS)
over_close_code = pytest.mark.parametrize("carrier", CLOSE_CODE)
over_no_close_code = pytest.mark.parametrize("carrier", NO_CLOSE_CODE)

GONE = (trio.BrokenResourceError, trio.ClosedResourceError)


@asynccontextmanager
async def pair(
    carrier: str, limits: Limits | None = None
) -> AsyncGenerator[tuple[Connection, Connection]]:
    with trio.fail_after(120):
        async with CARRIERS[carrier](limits or Limits()) as ends:
            yield ends


@asynccontextmanager
async def stream_pair(
    carrier: str, limits: Limits | None = None
) -> AsyncGenerator[tuple[Stream, Stream, Connection, Connection]]:
    """Yield a stream that both ends know of (the dialler's end first), and their connections."""
    async with pair(carrier, limits) as (dialer, acceptor):
        near, far = await streams_between(dialer, acceptor)
        yield near, far, dialer, acceptor


async def streams_between(opener: Connection, other: Connection) -> tuple[Stream, Stream]:
    near = await opener.open_stream()
    await near.send_all(b"!")
    far = await other.accept_stream()
    assert await far.receive_some(1) == b"!"
    return near, far


async def receive_all(stream: Stream) -> bytes:
    received = bytearray()
    while data := await stream.receive_some():
        received += data
    return bytes(received)


async def receive_exactly(stream: Stream, size: int) -> bytes:
    received = bytearray()
    while len(received) < size:
        data = await stream.receive_some(size - len(received))
        assert data, "the stream ended early"
        received += data
    return bytes(received)


async def send_without_end(stream: Stream) -> None:
    while True:
        await stream.send_all(b"x" * 1000)


async def echo(one: Stream, other: Stream, word: bytes) -> None:
    """Both directions work."""
    await one.send_all(word)
    assert await receive_exactly(other, len(word)) == word
    await other.send_all(word[::-1])
    assert await receive_exactly(one, len(word)) == word[::-1]


class Pusher:
    """Sends without end, and counts what `send_all` took."""

    def __init__(self, stream: Stream) -> None:
        self.stream = stream
        self.taken = 0
        self.scope = trio.CancelScope()

    async def run(self) -> None:
        with self.scope:
            while True:
                await self.stream.send_all(b"x" * 65_536)
                self.taken += 65_536

    async def until_stuck(self) -> int:
        before = -1
        while self.taken != before:
            before = self.taken
            await wait_all_tasks_blocked(0.05)
        return before


async def note_end(call: Callable[[], Awaitable[object]], ended: list[type[BaseException]]) -> None:
    try:
        await call()
    except GONE as exc:
        ended.append(type(exc))

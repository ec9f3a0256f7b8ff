"""Why a connection closes is told after what was being sent, not instead, to peers that read."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from alknet.core.contracts import CARRIER_UNIX, CloseReason
from alknet.core.tcp.connection import StreamConnection

BIG = bytes(4 << 20)


def say_why(reason: CloseReason) -> bytes:
    return f"bye {reason.code}".encode()


@asynccontextmanager
async def pair() -> AsyncGenerator[tuple[StreamConnection, StreamConnection]]:
    dialer, acceptor = (
        StreamConnection(
            trio.SocketStream(end),
            alpn="test/1",
            carrier=CARRIER_UNIX,
            is_dialer=is_dialer,
            peer_key=None,
            remote_address="socketpair",
        )
        for end, is_dialer in zip(trio.socket.socketpair(), (True, False), strict=True)
    )
    async with trio.open_nursery() as nursery:
        nursery.start_soon(dialer.wait_closed)
        nursery.start_soon(acceptor.wait_closed)
        yield dialer, acceptor
        dialer.close()
        acceptor.close()


async def test_a_close_amid_data_lets_it_finish_and_then_says_why(
    autojump_clock: MockClock,
) -> None:
    async with pair() as (dialer, acceptor), trio.open_nursery() as nursery:
        acceptor.farewell = say_why
        reader, writer = await dialer.open_stream(), await acceptor.accept_stream()
        nursery.start_soon(writer.send_all, BIG)
        await wait_all_tasks_blocked()
        acceptor.close(5, "revoked")
        got = bytearray()
        async for chunk in reader:
            got += chunk
        assert len(got) == len(BIG) + 5
        assert got.endswith(b"bye 5")
        with pytest.raises(trio.ClosedResourceError):
            await writer.send_all(b"more")


async def test_a_peer_that_does_not_read_is_not_waited_for(autojump_clock: MockClock) -> None:
    async with pair() as (_dialer, acceptor), trio.open_nursery() as nursery:
        acceptor.farewell = say_why
        writer = await acceptor.accept_stream()

        async def send() -> None:
            with pytest.raises(trio.ClosedResourceError):
                await writer.send_all(BIG)

        nursery.start_soon(send)
        await wait_all_tasks_blocked()
        acceptor.close(5, "revoked")
        with trio.fail_after(15):
            await acceptor.wait_closed()


@pytest.mark.parametrize("code", [0, 5])
async def test_without_words_a_close_breaks_what_is_being_sent_at_once(
    code: int, autojump_clock: MockClock
) -> None:
    async with pair() as (_dialer, acceptor), trio.open_nursery() as nursery:
        acceptor.farewell = say_why if code == 0 else None
        writer = await acceptor.accept_stream()

        async def send() -> None:
            with pytest.raises(trio.ClosedResourceError):
                await writer.send_all(BIG)

        nursery.start_soon(send)
        await wait_all_tasks_blocked()
        acceptor.close(code, "done")
        with trio.fail_after(0.3):
            await wait_all_tasks_blocked()
            while nursery.child_tasks:
                await trio.lowlevel.checkpoint()

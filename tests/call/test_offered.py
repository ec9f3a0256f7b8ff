"""Small messages over QUIC, which are handled where they arrive, without waking a reader."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager
from contextvars import ContextVar

import msgspec
import pytest
import trio
from trio.testing import MockClock

from alknet.call.proto import Failed, InputItem, Responded
from alknet.call.session import CallSession
from alknet.core.contracts import CloseCode, Stream, StreamReset
from alknet.core.limits import Limits
from alknet.core.quic.stream import QuicStream
from benchmarks.bench_session import Counting
from tests.call.sessions import PEER, Operations, RawPeer
from tests.core.quic.worlds import Pair, world

WHO: ContextVar[str] = ContextVar("WHO", default="nobody")


@asynccontextmanager
async def serving(
    operations: Operations, limits: Limits | None = None
) -> AsyncGenerator[tuple[Pair, CallSession]]:
    """Yield a connection over a network under a virtual clock, and the session at its far end."""
    async with world(limits=limits) as here, trio.open_nursery() as nursery:
        dialer, acceptor = await here.connect()
        acceptor.identity = PEER
        server = CallSession(acceptor, operations, limits=limits or Limits())
        token = WHO.set("this session")  # and not the endpoint's tasks
        await nursery.start(server.run)
        WHO.reset(token)
        yield (dialer, acceptor), server
        nursery.cancel_scope.cancel()


@asynccontextmanager
async def calling(operations: Operations) -> AsyncGenerator[CallSession]:
    async with serving(operations) as ((dialer, _), _), trio.open_nursery() as nursery:
        client = CallSession(dialer, None, limits=Limits())
        await nursery.start(client.run)
        await client.call("echo/unary", {"n": 0})  # opens the stream
        yield client
        nursery.cancel_scope.cancel()


async def steps_per_call() -> float:
    async with calling(Operations()) as client:
        counting = Counting()
        trio.lowlevel.add_instrument(counting)
        for n in range(100):
            assert bytes(await client.call("echo/unary", {"n": n})) == b'{"n":%d}' % n
        trio.lowlevel.remove_instrument(counting)
    return counting.steps / 100


async def test_a_call_wakes_no_reader_on_either_side(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    offered = await steps_per_call()
    monkeypatch.setattr(QuicStream, "offer", Stream.offer)
    assert await steps_per_call() - offered > 1.8


async def test_what_runs_has_the_context_of_its_session(autojump_clock: MockClock) -> None:
    operations = Operations()

    async def whose(_given: msgspec.Raw) -> object:
        return WHO.get()

    async def outlast(_given: msgspec.Raw) -> object:
        await trio.sleep(1)
        return WHO.get()

    operations.queries |= {"context/whose": whose, "context/outlast": outlast}
    async with calling(operations) as client, trio.open_nursery() as nursery:
        said = []

        async def ask(name: str) -> None:
            said.append(bytes(await client.call(name)))

        for _ in range(6):  # more than there are tasks that wait for calls
            nursery.start_soon(ask, "context/outlast")
            await trio.sleep(0.1)
        nursery.start_soon(ask, "context/whose")
    assert set(said) == {b'"this session"'}
    assert len(said) == 7


@pytest.mark.parametrize("bytes_", [b"\0\0\0\0", b"\0\0\0\x02no", b"\xff\xff\xff\xff"])
async def test_a_small_bad_frame_costs_its_stream_alone(
    autojump_clock: MockClock, bytes_: bytes
) -> None:
    operations = Operations()
    async with serving(operations) as ((dialer, _), server):
        spoiled = RawPeer(dialer, await dialer.open_stream())
        other = RawPeer(dialer, await dialer.open_stream())
        for n, peer in enumerate((spoiled, other)):
            await peer.request(f"x{n}", "echo/unary")
            assert isinstance(await peer.receive(), Responded)
        await spoiled.request("slow", "echo/slow")
        await trio.sleep(1)
        assert operations.running == 1
        await spoiled.stream.send_all(bytes_)
        with pytest.raises(StreamReset) as caught:
            await spoiled.receive()
        assert caught.value.code == CloseCode.PROTOCOL
        await other.request("y", "echo/unary")
        assert isinstance(await other.receive(), Responded)
        assert operations.running == 0
        assert server.close_reason is None


async def test_a_violation_in_a_small_frame_ends_the_session(autojump_clock: MockClock) -> None:
    async with serving(Operations()) as ((dialer, _), server):
        peer = RawPeer(dialer, await dialer.open_stream())
        await peer.request("x", "echo/unary")
        await peer.receive()
        await peer.request("twice", "echo/slow")
        await trio.sleep(1)
        await peer.request("twice", "echo/slow")
        assert (await dialer.wait_closed()).code == CloseCode.PROTOCOL
        assert server.close_reason is not None
        assert server.close_reason.code == CloseCode.PROTOCOL


async def test_a_frame_in_crumbs_is_one_frame(autojump_clock: MockClock) -> None:
    async with serving(Operations()) as ((dialer, _), server):
        peer = RawPeer(dialer, await dialer.open_stream())
        await peer.request("x", "echo/unary")
        await peer.receive()
        body = b'{"type":"call.requested","id":"y","payload":{"operationId":"/echo/unary"}}'
        for byte in len(body).to_bytes(4) + body:
            await peer.stream.send_all(bytes([byte]))
            await trio.sleep(0.1)
            assert server.budget.used <= len(body) + 3
        assert isinstance(await peer.receive(), Responded)
        await trio.sleep(1)
        assert server.budget.used == 0


async def test_small_items_that_nobody_takes_hold_their_stream_back(
    autojump_clock: MockClock,
) -> None:
    operations = Operations()

    async def ignore(_given: msgspec.Raw, _items: AsyncIterator[msgspec.Raw]) -> object:
        await trio.sleep_forever()

    operations.uploads["items/ignored"] = ignore
    limits = Limits(stream_receive_window_bytes=16_384, stream_send_buffer_bytes=16_384)
    async with serving(operations, limits) as ((dialer, _), server):
        peer = RawPeer(dialer, await dialer.open_stream())
        await peer.request("x", "echo/unary")
        assert isinstance(await peer.receive(), Responded)
        await peer.request("up", "items/ignored")
        sent = 0
        with trio.move_on_after(90):
            while True:
                await peer.send(InputItem("up", msgspec.Raw(b'"' + b"x" * 200 + b'"')))
                sent += 200
                await trio.sleep(0.1)
        assert 0 < sent < 5 * 16_384
        assert server.close_reason is None


async def test_a_refusal_of_a_small_request_is_sent(autojump_clock: MockClock) -> None:
    async with serving(Operations()) as ((dialer, _), _):
        peer = RawPeer(dialer, await dialer.open_stream())
        await peer.request("x", "echo/unary")
        await peer.receive()
        await peer.request("y", "no/such")
        answer = await peer.receive()
        assert isinstance(answer, Failed)
        assert answer.code == "NOT_FOUND"

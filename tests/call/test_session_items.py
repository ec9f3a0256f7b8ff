"""Subscriptions: order, ends, back-pressure, credit."""

from __future__ import annotations

from collections.abc import AsyncGenerator

import msgspec
import pytest
import trio

from alknet.call.codes import CallError
from alknet.call.proto import Aborted, Completed, Credit, Failed, Requested, Responded
from alknet.core.limits import Limits
from alknet.errors import Malformed
from tests.call.sessions import CARRIERS, Operations, RawPeer, is_idle, raw_peer, session_pair

both = pytest.mark.parametrize("carrier", CARRIERS)


@both
@pytest.mark.parametrize("count", [0, 1, 1000])
async def test_all_items_come_in_order(carrier: str, count: int) -> None:
    async with session_pair(carrier, Operations()) as (client, server):
        async with client.subscribe("echo/stream", {"count": count}) as items:
            got = [msgspec.json.decode(item)["n"] async for item in items]
        assert got == list(range(count))
        assert await is_idle(client, server)
        if carrier == "memory":
            assert not client.lanes.streams
            assert not server.lanes.streams


@both
async def test_an_error_comes_after_the_items_before_it(carrier: str) -> None:
    async def fails(_given: msgspec.Raw) -> AsyncGenerator[object]:
        yield 1
        yield 2
        raise CallError("FISH", "gone")

    operations = Operations()
    operations.subscriptions["test/fails"] = fails
    async with session_pair(carrier, operations) as (client, _server):
        async with client.subscribe("test/fails") as items:
            assert bytes(await anext(items)) == b"1"
            assert bytes(await anext(items)) == b"2"
            for _ in range(2):
                with pytest.raises(CallError, match="FISH"):
                    await anext(items)


@both
async def test_a_subscriber_that_does_not_read_holds_the_operation_back(carrier: str) -> None:
    made = 0

    async def counts(_given: msgspec.Raw) -> AsyncGenerator[object]:
        nonlocal made
        while True:
            made += 1
            yield "x" * 10_000

    operations = Operations()
    operations.subscriptions["test/counts"] = counts
    limits = Limits(subscription_window=8, stream_receive_window_bytes=1024**2)
    async with session_pair(carrier, operations, limits=limits) as (client, server):
        async with client.subscribe("test/counts") as items:
            await trio.testing.wait_all_tasks_blocked()
            stuck_at = made
            # Calls go on beside it, in both carriers.
            assert await client.call_as(int, "echo/unary", 1) == 1
            await trio.testing.wait_all_tasks_blocked()
            assert made == stuck_at
            # Eight in the window and one in hand; on a stream of its own the flow-control
            # windows (1 MiB), and the outbox (256 KiB), are what is filled first.
            assert made <= (9 if carrier == "unix" else 170)
            for _ in range(200):
                assert len(await anext(items)) == 10_002
            assert made > stuck_at
        await trio.testing.wait_all_tasks_blocked()
        assert operations.running == 0
        assert await is_idle(client, server)


@both
async def test_leaving_early_aborts_the_operation(carrier: str) -> None:
    operations = Operations()
    async with session_pair(carrier, operations) as (client, server):
        async with client.subscribe("echo/endless") as items:
            await anext(items)
            assert operations.running == 1
        await trio.testing.wait_all_tasks_blocked()
        assert (operations.running, operations.started) == (0, 1)
        assert await is_idle(client, server)
        assert await client.call_as(int, "echo/unary", 1) == 1


@both
async def test_a_subscription_has_a_deadline_only_if_asked(
    carrier: str, autojump_clock: trio.testing.MockClock
) -> None:
    async def rarely(_given: msgspec.Raw) -> AsyncGenerator[object]:
        while True:
            await trio.sleep(1000)
            yield 1

    operations = Operations()
    operations.subscriptions["test/rarely"] = rarely
    async with session_pair(carrier, operations) as (client, _server):
        async with client.subscribe("test/rarely") as items:
            for _ in range(5):
                await anext(items)
        async with client.subscribe("test/rarely", timeout_s=1500) as items:
            await anext(items)
            with pytest.raises(CallError, match="TIMEOUT"):
                await anext(items)
        assert 6500 <= trio.current_time() < 6502
    assert operations.running == 0


# --- credit, byte by byte


async def _items(count: int, peer: RawPeer) -> list[int]:
    got = []
    for _ in range(count):
        event = await peer.receive()
        assert isinstance(event, Responded)
        got.append(msgspec.json.decode(event.output)["n"])
    return got


@both
async def test_no_item_comes_beyond_the_credit(carrier: str) -> None:
    async with raw_peer(carrier, Operations()) as (peer, _server):
        await peer.request("s1", "echo/stream", '"input":{"count":7},"window":2')
        assert await _items(2, peer) == [0, 1]
        await peer.request("c1", "echo/unary", '"input":5')  # answered, while s1 waits
        assert await peer.receive() == Responded("c1", msgspec.Raw(b"5"))
        await peer.send(Credit("s1", 3), Credit("nobody", 2**31 - 1))
        assert await _items(3, peer) == [2, 3, 4]
        await peer.send(Credit("s1", 100))
        assert await _items(2, peer) == [5, 6]
        assert await peer.receive() == Completed("s1")


@both
@pytest.mark.parametrize("n", [-1, 0, 2**31, 2**63])
async def test_bad_credit_ends_that_call_alone(carrier: str, n: int) -> None:
    async with raw_peer(carrier, Operations()) as (peer, server):
        await peer.request("s1", "echo/endless", '"window":1')
        await peer.request("s2", "echo/stream", '"input":{"count":2},"window":1')
        first, second = await peer.receive(), await peer.receive()
        assert isinstance(first, Responded)
        assert isinstance(second, Responded)
        assert {first.id, second.id} == {"s1", "s2"}
        await peer.send(f'{{"type":"call.credit","id":"s1","payload":{{"n":{n}}}}}')
        event = await peer.receive()
        assert isinstance(event, Failed)
        assert (event.id, event.code) == ("s1", "INVALID_INPUT")
        await peer.send(Credit("s2", 1))
        assert await _items(1, peer) == [1]
        assert await peer.receive() == Completed("s2")
        assert not server.serving.calls


@both
async def test_credit_that_adds_up_to_too_much_ends_that_call(carrier: str) -> None:
    async with raw_peer(carrier, Operations()) as (peer, _server):
        await peer.request("s1", "echo/endless", '"window":1')
        assert isinstance(await peer.receive(), Responded)
        await trio.testing.wait_all_tasks_blocked()
        await peer.send(Credit("s1", 2**31 - 1), Credit("s1", 1))
        event = await peer.receive()
        assert isinstance(event, Failed)
        assert (event.id, event.code) == ("s1", "INVALID_INPUT")


@both
@pytest.mark.parametrize("window", ["-1", "0", "2147483648", "9223372036854775808", '"all"'])
async def test_a_bad_window_ends_that_call_alone(carrier: str, window: str) -> None:
    async with raw_peer(carrier, Operations()) as (peer, _server):
        await peer.request("s1", "echo/endless", f'"window":{window}')
        event = await peer.receive()
        assert isinstance(event, Failed)
        assert (event.id, event.code) == ("s1", "INVALID_INPUT")
        await peer.request("c1", "echo/unary")
        assert isinstance(await peer.receive(), Responded)


async def test_a_callee_that_sends_more_than_was_asked_for_is_cut_off() -> None:
    async with raw_peer("unix", Operations(), limits=Limits(subscription_window=2)) as (peer, us):
        async with us.subscribe("a/b") as items:
            request = await peer.receive()
            assert isinstance(request, Requested)
            assert request.window == 2
            item = Responded(request.id, msgspec.Raw(b"1"))
            await peer.send(item, item, item)
            await trio.testing.wait_all_tasks_blocked()
            assert [bytes(await anext(items)) for _ in range(2)] == [b"1"] * 2
            with pytest.raises(CallError, match="more items than were asked for"):
                await anext(items)
        assert await peer.receive() == Aborted(request.id)


async def test_credit_is_granted_as_items_are_taken() -> None:
    async with raw_peer("unix", Operations(), limits=Limits(subscription_window=4)) as (peer, us):
        async with us.subscribe("a/b") as items:
            request = await peer.receive()
            assert isinstance(request, Requested)
            item = Responded(request.id, msgspec.Raw(b"1"))
            await peer.send(item, item, item, item)
            await trio.testing.wait_all_tasks_blocked()
            await anext(items)
            await anext(items)
            assert await peer.receive() == Credit(request.id, 2)
            await peer.send(item, item, Completed(request.id))
            assert [bytes(item) async for item in items] == [b"1"] * 4


@both
async def test_items_can_be_decoded_on_the_way(carrier: str) -> None:
    async def mixed(_given: msgspec.Raw) -> AsyncGenerator[object]:
        for item in (1, "two", 3):
            yield item

    operations = Operations()
    operations.subscriptions["test/mixed"] = mixed
    async with session_pair(carrier, operations) as (client, _server):
        async with client.subscribe_as(int, "test/mixed") as items:
            assert await anext(items) == 1
            with pytest.raises(Malformed, match="not as expected"):
                await anext(items)
            assert [item async for item in items] == [3]

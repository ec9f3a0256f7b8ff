"""A query that is subscribed to, a subscription that is called: a clear end on every carrier."""

from __future__ import annotations

from collections.abc import AsyncGenerator

import msgspec
import pytest
import trio

from alknet.call.codes import CallError
from alknet.call.proto import MAX_CREDIT, Aborted, Completed, Requested, Responded
from tests.call.sessions import CARRIERS, Operations, RawPeer, is_idle, raw_peer, session_pair

both = pytest.mark.parametrize("carrier", CARRIERS)


@both
async def test_a_query_that_is_subscribed_to_is_refused(carrier: str) -> None:
    operations = Operations()
    async with session_pair(carrier, operations) as (client, server):
        with trio.fail_after(30):
            async with client.subscribe("echo/unary") as items:
                with pytest.raises(CallError, match="INVALID_OPERATION_TYPE"):
                    await anext(items)
        assert operations.started == 0
        assert await is_idle(client, server)


@both
@pytest.mark.parametrize("count", [0, 1, 5])
async def test_a_subscription_that_is_called_ends_with_its_type(carrier: str, count: int) -> None:
    operations = Operations()
    async with session_pair(carrier, operations) as (client, server):
        with pytest.raises(CallError, match="INVALID_OPERATION_TYPE"):
            await client.call("echo/stream", {"count": count})
        assert await client.call_as(int, "echo/unary", 1) == 1
        await trio.testing.wait_all_tasks_blocked()
        assert await is_idle(client, server)


@both
async def test_a_subscription_that_is_called_and_has_no_end_is_ended(carrier: str) -> None:
    async def rarely(_given: msgspec.Raw) -> AsyncGenerator[object]:
        yield 1
        await trio.sleep_forever()

    operations = Operations()
    operations.subscriptions["test/rarely"] = rarely
    async with session_pair(carrier, operations) as (client, server):
        with pytest.raises(CallError, match="INVALID_OPERATION_TYPE"):
            await client.call("test/rarely")
        await trio.testing.wait_all_tasks_blocked()
        assert operations.running == 0
        assert await is_idle(client, server)


@both
async def test_a_subscription_always_says_that_it_is_one(carrier: str) -> None:
    async with raw_peer(carrier, Operations()) as (peer, us), trio.open_nursery() as nursery:

        async def subscribe() -> None:
            async with us.subscribe("a/b") as items:
                assert [bytes(item) async for item in items] == [b"1"]

        nursery.start_soon(subscribe)
        callee = peer
        if carrier == "memory":
            callee = RawPeer(peer.connection, await peer.connection.accept_stream())
        request = await callee.receive()
        assert isinstance(request, Requested)
        assert request.window == (64 if carrier == "unix" else MAX_CREDIT)
        await callee.send(Responded(request.id, msgspec.Raw(b"1")), Completed(request.id))


@both
async def test_a_foreign_caller_may_subscribe_without_a_window(carrier: str) -> None:
    async with raw_peer(carrier, Operations()) as (peer, _server):
        await peer.request("s1", "echo/stream", '"input":{"count":2}')
        for n in range(2):
            item = await peer.receive()
            assert item == Responded("s1", msgspec.Raw(b'{"n":%d}' % n), more=True)
        assert await peer.receive() == Completed("s1")
        # Whoever sent a window knows, and is not told with each item.
        await peer.request("s2", "echo/stream", '"input":{"count":1},"window":1')
        assert await peer.receive() == Responded("s2", msgspec.Raw(b'{"n":0}'))
        assert await peer.receive() == Completed("s2")


async def test_an_item_that_answers_a_call_makes_the_callee_stop() -> None:
    async with raw_peer("unix", Operations()) as (peer, us), trio.open_nursery() as nursery:

        async def call() -> None:
            with pytest.raises(CallError, match="INVALID_OPERATION_TYPE"):
                await us.call("a/b")

        nursery.start_soon(call)
        request = await peer.receive()
        assert isinstance(request, Requested)
        item = Responded(request.id, msgspec.Raw(b"1"), more=True)
        await peer.send(item, item)
        assert await peer.receive() == Aborted(request.id)

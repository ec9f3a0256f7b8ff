"""What a session holds for a peer is bounded, and does not add up to the end of it."""

from __future__ import annotations

import tracemalloc
from collections.abc import AsyncGenerator
from contextlib import AsyncExitStack

import msgspec
import trio

from alknet.call.proto import Requested
from alknet.core.limits import Limits
from tests.call.sessions import Operations, raw_peer, session_pair


async def test_ignored_keys_of_an_item_are_not_kept() -> None:
    junk = "x" * 1_000_000
    async with raw_peer("unix", Operations()) as (peer, us), us.subscribe("a/b") as items:
        request = await peer.receive()
        assert isinstance(request, Requested)
        tracemalloc.start()
        try:
            for _ in range(8):
                await peer.send(
                    f'{{"type":"call.responded","id":"{request.id}",'
                    f'"payload":{{"output":1,"junk":"{junk}"}}}}'
                )
            await trio.testing.wait_all_tasks_blocked()
            held, _ = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        assert held < 3_000_000
        assert bytes(await anext(items)) == b"1"


async def test_many_subscriptions_that_nobody_reads_do_not_cost_the_connection() -> None:
    async def counts(_given: msgspec.Raw) -> AsyncGenerator[object]:
        while True:
            yield "x" * 20_000

    operations = Operations()
    operations.subscriptions["test/counts"] = counts
    async with session_pair("memory", operations) as (client, server), AsyncExitStack() as stack:
        items = await stack.enter_async_context(client.subscribe("test/counts"))
        for _ in range(199):
            await stack.enter_async_context(client.subscribe("test/counts"))
        await trio.testing.wait_all_tasks_blocked()
        assert client.close_reason is None
        assert server.close_reason is None
        assert len(await anext(items)) == 20_002


async def test_many_subscribers_that_do_not_read_do_not_cost_the_connection() -> None:
    async def counts(_given: msgspec.Raw) -> AsyncGenerator[object]:
        while True:
            yield "x" * 20_000

    operations = Operations()
    operations.subscriptions["test/counts"] = counts
    limits = Limits(stream_receive_window_bytes=1024, connection_receive_window_bytes=1024)
    async with raw_peer("memory", operations, limits=limits) as (peer, server):
        for n in range(200):
            other = await peer.open()
            await other.request(f"s{n}", "test/counts")
        await trio.testing.wait_all_tasks_blocked()
        assert server.close_reason is None
        assert len(server.serving.calls) == 200

"""A call over three hops, given up after any number of passes, leaves nothing anywhere."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from itertools import pairwise

import pytest
import trio
import trio.testing

from alknet.call.codes import CallError
from alknet.call.operations import operation, public
from alknet.call.session import CallSession
from alknet.testing.operations import peer
from tests.call.peers.federated import MemoryNode, open_world, rule

ROUTE = ("n2", "n3", "n4")
ITEMS = 3


class Work:
    """Operations that wait between their steps, and say how many of them run."""

    def __init__(self) -> None:
        self.running = self.finished = 0

    @operation("work/walk", access=public())
    async def walk(self) -> int:
        self.running += 1
        try:
            for _ in range(3):
                await trio.lowlevel.checkpoint()
            self.finished += 1
            return 1
        finally:
            self.running -= 1

    @operation("work/count", access=public())
    async def count(self) -> AsyncIterator[int]:
        self.running += 1
        try:
            for n in range(ITEMS):
                await trio.lowlevel.checkpoint()
                yield n
            self.finished += 1
        finally:
            self.running -= 1

    @operation("work/sum", access=public())
    async def total(self, items: AsyncIterator[int]) -> int:
        self.running += 1
        try:
            found = sum([item async for item in items])
            self.finished += 1
            return found
        finally:
            self.running -= 1

    @operation("work/echo", access=public())
    async def echo(self, items: AsyncIterator[int]) -> AsyncIterator[int]:
        self.running += 1
        try:
            async for item in items:
                yield item
            self.finished += 1
        finally:
            self.running -= 1


async def call(client: CallSession) -> None:
    assert bytes(await client.call("work/walk", peer=ROUTE)) == b"1"


async def subscribe(client: CallSession) -> None:
    async with client.subscribe("work/count", peer=ROUTE) as items:
        assert [int(bytes(item)) async for item in items] == list(range(ITEMS))


async def upload(client: CallSession) -> None:
    async with client.upload("work/sum", peer=ROUTE) as sending:
        for n in range(ITEMS):
            await sending.send(n)
        assert bytes(await sending.finish()) == b"%d" % sum(range(ITEMS))


async def both_ways(client: CallSession) -> None:
    async with client.bidi("work/echo", peer=ROUTE) as both:
        for n in range(ITEMS):
            await both.send(n)
            assert int(bytes(await anext(both))) == n
        await both.finish()
        assert [item async for item in both] == []


KINDS: list[Callable[[CallSession], Awaitable[None]]] = [call, subscribe, upload, both_ways]


@pytest.mark.parametrize("kind", KINDS)
async def test_a_call_that_is_given_up_anywhere_leaves_nothing_on_any_node(
    kind: Callable[[CallSession], Awaitable[None]],
) -> None:
    work = Work()
    nodes = [MemoryNode(f"n{n}", rules=[rule("**")]) for n in range(1, 4)]
    nodes.append(MemoryNode("n4", [work.walk, work.count, work.total, work.echo]))
    async with open_world(*nodes) as world:
        for here, there in pairwise(nodes):
            await world.link(here, there)
        client = await world.client(nodes[0], peer("user"))
        await kind(client)
        passes = 0
        while True:  # until it is whole before it is given up
            before = work.finished
            async with trio.open_nursery() as nursery:
                ended = trio.Event()

                async def run(ended: trio.Event = ended) -> None:
                    await kind(client)
                    ended.set()

                nursery.start_soon(run)
                for _ in range(passes):
                    await trio.lowlevel.checkpoint()
                nursery.cancel_scope.cancel()
            await trio.testing.wait_all_tasks_blocked()
            assert work.running == 0
            assert [node.calls() for node in nodes] == [0, 0, 0, 0]
            assert not client.calling.pending
            assert [p.in_flight for node in nodes for p in node.peers] == [0] * 6
            if ended.is_set():
                break
            passes += 1
            assert passes < 500
        assert work.finished == before + 1
        assert passes > 5
        await kind(client)


async def test_a_node_on_the_way_that_is_lost_ends_the_call_on_both_sides() -> None:
    work = Work()
    nodes = [MemoryNode(f"n{n}", rules=[rule("**")]) for n in range(1, 4)]

    @operation("work/wait", access=public())
    async def wait() -> None:
        work.running += 1
        try:
            await trio.sleep_forever()
        finally:
            work.running -= 1

    nodes.append(MemoryNode("n4", [wait]))
    async with open_world(*nodes) as world:
        for here, there in pairwise(nodes):
            await world.link(here, there)
        client = await world.client(nodes[0], peer("user"))
        codes: list[str] = []

        async def run() -> None:
            try:
                await client.call("work/wait", peer=ROUTE)
            except CallError as exc:
                codes.append(exc.code)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(run)
            await trio.testing.wait_all_tasks_blocked()
            assert work.running == 1
            nodes[1].session("n3").connection.close(1, "lost")
        await trio.testing.wait_all_tasks_blocked()
        assert codes == ["UNAVAILABLE"]
        assert work.running == 0
        assert [node.calls() for node in nodes] == [0, 0, 0, 0]

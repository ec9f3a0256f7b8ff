"""Abort policies over three nodes: what a hub's call to a worker does when its caller leaves."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Any

import msgspec
import pytest
import trio

from alknet.call.context import Context
from alknet.call.operations import operation, public
from alknet.call.peers.reference import PeerRef
from alknet.call.session import CallSession
from alknet.testing.contract import cancel_at_every_checkpoint
from alknet.testing.operations import peer
from tests.call.peers.federated import MemoryNode, open_world
from tests.call.work import Work


@operation("t/cascade", access=public(), calls=["@w1/t/work"])
async def cascade(ctx: Context) -> Any:
    return msgspec.json.decode(await ctx.call("t/work", peer=PeerRef.specific("w1")))


@operation("t/survive", access=public(), calls=["@any/t/work"])
async def survive(ctx: Context) -> Any:
    return msgspec.json.decode(await ctx.call("t/work", peer=PeerRef.any(), continue_running=True))


class World:
    """A user, a hub that runs the operations above, and a worker that has dialled it."""

    def __init__(self) -> None:
        self.work = Work()
        self.hub = MemoryNode("hub", [cascade, survive])
        self.worker = MemoryNode("w1", [self.work.work])

    @asynccontextmanager
    async def open(self) -> AsyncGenerator[CallSession]:
        async with open_world(self.hub, self.worker) as world, trio.open_nursery() as nursery:
            await nursery.start(self.hub.dispatcher.survivors.serve)
            await world.link(self.worker, self.hub)
            yield await world.client(self.hub, peer("user"))
            nursery.cancel_scope.cancel()

    @property
    def is_quiet(self) -> bool:
        survivors = len(self.hub.dispatcher.survivors)
        return not (self.work.running or self.hub.calls() or self.worker.calls() or survivors)


async def _leave(session: CallSession, name: str) -> None:
    async with trio.open_nursery() as nursery:
        nursery.start_soon(session.call, name)
        await trio.testing.wait_all_tasks_blocked()
        nursery.cancel_scope.cancel()
    await trio.testing.wait_all_tasks_blocked()


async def test_the_worker_is_told_to_abort_when_the_user_leaves() -> None:
    world = World()
    async with world.open() as user:
        await _leave(user, "t/cascade")
        assert (world.work.started, world.work.cancelled) == (1, 1)
        assert world.is_quiet


async def test_the_worker_goes_on_where_the_hub_asked_for_it() -> None:
    world = World()
    async with world.open() as user:
        await _leave(user, "t/survive")
        assert (world.work.running, world.work.cancelled) == (1, 0)
        user.connection.close()
        await trio.testing.wait_all_tasks_blocked()
        assert world.work.running == 1
        world.work.go.set()
        await trio.testing.wait_all_tasks_blocked()
        assert world.work.finished == 1
        assert world.is_quiet


async def test_it_ends_at_the_worker_with_the_hub() -> None:
    world = World()
    async with world.open() as user:
        await _leave(user, "t/survive")
        assert world.work.running == 1
        await world.hub.dispatcher.survivors.drain(trio.current_time())
        await trio.testing.wait_all_tasks_blocked()
        assert world.work.cancelled == 1
        assert world.is_quiet


@pytest.mark.parametrize("name", ["t/cascade", "t/survive"])
async def test_left_anywhere_no_node_keeps_an_orphan(name: str) -> None:
    world = World()
    world.work.go.set()
    async with world.open() as user:

        async def call() -> None:
            assert await user.call_as(str, name) == "done"

        async def after() -> None:
            await trio.testing.wait_all_tasks_blocked()
            assert world.is_quiet

        assert await cancel_at_every_checkpoint(call, after) >= 1

"""A call cancelled at any of its checkpoints leaves nothing on either side."""

from __future__ import annotations

from collections.abc import AsyncGenerator

import msgspec
import pytest
import trio

from alknet.call.codes import CallError
from alknet.call.session import CallSession
from alknet.core.limits import Limits
from alknet.testing.contract import cancel_at_every_checkpoint
from tests.call.sessions import CARRIERS, Operations, connections, is_idle, session_pair

both = pytest.mark.parametrize("carrier", CARRIERS)


def _operations() -> Operations:
    async def stroll(given: msgspec.Raw) -> object:
        for _ in range(3):
            await trio.lowlevel.checkpoint()
        return given

    async def amble(_given: msgspec.Raw) -> AsyncGenerator[object]:
        for n in range(3):
            await trio.testing.wait_all_tasks_blocked()  # so that each item is waited for
            yield n

    operations = Operations()
    operations.queries["test/stroll"] = stroll
    operations.subscriptions["test/amble"] = amble
    return operations


def _tasks() -> int:
    root = trio.lowlevel.current_root_task()
    assert root is not None
    todo, count = [root], 0
    while todo:
        task = todo.pop()
        count += 1
        todo.extend(child for nursery in task.child_nurseries for child in nursery.child_tasks)
    return count


async def _until_nothing_is_left(
    client: CallSession, server: CallSession, operations: Operations, tasks: int
) -> None:
    assert await is_idle(client, server)
    assert operations.running == 0
    assert len(client.lanes.streams) <= 1  # the shared one
    assert len(server.lanes.streams) <= 1
    assert _tasks() == tasks
    assert await client.call_as(int, "echo/unary", 1) == 1


@both
@pytest.mark.parametrize("size", [1, 300_000])
async def test_a_call_cancelled_anywhere_leaves_nothing(carrier: str, size: int) -> None:
    operations = _operations()
    async with session_pair(carrier, operations) as (client, server):
        await client.call("echo/unary")
        await trio.testing.wait_all_tasks_blocked()
        tasks = _tasks()
        text = "x" * size

        async def call() -> None:
            assert await client.call_as(str, "test/stroll", text) == text

        async def after() -> None:
            await _until_nothing_is_left(client, server, operations, tasks)

        assert await cancel_at_every_checkpoint(call, after) >= 1


@both
async def test_a_first_call_cancelled_anywhere_leaves_nothing(carrier: str) -> None:
    async def call() -> None:
        operations = _operations()
        async with session_pair(carrier, operations) as (client, _server):
            assert await client.call_as(int, "test/stroll", 1) == 1
        assert operations.running == 0

    tasks = _tasks()

    async def after() -> None:
        await trio.testing.wait_all_tasks_blocked()
        assert _tasks() == tasks

    assert await cancel_at_every_checkpoint(call, after) >= 3


@both
async def test_a_subscription_cancelled_anywhere_leaves_nothing(carrier: str) -> None:
    operations = _operations()
    async with session_pair(carrier, operations) as (client, server):
        await client.call("echo/unary")
        await trio.testing.wait_all_tasks_blocked()
        tasks = _tasks()

        async def subscribe() -> None:
            async with client.subscribe("test/amble") as items:
                assert [int(bytes(item)) async for item in items] == [0, 1, 2]

        async def after() -> None:
            await _until_nothing_is_left(client, server, operations, tasks)

        assert await cancel_at_every_checkpoint(subscribe, after) >= 4


async def test_a_cancelled_wait_for_an_item_loses_none() -> None:
    go = trio.Event()

    async def late(_given: msgspec.Raw) -> AsyncGenerator[object]:
        await go.wait()
        for n in range(3):
            yield n

    operations = Operations()
    operations.subscriptions["test/late"] = late
    async with session_pair("unix", operations) as (client, _server):
        async with client.subscribe("test/late") as items:
            with trio.move_on_after(0):
                await anext(items)
            go.set()
            assert [int(bytes(item)) async for item in items] == [0, 1, 2]


async def test_a_subscription_that_was_left_gives_nothing_more() -> None:
    async with session_pair("memory", _operations()) as (client, _server):
        async with client.subscribe("echo/endless") as items:
            await anext(items)
        with pytest.raises(CallError, match="ABORTED"):
            await anext(items)


@both
@pytest.mark.parametrize("pause", range(0, 24, 2))
async def test_who_calls_while_a_session_is_cancelled_gets_a_clear_error(
    carrier: str, pause: int
) -> None:
    errors: list[str] = []
    async with connections(carrier) as (dialer, acceptor), trio.open_nursery() as nursery:
        server = CallSession(acceptor, Operations(), limits=Limits())
        await nursery.start(server.run)
        client = CallSession(dialer, None, limits=Limits())
        scope = trio.CancelScope()

        async def run(task_status: trio.TaskStatus[None]) -> None:
            with scope:
                await client.run(task_status=task_status)

        async def call_on_and_on() -> None:
            while not errors or client.close_reason is None:
                try:
                    await client.call("echo/unary", 1)
                    async with client.subscribe("echo/stream", {"count": 1}) as items:
                        await anext(items)
                except CallError as exc:
                    errors.append(exc.code)
                await trio.lowlevel.checkpoint()

        await nursery.start(run)
        async with trio.open_nursery() as calling:
            for _ in range(3):
                calling.start_soon(call_on_and_on)
            for _ in range(pause):
                await trio.lowlevel.checkpoint()
            scope.cancel()
        nursery.cancel_scope.cancel()
    assert set(errors) == {"UNAVAILABLE"}


async def test_who_calls_in_a_scope_that_was_cancelled_with_the_session_is_cancelled() -> None:
    outcomes: list[type[BaseException]] = []

    async def call(client: CallSession) -> None:
        while client.close_reason is None:
            with trio.CancelScope(shield=True):  # the session ends meanwhile
                await trio.lowlevel.checkpoint()
        try:
            await client.call("echo/unary", 1)
        except BaseException as exc:
            outcomes.append(type(exc))
            raise

    async with connections("memory") as (dialer, _acceptor):
        client = CallSession(dialer, None, limits=Limits())
        async with trio.open_nursery() as nursery:
            await nursery.start(client.run)
            nursery.start_soon(call, client)
            nursery.cancel_scope.cancel()
    assert outcomes == [trio.Cancelled]

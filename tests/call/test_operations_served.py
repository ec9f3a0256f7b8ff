"""Operations served over a session: dispatcher, session and wire together."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import msgspec
import pytest
import trio

from alknet.call.builtin import echo_operations
from alknet.call.codes import CallError
from alknet.call.discovery import discovery_operations
from alknet.call.dispatch import OperationDispatcher
from alknet.call.operations import operation, public
from alknet.call.registry import Registry
from alknet.call.session import CallSession, open_session
from alknet.core.identity import ANONYMOUS, Identity
from alknet.core.limits import Limits
from alknet.testing.memory import memory_connection_pair
from alknet.testing.operations import FixedIdentities, FixedOwnership, key, peer

ended: list[str] = []


@operation("t/crash", access=public())
async def crash() -> int:
    raise ZeroDivisionError("hunter2")


@operation("t/forever", access=public())
async def forever() -> AsyncIterator[int]:
    try:
        yield 1
        await trio.sleep_forever()
    finally:
        ended.append("forever")


@asynccontextmanager
async def served(identity: Identity) -> AsyncIterator[CallSession]:
    """A caller's session with a node that serves a few operations."""
    registry = Registry([crash, forever, *echo_operations()])
    registry.extend(discovery_operations(registry), builtin=True)
    dispatcher = OperationDispatcher(
        registry,
        identities=FixedIdentities({"token": key("k", "echo")}),
        ownership=FixedOwnership(),
        limits=Limits(),
    )
    async with memory_connection_pair() as (dialer, acceptor):
        acceptor.identity = identity
        server = CallSession(acceptor, dispatcher, limits=Limits())
        async with trio.open_nursery() as nursery:
            nursery.start_soon(server.run)
            async with open_session(dialer, limits=Limits()) as caller:
                yield caller
            nursery.cancel_scope.cancel()


async def test_calls_and_subscriptions() -> None:
    async with served(peer("p", "echo")) as caller:
        output = await caller.call("/echo/unary", {"message": [1, None]})
        assert msgspec.json.decode(output) == {"message": [1, None]}
        async with caller.subscribe("echo/stream", {"count": 3}) as items:
            assert [msgspec.json.decode(item)["n"] async for item in items] == [0, 1, 2]


async def test_list_differs_by_caller() -> None:
    async def names(identity: Identity) -> set[str]:
        async with served(identity) as caller:
            listed = msgspec.json.decode(await caller.call("services/list"))
            return {entry["name"] for entry in listed["operations"]}

    assert await names(peer("p", "echo")) - await names(ANONYMOUS) == {
        f"echo/{name}" for name in ("unary", "stream", "upload", "bidi")
    }


async def test_a_token_serves_one_request() -> None:
    async with served(ANONYMOUS) as caller:
        await caller.call("echo/unary", {"message": 1}, token="token")
        with pytest.raises(CallError, match="FORBIDDEN: authentication required"):
            await caller.call("echo/unary", {"message": 1})
        with pytest.raises(CallError, match="FORBIDDEN: token refused"):
            await caller.call("services/list", token="bad")


async def test_errors_leave_the_session_alive() -> None:
    async with served(peer("p", "echo")) as caller:
        with pytest.raises(CallError, match="INTERNAL") as crashed:
            await caller.call("t/crash")
        assert crashed.value.correlation_id is not None
        assert "hunter2" not in str(crashed.value)
        with pytest.raises(CallError) as invalid:
            await caller.call("echo/unary", {"message": 1, "delay_ms": "soon"})
        assert invalid.value.details == {"path": "/delay_ms"}
        with pytest.raises(CallError, match="NOT_FOUND"):
            await caller.call("t/none")
        await caller.call("echo/unary", {"message": 1})


async def test_leaving_a_subscription_ends_its_handler() -> None:
    ended.clear()
    async with served(peer("p")) as caller:
        async with caller.subscribe("t/forever") as items:
            assert bytes(await anext(items)) == b"1"
        await trio.testing.wait_all_tasks_blocked()
        assert ended == ["forever"]

"""Operations that call others: reach, authority, origin, deadlines, cancellation."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import msgspec
import pytest
import trio

from alknet.call.codes import CallError
from alknet.call.context import Context
from alknet.call.discovery import discovery_operations
from alknet.call.dispatch import OperationDispatcher
from alknet.call.operations import (
    CompositionAuthority,
    Operation,
    operation,
    public,
    resource,
    scopes,
)
from alknet.call.registry import Registry
from alknet.call.session import CallSession, open_session
from alknet.core.identity import OWNER, Grant, Identity
from alknet.core.limits import Limits
from alknet.errors import LocalError
from alknet.testing.contract import cancel_at_every_checkpoint
from alknet.testing.memory import memory_connection_pair
from alknet.testing.operations import FixedIdentities, FixedOwnership, call_operation, peer

READER = CompositionAuthority("reader", ("fs:read",), (Grant("share", "photos"),))


class Share(msgspec.Struct):
    share: str


@operation("t/whoami", access=public(), internal=True)
async def whoami(ctx: Context) -> list[str | None]:
    origin = None if ctx.forwarded_for is None else ctx.forwarded_for.id
    return [ctx.identity.id, origin, ctx.info.parent_id, ctx.traceparent]


@operation("t/read", access=scopes("fs:read"), internal=True)
async def read(ctx: Context) -> list[str | None]:
    return await whoami(ctx)


@operation("t/share", access=resource("share"), resource_id_path="/share")
async def share(wanted: Share) -> str:
    return wanted.share


@operation("t/count", access=public(), internal=True)
async def count() -> AsyncIterator[int]:
    for n in range(3):
        yield n


async def _call(ctx: Context, name: str, given: object = None) -> Any:
    """Call a child, and say to the caller what it says."""
    try:
        return msgspec.json.decode(await ctx.call(name, given))
    except CallError as exc:
        raise CallError(exc.code, exc.message, details=exc.details) from exc


@operation("t/parent", access=public(), calls=["t/read", "t/share"], authority=READER)
async def parent(ctx: Context, name: str) -> Any:
    return await _call(ctx, name, {"share": "photos"} if name == "t/share" else None)


@operation("t/powerless", access=public(), calls=["t/read", "t/whoami", "t/parent"])
async def powerless(ctx: Context, name: str) -> Any:
    given = "t/read" if name == "t/parent" else None
    return await _call(ctx, "/" + name, given)


@operation("t/sum", access=public(), calls=["t/count"])
async def total(ctx: Context) -> int:
    async with ctx.subscribe("t/count") as items:
        return sum([msgspec.json.decode(item, type=int) async for item in items])


@asynccontextmanager
async def served(
    *operations: Operation[..., Any], identity: Identity = OWNER
) -> AsyncGenerator[CallSession]:
    registry = Registry([whoami, read, share, count, parent, powerless, total, *operations])
    registry.extend(discovery_operations(registry), builtin=True)
    dispatcher = OperationDispatcher(
        registry, identities=FixedIdentities(), ownership=FixedOwnership(), limits=Limits()
    )
    async with memory_connection_pair() as (dialer, acceptor), trio.open_nursery() as nursery:
        acceptor.identity = identity
        nursery.start_soon(CallSession(acceptor, dispatcher, limits=Limits()).run)
        async with open_session(dialer, limits=Limits()) as caller:
            yield caller
        nursery.cancel_scope.cancel()


async def _fails(session: CallSession, name: str, given: object = None) -> CallError:
    with pytest.raises(CallError) as caught:
        await session.call(name, given)
    return caught.value


async def test_the_parents_authority_decides_and_the_origin_is_told() -> None:
    trace = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
    async with served(identity=peer("bob")) as session:
        got = await session.call("t/parent", "t/read", traceparent=trace)
        assert msgspec.json.decode(got) == ["op:reader", "peer:bob", "d1", trace]
        assert await session.call_as(str, "t/parent", "t/share") == "photos"
        # Through two operations, the second with its own authority, the origin stays.
        nested = await session.call_as(list[str | None], "t/powerless", "t/parent")
        assert nested[:2] == ["op:reader", "peer:bob"]


async def test_neither_the_callers_rights_nor_the_owners_help_a_parent() -> None:
    for identity in (OWNER, peer("bob", "*"), peer("bob", "fs:read")):
        async with served(identity=identity) as session:
            assert (await _fails(session, "t/powerless", "t/read")).code == "FORBIDDEN"
            got = await session.call_as(list[str | None], "t/powerless", "t/whoami")
            assert got[:2] == ["anonymous", identity.id]


async def test_what_is_not_declared_looks_missing() -> None:
    async with served() as session:
        hidden = await _fails(session, "t/parent", "t/whoami")
        missing = await _fails(session, "t/parent", "t/nothing")
        assert (hidden.code, missing.code) == ("NOT_FOUND", "NOT_FOUND")
        assert hidden.message.replace("whoami", "nothing") == missing.message
        assert hidden.details == missing.details
        outside = await _fails(session, "t/whoami")
        assert outside.message == hidden.message
        listed = await session.call("services/list")
        assert b"t/whoami" not in bytes(listed)


async def test_subscriptions_and_batches_compose() -> None:
    @operation("t/both", access=public(), calls=["t/whoami", "t/sum", "t/read"])
    async def both(ctx: Context, names: list[str]) -> list[Any]:
        outputs = await ctx.batch([(name, None) for name in names])
        return [msgspec.json.decode(output) for output in outputs]

    async with served(both) as session:
        assert await session.call_as(int, "t/sum") == 3
        first, second = await session.call_as(list[Any], "t/both", ["t/sum", "t/whoami"])
        assert (first, second[1]) == (3, "owner")
        assert await session.call_as(list[Any], "t/both", []) == []
        assert (await _fails(session, "t/both", ["t/sum", "t/read"])).code == "INTERNAL"


async def test_a_call_of_the_wrong_kind_runs_nothing() -> None:
    @operation("t/wrong", access=public(), calls=["t/count", "t/whoami"])
    async def wrong(ctx: Context) -> str:
        with pytest.raises(CallError, match="INVALID_OPERATION_TYPE"):
            await ctx.call("t/count")
        with pytest.raises(CallError, match="INVALID_OPERATION_TYPE"):
            async with ctx.subscribe("t/whoami"):
                pass
        return "ok"

    async with served(wrong) as session:
        assert await session.call_as(str, "t/wrong") == "ok"


async def test_calls_without_end_end() -> None:
    @operation("t/again", access=public(), calls=["t/again"])
    async def again(ctx: Context) -> int:
        return msgspec.json.decode(await ctx.call("t/again"), type=int)

    async with served(again) as session:
        assert (await _fails(session, "t/again")).code == "RESOURCE_EXHAUSTED"


async def test_a_child_ends_at_its_own_deadline_and_with_its_parent(
    autojump_clock: trio.testing.MockClock,
) -> None:
    running = 0

    @operation("t/slow", access=public(), internal=True, max_duration_s=5)
    async def slow() -> None:
        nonlocal running
        running += 1
        try:
            await trio.sleep(100)
        finally:
            running -= 1

    @operation("t/waits", access=public(), calls=["t/slow"])
    async def waits(ctx: Context) -> None:
        await ctx.call("t/slow")

    async with served(slow, waits) as session:
        assert (await _fails(session, "t/waits")).code == "TIMEOUT"
        assert trio.current_time() == pytest.approx(5, abs=0.1)
        with trio.move_on_after(1):
            await session.call("t/waits")
        await trio.testing.wait_all_tasks_blocked()
        assert running == 0


async def test_composed_calls_cancelled_anywhere_leave_nothing() -> None:
    running = 0

    @operation("t/step", access=public(), internal=True)
    async def step() -> None:
        nonlocal running
        running += 1
        try:
            await trio.lowlevel.checkpoint()
        finally:
            running -= 1

    @operation("t/steps", access=public(), calls=["t/step", "t/sum"])
    async def steps(ctx: Context) -> None:
        await ctx.batch([("t/step", None)] * 3 + [("t/sum", None)])
        await ctx.call("t/step")

    async with served(step, steps) as session:

        async def call() -> None:
            await session.call("t/steps")

        async def after() -> None:
            await trio.testing.wait_all_tasks_blocked()
            assert running == 0

        assert await cancel_at_every_checkpoint(call, after) >= 1


async def test_an_operation_that_declares_no_calls_reaches_nothing() -> None:
    @operation("t/alone", access=public())
    async def alone(ctx: Context) -> None:
        await _call(ctx, "t/sum")

    with pytest.raises(CallError, match="NOT_FOUND"):
        await call_operation(alone)


def test_bad_declarations_are_refused() -> None:
    with pytest.raises(LocalError, match="label"):
        CompositionAuthority("No Label")
    with pytest.raises(LocalError, match="no leading slash"):
        operation("t/x", access=public(), calls=["/t/y"])(whoami.__wrapped__)

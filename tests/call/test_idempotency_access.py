"""A retry is judged like any request before it gets the first answer."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

import msgspec
import pytest
import trio

from alknet.call.codes import CallError
from alknet.call.context import Context
from alknet.call.dispatch import OperationDispatcher
from alknet.call.operations import operation, scopes
from alknet.call.registry import Registry
from alknet.call.session import CallSession
from alknet.core.identity import Identity
from alknet.core.limits import Limits
from alknet.testing.operations import FixedIdentities, FixedOwnership
from tests.call.sessions import connections

BUYER = Identity("peer:w1", ("shop",))


class Order(msgspec.Struct):
    count: int = 1


@asynccontextmanager
async def shop() -> AsyncGenerator[tuple[CallSession, CallSession, list[str], FixedIdentities]]:
    """Yield a caller, the session that serves it, what was sold to whom, and the tokens."""
    sold: list[str] = []

    @operation("shop/buy", access=scopes("shop"), mutation=True)
    async def buy(ctx: Context, order: Order) -> int:
        sold.append(ctx.identity.id)
        return len(sold)

    registry = Registry()
    registry.add(buy)
    identities = FixedIdentities({"t": Identity("key:t", ("shop",))})
    dispatcher = OperationDispatcher(
        registry, identities=identities, ownership=FixedOwnership(), limits=Limits()
    )
    async with (
        connections("memory", identity=BUYER) as (dialer, acceptor),
        trio.open_nursery() as nursery,
    ):
        client = CallSession(dialer, None, limits=Limits())
        server = CallSession(acceptor, dispatcher, limits=Limits())
        await nursery.start(client.run)
        await nursery.start(server.run)
        yield client, server, sold, identities
        nursery.cancel_scope.cancel()


async def test_a_right_that_was_lost_in_between_is_missed() -> None:
    async with shop() as (client, server, sold, _identities):
        assert await client.call_as(int, "shop/buy", idempotency_key="k") == 1
        server.connection.identity = Identity(BUYER.id, ())
        with pytest.raises(CallError, match="FORBIDDEN"):
            await client.call("shop/buy", idempotency_key="k")
        server.connection.identity = BUYER
        assert await client.call_as(int, "shop/buy", idempotency_key="k") == 1
    assert sold == [BUYER.id]


async def test_a_token_that_was_revoked_in_between_is_refused() -> None:
    async with shop() as (client, _server, sold, identities):
        assert await client.call_as(int, "shop/buy", idempotency_key="k", token="t") == 1
        identities.tokens = {}
        with pytest.raises(CallError, match="token refused"):
            await client.call("shop/buy", idempotency_key="k", token="t")
    assert sold == ["key:t"]


async def test_what_was_refused_leaves_the_key_free() -> None:
    async with shop() as (client, _server, sold, _identities):
        with pytest.raises(CallError, match="INVALID_INPUT"):
            await client.call("shop/buy", {"count": "x"}, idempotency_key="k")
        assert await client.call_as(int, "shop/buy", {"count": 2}, idempotency_key="k") == 1
    assert len(sold) == 1

from __future__ import annotations

from collections.abc import AsyncIterator

import msgspec
import pytest
import trio

from alknet.call.context import Context
from alknet.call.operations import operation, resource
from alknet.call.registry import Registry
from alknet.errors import LocalError
from alknet.testing.operations import (
    FixedIdentities,
    FixedOwnership,
    assert_list_operations_filter,
    call_operation,
    collect_items,
    key,
    peer,
)


class Query(msgspec.Struct):
    word: str


@operation("box/list", access=resource("box", scopes_all=["box"]))
async def filtered(ctx: Context) -> list[str]:
    return ctx.visible("box", ["b1", "b2"])


@operation("box/leak", access=resource("box", scopes_all=["box"]))
async def leaking() -> list[str]:
    return ["b1", "b2"]


@operation("box/other", access=resource("box", scopes_any=["box", "crate"]))
async def other_type(ctx: Context) -> list[str]:
    return ctx.visible("jar", ["j1"])


@operation("box/watch", access=resource("box", scopes_all=["box"]))
async def watching(ctx: Context) -> AsyncIterator[list[str]]:
    while True:
        yield ctx.visible("box", ["b1"])


@operation("box/leak-watch", access=resource("box", scopes_all=["box"]))
async def leaking_watch() -> AsyncIterator[str]:
    yield "b1"


@operation("box/search", access=resource("box", scopes_all=["box"]))
async def search(ctx: Context, query: Query) -> list[str]:
    return ctx.visible("box", [query.word])


@operation("box/late", access=resource("box", scopes_all=["box"]))
async def late(ctx: Context) -> list[str]:
    await trio.Event().wait()
    return ctx.visible("box", [])


@operation("box/leak-inside", internal=True, access=resource("box", scopes_all=["box"]))
async def leaking_inside() -> list[str]:
    return ["b1"]


async def test_filtering_lists_pass() -> None:
    await assert_list_operations_filter(
        Registry([filtered, watching, search]), {"box/search": {"word": "b1"}}
    )


@pytest.mark.parametrize("bad", [leaking, other_type, leaking_watch, leaking_inside])
async def test_a_list_that_never_asks_fails(bad: object) -> None:
    with pytest.raises(AssertionError, match="does not ask"):
        await assert_list_operations_filter(Registry([filtered, bad]))  # type: ignore[list-item]


async def test_a_list_that_cannot_be_run_fails() -> None:
    with pytest.raises(AssertionError, match=r"box/search.*INVALID_INPUT"):
        await assert_list_operations_filter(Registry([search]))


async def test_a_list_that_never_answers_fails(
    autojump_clock: trio.testing.MockClock,
) -> None:
    with pytest.raises(AssertionError, match="does not ask"):
        await assert_list_operations_filter(Registry([late]))


async def test_runs_as_the_identity_that_is_given() -> None:
    ownership = FixedOwnership({("peer:p", "box", "b2")})
    assert await call_operation(filtered) == ["b1", "b2"]
    assert await call_operation(filtered, identity=peer("p", "box"), ownership=ownership) == ["b2"]
    assert await call_operation(filtered, identity=key("k", "box", grants=["box:b1"])) == ["b1"]


async def test_collects_as_many_items_as_wanted() -> None:
    assert await collect_items(watching, limit=2) == [["b1"], ["b1"]]
    assert await collect_items(watching, limit=0) == []


async def test_internal_operations_have_no_callers() -> None:
    with pytest.raises(LocalError, match="internal"):
        await call_operation(leaking_inside)


def test_fixed_ownership_lists_what_is_owned() -> None:
    ownership = FixedOwnership({("a", "box", "2"), ("a", "box", "1"), ("b", "box", "3")})
    assert ownership.owned("a", "box") == ["1", "2"]
    assert ownership.owned("a", "jar") == []


async def test_fixed_identities_never_change(autojump_clock: trio.testing.MockClock) -> None:
    identities = FixedIdentities({"t": peer("p")})
    assert identities.identify_token("t") == peer("p")
    assert await identities.wait_changed(0) == identities.version
    with pytest.raises(trio.TooSlowError), trio.fail_after(10):
        await identities.wait_changed(identities.version)

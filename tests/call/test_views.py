from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any, cast

import msgspec
import pytest
import trio
import trio.testing

from alknet.call.codes import CallError
from alknet.call.context import CallInfo, Context, Remote
from alknet.call.discovery import (
    WATCH_INTERVAL_S,
    OperationsVersion,
    describe_fully,
    discovery_operations,
)
from alknet.call.dispatch import OperationDispatcher
from alknet.call.operations import Operation, operation, public, scopes
from alknet.call.registry import Registry
from alknet.call.session import CallSession
from alknet.call.views import MOST_VIEWS, MOST_WATCHES, OperationViews
from alknet.core.identity import ANONYMOUS, OWNER, ApiKey, Identity, Peer
from alknet.core.limits import Limits
from alknet.stores.memory import MemoryIdentityStore
from alknet.testing.memory import memory_connection_pair
from alknet.testing.operations import (
    FixedIdentities,
    FixedOwnership,
    call_operation,
    key,
    peer,
)


@operation("m/open", access=public())
async def everybody() -> int:
    return 1


@operation("m/scoped", access=scopes("m"))
async def scoped() -> int:
    return 1


@operation("m/late", access=scopes("m"))
async def late() -> int:
    return 1


class Watch:
    """A subscription to ``services/watch``, item by item."""

    def __init__(self, items: AsyncGenerator[object, None]) -> None:
        self._items = items

    async def next(self) -> str:
        return cast("OperationsVersion", await anext(self._items)).version

    async def has_ended(self) -> bool:
        return await anext(self._items, None) is None


@asynccontextmanager
async def watching(
    registry: Registry, identity: Identity, views: OperationViews | None = None
) -> AsyncGenerator[Watch]:
    watch = discovery_operations(registry, views)[2]
    info = CallInfo(
        request_id="d1",
        operation="services/watch",
        identity=identity,
        remote=Remote("memory", None, "memory"),
    )
    items = watch.iterate(Context(info, FixedOwnership()), None)
    try:
        yield Watch(items)
    finally:
        await items.aclose()


def versions(registry: Registry, *identities: Identity) -> list[str]:
    views = OperationViews(registry, describe_fully)
    return [views.version(identity) for identity in identities]


def test_a_version_is_of_what_the_caller_may_call() -> None:
    registry = Registry([everybody, scoped])
    strange, with_scope, other, all_of_it = versions(
        registry, ANONYMOUS, peer("p", "m"), key("abcdefgh", "x"), OWNER
    )
    assert strange == other
    assert with_scope == all_of_it != strange


def test_a_version_stays_over_a_restart_and_changes_with_the_rules() -> None:
    first = versions(Registry([everybody, scoped]), OWNER)
    assert versions(Registry([scoped, everybody]), OWNER) == first
    stricter = scoped.replace_spec(msgspec.structs.replace(scoped.spec, access=scopes("m", "n")))
    assert versions(Registry([everybody, stricter]), OWNER) != first


def test_versions_of_few_callers_are_remembered() -> None:
    registry = Registry([scoped])
    views = OperationViews(registry, describe_fully)
    for n in range(MOST_VIEWS + 10):
        views.version(peer("p", f"s{n}"))
    assert len(views._views) <= MOST_VIEWS


async def test_the_list_says_the_version_that_the_watch_does() -> None:
    registry = Registry([everybody, scoped])
    found = discovery_operations(registry)
    registry.extend(found, builtin=True)
    listed = await call_operation(found[0], {"prefix": "m/"}, identity=peer("p", "m"))
    async with watching(registry, peer("p", "m")) as watch:
        assert await watch.next() == listed["version"]


async def test_a_change_is_told_at_once_and_what_changes_nothing_is_not(
    autojump_clock: trio.testing.MockClock,
) -> None:
    registry = Registry([everybody])
    async with watching(registry, peer("p", "m")) as watch:
        before = await watch.next()
        await trio.sleep(10)
        registry.changes.ring()
        with trio.move_on_after(60) as nothing_came:
            await watch.next()
        assert nothing_came.cancelled_caught
    async with watching(registry, peer("p", "m")) as watch:
        assert await watch.next() == before
        await _add(registry, late)
        started_at = trio.current_time()
        assert await watch.next() != before
        assert trio.current_time() - started_at < WATCH_INTERVAL_S + 0.01


async def test_a_flood_of_changes_costs_a_message_an_interval(
    autojump_clock: trio.testing.MockClock, nursery: trio.Nursery
) -> None:
    registry = Registry([everybody])
    flood = [_named(n) for n in range(1000)]

    async def change_on_and_on() -> None:
        for one in flood:
            registry.add(one)
            registry.changes.ring()
            await trio.sleep(0.001)

    nursery.start_soon(change_on_and_on)
    told = 0
    async with watching(registry, OWNER) as watch:
        with trio.move_on_after(5):
            while True:
                await watch.next()
                told += 1
    assert 2 <= told <= 1 / WATCH_INTERVAL_S + 2


async def one_peer(
    nursery: trio.Nursery,
) -> tuple[MemoryIdentityStore, Registry, OperationViews]:
    """Return views of an open operation and a closed one, that follow the rights of peer "p"."""
    identities = MemoryIdentityStore([])
    await identities.put_peer(Peer(name="p"))
    registry = Registry([everybody, scoped])
    views = OperationViews(registry, describe_fully, identities)
    nursery.start_soon(views.follow_rights)
    return identities, registry, views


async def test_a_watcher_hears_that_its_rights_changed(
    autojump_clock: trio.testing.MockClock, nursery: trio.Nursery
) -> None:
    identities, registry, views = await one_peer(nursery)
    async with watching(registry, peer("p"), views) as watch:
        few = await watch.next()
        await identities.update_peer(Peer(name="p", scopes=("m",)))
        more = await watch.next()
        assert more == versions(registry, OWNER)[0] != few
        await identities.remove_peer("p")
        assert await watch.has_ended()
    nursery.cancel_scope.cancel()


async def test_rights_that_were_given_and_taken_back_before_a_look_are_told(
    autojump_clock: trio.testing.MockClock, nursery: trio.Nursery
) -> None:
    identities, registry, views = await one_peer(nursery)
    await trio.testing.wait_all_tasks_blocked()
    await identities.put_peer(Peer(name="q"))
    await trio.testing.wait_all_tasks_blocked()  # the next look is some time off
    await identities.update_peer(Peer(name="p", scopes=("m",)))
    async with watching(registry, peer("p"), views) as watch:
        more = await watch.next()
        await identities.update_peer(Peer(name="p"))
        with trio.fail_after(5):
            few = await watch.next()
        assert more == versions(registry, OWNER)[0] != few
    nursery.cancel_scope.cancel()


async def test_rights_of_others_wake_nobody(
    autojump_clock: trio.testing.MockClock, nursery: trio.Nursery
) -> None:
    identities = MemoryIdentityStore([])
    for name in ("p", "q"):
        await identities.put_peer(Peer(name=name))
    registry = Registry([everybody])
    views = OperationViews(registry, describe_fully, identities)
    nursery.start_soon(views.follow_rights)
    with views.watched(peer("p")) as rights, views.watched(peer("p")) as again:
        await trio.testing.wait_all_tasks_blocked()
        await identities.update_peer(Peer(name="q", scopes=("m",)))
        await trio.sleep(1)
        assert rights.version == registry.changes.version == 0
        assert again is rights
        await identities.update_peer(Peer(name="p", scopes=("m",)))
        await trio.sleep(1)
        assert rights.version == 1
        token = ApiKey(prefix="ybndrfg8", name="t", hash=bytes(32), scopes=("m",))
        await identities.put_api_key(token)
        assert views.current(key("ybndrfg8")) == key("ybndrfg8", "m")
        assert views.current(key("aaaaaaaa")) is None
    assert not views._watched
    nursery.cancel_scope.cancel()


async def test_a_connection_has_few_watches_at_a_time() -> None:
    registry = Registry([everybody])
    registry.extend(discovery_operations(registry), builtin=True)
    dispatcher = OperationDispatcher(
        registry, identities=FixedIdentities(), ownership=FixedOwnership(), limits=Limits()
    )
    async with memory_connection_pair() as (out, in_), trio.open_nursery() as nursery:
        client, server = (
            CallSession(out, None, limits=Limits()),
            CallSession(in_, dispatcher, limits=Limits()),
        )
        await nursery.start(client.run)
        await nursery.start(server.run)
        for _ in range(2):  # what was left makes room
            async with AsyncExitStack() as stack:
                for _ in range(MOST_WATCHES):
                    watch = client.subscribe("services/watch")
                    await anext(await stack.enter_async_context(watch))
                more = await stack.enter_async_context(client.subscribe("services/watch"))
                with pytest.raises(CallError, match="RESOURCE_EXHAUSTED"):
                    await anext(more)
            await trio.testing.wait_all_tasks_blocked()
        nursery.cancel_scope.cancel()


async def test_watches_end_when_the_node_does(autojump_clock: trio.testing.MockClock) -> None:
    registry = Registry([everybody])
    views = OperationViews(registry, describe_fully)
    async with watching(registry, OWNER, views) as watch:
        await watch.next()
        views.end()
        assert await watch.has_ended()


async def _add(registry: Registry, *operations: Operation[..., Any]) -> None:
    registry.extend(operations)
    registry.changes.ring()
    await trio.lowlevel.checkpoint()


def _named(n: int) -> Operation[..., Any]:
    return everybody.replace_spec(msgspec.structs.replace(everybody.spec, name=f"m/n{n}"))

"""docs/reference/visibility.md: who really finds which operation, asked of nodes in memory."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import msgspec
import trio

from alknet.call.codes import CallError
from alknet.call.context import Context
from alknet.call.operations import CompositionAuthority, operation, public, scopes
from alknet.call.peers.reference import PeerRef
from alknet.call.session import CallSession
from alknet.core.identity import ANONYMOUS, OWNER
from alknet.testing.operations import peer
from tests.call.peers.federated import MemoryNode, World, open_world, rule
from tests.docs.pages.markdown import GENERATED, table

__all__ = ["page"]

_YES = "**yes**"

_READER = CompositionAuthority("reader", ("fs:read",))


class _Asked(msgspec.Struct):
    """Which operation a handler is to call, and where."""

    name: str
    peer: str | None = None


@operation("t/public", access=public())
async def _public() -> None: ...


@operation("t/scoped", access=scopes("fs:read"))
async def _scoped() -> None: ...


@operation("t/inner", access=public(), internal=True)
async def _inner() -> None: ...


@operation("s/tool", access=public())
async def _tool() -> None: ...


@operation("s/inner", access=public(), internal=True)
async def _inner_tool() -> None: ...


@operation("s/own", access=public())
async def _own() -> None: ...


@operation("far/work", access=public())
async def _work() -> None: ...


@operation("far/shared", access=public())
async def _shared() -> None: ...


@operation("ask/nobody", access=public(), authority=_READER)
async def _ask_nobody(ctx: Context, asked: _Asked) -> str:
    return await _answer(ctx, asked)


@operation(
    "ask/declared",
    access=public(),
    authority=_READER,
    calls=["t/public", "t/scoped", "t/inner", "@w1/far/work", "@w1/far/shared"],
)
async def _ask_declared(ctx: Context, asked: _Asked) -> str:
    return await _answer(ctx, asked)


@operation("ask/session", access=public(), authority=_READER)
async def _ask_session(ctx: Context, asked: _Asked) -> str:
    overlay = ctx.session_overlay()
    if not overlay:
        overlay.add(_tool, _inner_tool)
    return await _answer(ctx, asked)


@operation("ask/overlay", access=public(), authority=_READER)
async def _ask_overlay(ctx: Context, asked: _Asked) -> AsyncIterator[str]:
    async with ctx.overlay(_own):
        yield await _answer(ctx, asked)
        await trio.sleep_forever()


_ASKING = (_ask_nobody, _ask_declared, _ask_session, _ask_overlay)

# The operation, and by which route it is called.
_OPERATIONS = {
    "`access=public()`": ("t/public", None),
    '`access=scopes("fs:read")`': ("t/scoped", None),
    "`internal=True`": ("t/inner", None),
    "added to the session": ("s/tool", None),
    "added to the session, `internal=True`": ("s/inner", None),
    "added by a handler for its own call": ("s/own", None),
    "of the peer `w1`, asked for here": ("far/work", None),
    "of the peer `w1`, by the route `@w1`": ("far/work", "w1"),
    "the same, with a `[[re_export]]` for `fs:read`": ("far/shared", "w1"),
    "there is none of that name": ("t/none", None),
}
_CALLERS = {
    "a stranger": ANONYMOUS,
    "a peer without scopes": peer("bob"),
    "a peer with `fs:read`": peer("ann", "fs:read"),
    "the owner": OWNER,
}
_ANOTHER = "the same peer, on another connection"
_HANDLERS = {
    "that declares nothing": "ask/nobody",
    "that declares it in `calls`": "ask/declared",
    "that has added to the session": "ask/session",
    "that has added for itself": "ask/overlay",
}


def page() -> str:
    """Return the page."""
    from_outside, from_handlers = trio.run(_tables)
    return f"""{GENERATED}
# Visibility

An operation that a caller cannot reach looks as if there were none, whatever is asked: a call gives
`NOT_FOUND`, `services/list` leaves it out, and `services/schema` gives `NOT_FOUND`, each to the
byte as for a name that nobody has. What a caller could reach, but lacks the scopes for, is
`FORBIDDEN` and not listed.

- Names are looked up among the operations of the node, then among those that were added to the
  session ([how](composition.md#operations-that-a-handler-adds)). Never at a peer.
- Operations of peers are reached by a route alone: by the owner, by others where `[[re_export]]`
  says so, and by handlers that declare them.
- Internal operations are for other operations of the node, that declare them.

Each cell was asked for when this page was made.

## For callers

**yes**: it can be called, `services/list` shows it, and `services/schema` describes it. An error:
the call gives that, it is not listed, and its schema is `NOT_FOUND`. Else a cell says all three.

{from_outside}
## For handlers

What the call of an operation gets whose own authority has `fs:read`:

{from_handlers}
A handler with an overlay sees its own alone. What is added while the node runs cannot be declared
in `calls` of an operation of the node, which would not start.
"""


async def _tables() -> tuple[str, str]:
    hub = MemoryNode(
        "hub",
        [_public, _scoped, _inner, *_ASKING],
        rules=[rule("w1", "far/shared", scopes=["fs:read"])],
    )
    worker = MemoryNode("w1", [_work, _shared])
    async with open_world(hub, worker) as world:
        await world.link(worker, hub)
        return await _from_outside(world, hub), await _from_handlers(world, hub)


async def _from_outside(world: World, hub: MemoryNode) -> str:
    columns: dict[str, list[str]] = {}
    for who, identity in _CALLERS.items():
        session = await world.client(hub, identity)
        await session.call("ask/session", _Asked("t/none"))
        async with session.subscribe("ask/overlay", _Asked("t/none")) as items:
            await anext(items)
            columns[who] = await _column(session)
        if who == "a peer with `fs:read`":
            columns[_ANOTHER] = await _column(await world.client(hub, identity))
    rows = zip(_OPERATIONS, *columns.values(), strict=True)
    return table(("the operation", *columns), list(rows))


async def _column(session: CallSession) -> list[str]:
    listed = await session.call_as(dict[str, Any], "services/list")
    names = {entry["name"] for entry in listed["operations"]}
    return [
        _cell(
            await _called(session, name, route),
            is_listed=name in names,
            is_described=await _is_described(session, name),
        )
        for name, route in _OPERATIONS.values()
    ]


def _cell(answer: str, *, is_listed: bool, is_described: bool) -> str:
    if is_listed == is_described == (answer == _YES):
        return answer
    lists = "listed" if is_listed else "not listed"
    return f"{answer}, {lists}, {'' if is_described else 'not '}described"


async def _called(session: CallSession, name: str, route: str | None) -> str:
    try:
        await session.call(name, peer=None if route is None else (route,))
    except CallError as exc:
        return exc.code
    return _YES


async def _is_described(session: CallSession, name: str) -> bool:
    try:
        await session.call("services/schema", {"name": name})
    except CallError:
        return False
    return True


async def _from_handlers(world: World, hub: MemoryNode) -> str:
    session = await world.client(hub, peer("ann", "fs:read"))
    rows = []
    for what, (name, route) in _OPERATIONS.items():
        answers = [
            await _asked(session, handler, _Asked(name, route)) for handler in _HANDLERS.values()
        ]
        rows.append((what, *answers))
    return table(("the operation", *(f"a handler {how}" for how in _HANDLERS)), rows)


async def _asked(session: CallSession, handler: str, asked: _Asked) -> str:
    if handler != "ask/overlay":
        return await session.call_as(str, handler, asked)
    async with session.subscribe_as(str, handler, asked) as answers:
        return await anext(answers)


async def _answer(ctx: Context, asked: _Asked) -> str:
    ref = None if asked.peer is None else PeerRef.specific(asked.peer)
    try:
        await ctx.call(asked.name, peer=ref)
    except CallError as exc:
        return exc.code
    return _YES

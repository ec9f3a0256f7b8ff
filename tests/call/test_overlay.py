"""Operations with a lifetime: who sees them, what they may, and how they end."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from typing import Any

import msgspec
import pytest
import trio

from alknet.call.codes import CallError
from alknet.call.context import Context
from alknet.call.dispatch import OperationDispatcher
from alknet.call.operations import CompositionAuthority, Operation, operation, public, scopes
from alknet.call.overlay import MOST_OPERATIONS, Overlay
from alknet.call.proto.events import Requested
from alknet.call.registry import Registry
from alknet.call.session import CallSession
from alknet.core.identity import Grant
from alknet.core.limits import Limits
from alknet.errors import Conflict, LocalError
from alknet.testing.contract import cancel_at_every_checkpoint
from alknet.testing.memory import memory_connection_pair
from alknet.testing.operations import FixedIdentities, FixedOwnership, call_operation, peer
from tests.call.nodes import Hop, open_hop

AGENT = CompositionAuthority("agent", ("fs:*", "net:get"), (Grant("share", "photos"),))


@operation("t/read", access=scopes("fs:read"), internal=True)
async def read(ctx: Context) -> str:
    return ctx.identity.id


@operation("t/other", access=public(), calls=["t/ask"])
async def other(ctx: Context) -> Any:
    return await _ask(ctx, "tools/whoami")


@operation("t/ask", access=public(), internal=True)
async def ask() -> str:
    return "asked"


@operation("tools/whoami", access=scopes("fs:read"))
async def whoami(ctx: Context) -> list[str | None]:
    """Say who asks."""
    return [ctx.identity.id, None if ctx.forwarded_for is None else ctx.forwarded_for.id]


@operation("tools/hidden", access=public(), internal=True)
async def hidden() -> str:
    return "hidden"


async def _ask(ctx: Context, name: str, given: object = None) -> Any:
    """Call *name*, and return its output or the code of its error."""
    try:
        return msgspec.json.decode(await ctx.call(name, given))
    except CallError as exc:
        return exc.code


async def _run(body: Any, *beside: Operation[..., Any], secrets: Sequence[str] = ()) -> Any:
    """Run *body* as the handler of an agent's operation."""

    @operation(
        "t/agent",
        access=public(),
        calls=["t/read", "t/other", "@any/far/off"],
        authority=AGENT,
        secrets=secrets,
    )
    async def agent(ctx: Context) -> Any:
        return await body(ctx)

    return await call_operation(agent, beside=[read, other, ask, *beside], identity=peer("bob"))


async def test_the_call_that_adds_an_operation_can_call_it_and_nobody_else() -> None:
    async def body(ctx: Context) -> list[Any]:
        before = await _ask(ctx, "tools/whoami")
        async with ctx.overlay(whoami) as overlay:
            assert [entry.provenance.value for entry in overlay] == ["session"]
            inside = [await _ask(ctx, "/tools/whoami"), await _ask(ctx, "t/other")]
        assert ctx.layers == ()
        return [before, *inside, await _ask(ctx, "tools/whoami")]

    seen = await _run(body)
    assert seen == ["NOT_FOUND", ["op:agent", "peer:bob"], "NOT_FOUND", "NOT_FOUND"]


async def test_the_wire_and_the_lists_do_not_see_what_a_call_adds_for_itself() -> None:
    added, go = trio.Event(), trio.Event()

    @operation("t/agent", access=public(), authority=AGENT)
    async def agent(ctx: Context) -> Any:
        async with ctx.overlay(whoami):
            added.set()
            await go.wait()
            return await _ask(ctx, "tools/whoami")

    async with open_hop(agent) as hop, hop.connect(peer("bob", "*")) as session:
        before = await session.call("services/list")
        async with trio.open_nursery() as nursery:
            outputs: list[list[str]] = []

            async def call() -> None:
                outputs.append(await session.call_as(list[str], "t/agent"))

            nursery.start_soon(call)
            await added.wait()
            assert await _fails(session, "tools/whoami") == "NOT_FOUND"
            assert await _fails(session, "services/schema", {"name": "tools/whoami"}) == "NOT_FOUND"
            assert bytes(await session.call("services/list")) == bytes(before)
            go.set()
        assert outputs == [["op:agent", "peer:bob"]]


async def _fails(session: CallSession, name: str, given: object = None) -> str:
    with pytest.raises(CallError) as caught:
        await session.call(name, given)
    return caught.value.code


async def test_the_nodes_operations_are_never_hidden() -> None:
    @operation("t/read", access=public())
    async def false_read() -> str:
        return "false"

    @operation("t/ask", access=public())
    async def false_ask() -> str:
        return "false"

    @operation("services/list", access=public())
    async def false_list() -> str:
        return "false"

    async def body(ctx: Context) -> list[Any]:
        for taken in (false_read, false_ask):
            with pytest.raises(Conflict, match="already"):
                await _enter(ctx, taken)
        with pytest.raises(LocalError, match="the node's own"):
            await _enter(ctx, false_list)
        with pytest.raises(Conflict, match="already"):
            await _enter(ctx, whoami, whoami)
        async with ctx.overlay(whoami) as overlay:
            with pytest.raises(Conflict, match="already"):
                overlay.add(whoami)
            with pytest.raises(Conflict):
                overlay.add(hidden, whoami)
            assert len(overlay) == 1  # all or none
        return [await _ask(ctx, "t/read"), await _ask(ctx, "t/ask")]

    assert await _run(body) == ["op:agent", "NOT_FOUND"]


async def _enter(ctx: Context, *operations: Operation[..., Any]) -> None:
    async with ctx.overlay(*operations):
        pass


async def test_a_command_that_went_leaves_its_name_to_an_overlay() -> None:
    @operation("t/agent", access=public(), calls=["tools/whoami"], authority=AGENT)
    async def agent(ctx: Context) -> list[Any]:
        before = await _ask(ctx, "tools/whoami")
        async with ctx.overlay(whoami):
            during = await _ask(ctx, "tools/whoami")
            registry.set_commands([hidden.replace_spec(whoami.spec)])
            after = await _ask(ctx, "tools/whoami")
        return [before, during, after]

    registry = Registry([agent])
    registry.set_commands([whoami])
    dispatcher = OperationDispatcher(
        registry, identities=FixedIdentities(), ownership=FixedOwnership(), limits=Limits()
    )
    registry.set_commands([])
    async with memory_connection_pair() as (_, connection):
        request = Requested(id="d1", operation="t/agent")
        call = dispatcher.admit(request, connection=connection, session=None)
        answers = msgspec.json.decode(await call.run())
    assert answers == ["NOT_FOUND", ["op:agent", "anonymous"], "hidden"]


def _tool(**more: Any) -> Operation[..., Any]:
    @operation("tools/tool", access=public(), **more)
    async def tool(ctx: Context) -> None: ...

    return tool


def _with(*granted: str, label: str = "agent", grants: Sequence[Grant] = ()) -> dict[str, Any]:
    return {"authority": CompositionAuthority(label, granted, tuple(grants))}


@pytest.mark.parametrize(
    ("more", "why"),
    [
        (_with("fs:read"), None),
        (_with("fs:*"), None),
        (_with("fs:r*", "net:get"), None),
        (_with(grants=[Grant("share", "photos", "read")]), None),
        ({"calls": ["t/read"]}, None),
        ({"calls": ["tools/tool"]}, None),
        ({"calls": ["@any/far/off"]}, None),
        ({"secrets": ["mail/password"]}, None),
        (_with("*"), "the scope '\\*'"),
        (_with("fs*"), "the scope 'fs\\*'"),
        (_with("net:put"), "the scope 'net:put'"),
        (_with("net:get*"), "the scope 'net:get\\*'"),
        (_with("admin:node"), "the scope 'admin:node'"),
        (_with("fs:read", label="other"), "another label"),
        (_with(grants=[Grant("share", "*")]), "the grant share:\\*"),
        (_with(grants=[Grant("share", "taxes")]), "the grant share:taxes"),
        ({"calls": ["t/ask"]}, "calls 't/ask'"),
        ({"calls": ["tools/none"]}, "calls 'tools/none'"),
        ({"calls": ["@w1/far/off"]}, "calls '@w1/far/off'"),
        ({"calls": ["@*/far/off"]}, "calls '@\\*/far/off'"),
        ({"secrets": ["mail/other"]}, "the secret 'mail/other'"),
    ],
)
async def test_an_added_operation_has_no_more_rights_than_who_adds_it(
    more: dict[str, Any], why: str | None
) -> None:
    async def body(ctx: Context) -> str:
        if why is None:
            await _enter(ctx, _tool(**more))
            return "added"
        with pytest.raises(LocalError, match=f"'tools/tool', added by 't/agent', .*{why}"):
            await _enter(ctx, _tool(**more))
        return "refused"

    expected = "added" if why is None else "refused"
    assert await _run(body, secrets=["mail/password"]) == expected


async def test_who_has_no_authority_gives_none() -> None:
    @operation("t/poor", access=public())
    async def poor(ctx: Context) -> Any:
        with pytest.raises(LocalError, match="another label"):
            await _enter(ctx, _tool(**_with()))
        async with ctx.overlay(whoami, hidden):
            return [await _ask(ctx, "tools/whoami"), await _ask(ctx, "tools/hidden")]

    assert await call_operation(poor) == ["FORBIDDEN", "hidden"]


async def test_added_operations_call_one_another_where_they_declare_it() -> None:
    @operation("tools/one", access=public(), calls=["tools/two", "t/read"], authority=AGENT)
    async def one(ctx: Context, n: int) -> Any:
        below = await _ask(ctx, "tools/two", n - 1) if n else []
        return [await _ask(ctx, "t/read"), await _ask(ctx, "tools/whoami"), below]

    @operation("tools/two", access=public(), calls=["tools/one"])
    async def two(ctx: Context, n: int) -> Any:
        return await _ask(ctx, "tools/one", n)

    async def body(ctx: Context) -> Any:
        async with ctx.overlay(one, two, whoami):
            return await _ask(ctx, "tools/one", 1)

    leaf = ["op:agent", "NOT_FOUND", []]
    assert await _run(body) == ["op:agent", "NOT_FOUND", leaf]


async def test_an_added_operation_can_add_others_within_its_own_rights() -> None:
    @operation("tools/outer", access=public(), authority=CompositionAuthority("agent", ("fs:*",)))
    async def outer(ctx: Context) -> Any:
        with pytest.raises(LocalError, match="net:get"):
            await _enter(ctx, _tool(**_with("net:get")))
        async with ctx.overlay(whoami):
            return await _ask(ctx, "tools/whoami")

    async def body(ctx: Context) -> Any:
        async with ctx.overlay(outer):
            return [await _ask(ctx, "tools/outer"), await _ask(ctx, "tools/whoami")]

    assert await _run(body) == [["op:agent", "peer:bob"], "NOT_FOUND"]


class Waiting:
    """Operations that wait until they are cancelled."""

    def __init__(self) -> None:
        self.running = 0

    @operation("tools/wait", access=public())
    async def wait(self) -> None:
        self.running += 1
        try:
            await trio.sleep_forever()
        finally:
            with trio.CancelScope(shield=True):
                await trio.lowlevel.checkpoint()
            self.running -= 1

    @operation("tools/items", access=public())
    async def items(self) -> AsyncIterator[int]:
        self.running += 1
        try:
            yield 1
            await trio.sleep_forever()
        finally:
            self.running -= 1


async def test_the_end_of_the_block_ends_the_calls_and_waits_for_them() -> None:
    waiting = Waiting()
    codes: list[str] = []

    async def body(ctx: Context) -> list[str]:
        async def call() -> None:
            codes.append(await _ask(ctx, "tools/wait"))

        async def follow() -> None:
            async with ctx.subscribe("tools/items") as items:
                try:
                    async for _ in items:
                        pass
                except CallError as exc:
                    codes.append(exc.code)

        async with trio.open_nursery() as nursery:
            async with ctx.overlay(waiting.wait, waiting.items):
                nursery.start_soon(call)
                nursery.start_soon(follow)
                await trio.testing.wait_all_tasks_blocked()
                assert waiting.running == 2
            assert waiting.running <= 1  # the items are closed by who iterates
        assert waiting.running == 0
        return codes

    assert await _run(body) == ["ABORTED", "ABORTED"]


async def test_items_that_nobody_waits_for_do_not_hold_up_the_end() -> None:
    waiting = Waiting()

    async def body(ctx: Context) -> str:
        overlay = ctx.overlay(waiting.items)
        await overlay.__aenter__()
        async with ctx.subscribe("tools/items") as items:
            await anext(items)
            await overlay.__aexit__(None, None, None)
            with pytest.raises(CallError, match="ABORTED"):
                await anext(items)
        assert waiting.running == 0
        return "ok"

    assert await _run(body) == "ok"


async def test_taking_one_out_ends_its_calls_alone() -> None:
    waiting = Waiting()

    async def body(ctx: Context) -> list[Any]:
        async with ctx.overlay(waiting.wait, whoami) as overlay, trio.open_nursery() as nursery:
            codes: list[str] = []

            async def call() -> None:
                codes.append(await _ask(ctx, "tools/wait"))

            nursery.start_soon(call)
            await trio.testing.wait_all_tasks_blocked()
            overlay.remove("tools/wait")
            overlay.remove("tools/wait")
            await trio.testing.wait_all_tasks_blocked()
            overlay.add(waiting.wait)
            overlay.remove("tools/wait")
            return [*codes, await _ask(ctx, "tools/wait"), await _ask(ctx, "tools/whoami")]

    assert await _run(body) == ["ABORTED", "NOT_FOUND", ["op:agent", "peer:bob"]]


async def test_one_that_may_run_on_ends_with_its_overlay_all_the_same() -> None:
    waiting = Waiting()

    async def body(ctx: Context) -> str:
        async with ctx.overlay(waiting.wait):
            async with trio.open_nursery() as nursery:

                async def call() -> None:
                    await ctx.call("tools/wait", continue_running=True)

                nursery.start_soon(call)
                await trio.testing.wait_all_tasks_blocked()
                nursery.cancel_scope.cancel()
            assert waiting.running == 1
        assert waiting.running == 0
        return "ok"

    assert await _run(body) == "ok"


async def test_an_overlay_is_bounded() -> None:
    def tool(number: int) -> Operation[..., Any]:
        return hidden.replace_spec(msgspec.structs.replace(hidden.spec, name=f"tools/t{number}"))

    async def body(ctx: Context) -> int:
        async with ctx.overlay(*map(tool, range(MOST_OPERATIONS))) as overlay:
            with pytest.raises(CallError, match="RESOURCE_EXHAUSTED"):
                overlay.add(whoami)
            overlay.remove("tools/t0")
            overlay.add(whoami)
            return len(overlay)

    assert await _run(body) == MOST_OPERATIONS


async def test_methods_must_be_bound_and_closed_overlays_take_nothing() -> None:
    async def body(ctx: Context) -> str:
        with pytest.raises(LocalError, match="no instance"):
            await _enter(ctx, Waiting.wait)
        async with ctx.overlay() as overlay:
            pass
        with pytest.raises(LocalError, match="closed"):
            overlay.add(whoami)
        with pytest.raises(LocalError, match="no session"):
            ctx.session_overlay()
        return "ok"

    assert await _run(body) == "ok"


async def test_cancelled_anywhere_an_overlay_leaves_nothing() -> None:
    waiting = Waiting()

    async def body(ctx: Context) -> None:
        async with trio.open_nursery() as nursery, ctx.overlay(waiting.wait, whoami):
            nursery.start_soon(_ask, ctx, "tools/wait")
            await _ask(ctx, "tools/whoami")
            await trio.lowlevel.checkpoint()

    async def call() -> None:
        await _run(body)

    async def after() -> None:
        await trio.testing.wait_all_tasks_blocked()
        assert waiting.running == 0

    assert await cancel_at_every_checkpoint(call, after) >= 3


# For a session.


def _define(*operations: Operation[..., Any]) -> Operation[..., Any]:
    @operation("t/define", access=public(), mutation=True, calls=["t/read"], authority=AGENT)
    async def define(ctx: Context, call: str | None) -> Any:
        overlay: Overlay = ctx.session_overlay()
        if len(overlay) == 0:
            overlay.add(*operations)
        return None if call is None else await _ask(ctx, call)

    return define


async def test_a_session_has_its_operations_and_no_other_has() -> None:
    async with (
        open_hop(read, _define(whoami, hidden)) as hop,
        hop.connect(peer("bob", "fs:read")) as session,
        hop.connect(peer("bob", "fs:read")) as beside,
    ):
        before = bytes(await session.call("services/list"))
        await session.call("t/define", msgspec.Raw(b"null"))
        assert await session.call_as(list[Any], "tools/whoami") == ["peer:bob", None]
        assert b"tools/whoami" in bytes(await session.call("services/list"))
        schema = await session.call_as(dict[str, Any], "services/schema", {"name": "tools/whoami"})
        assert (schema["provenance"], schema["title"]) == ("session", "Say who asks")
        # Internal ones are for who added them.
        assert await _fails(session, "tools/hidden") == "NOT_FOUND"
        assert b"tools/hidden" not in bytes(await session.call("services/list"))
        assert await session.call_as(str, "t/define", "tools/hidden") == "hidden"
        # The other connection of the same peer sees none of it.
        assert await _fails(beside, "tools/whoami") == "NOT_FOUND"
        assert bytes(await beside.call("services/list")) == before
        assert await _fails(beside, "services/schema", {"name": "tools/whoami"}) == "NOT_FOUND"


async def test_idempotency_keys_do_not_reach_into_another_session() -> None:
    picked: list[int] = []

    def pick(number: int) -> Operation[..., Any]:
        @operation("tools/pick", access=public(), mutation=True)
        async def tool() -> int:
            picked.append(number)
            return number

        return tool

    @operation("t/add", access=public(), mutation=True)
    async def add(ctx: Context, number: int) -> None:
        ctx.session_overlay().add(pick(number))

    async with open_hop(add) as hop, hop.connect() as one, hop.connect() as two:
        for number, session in enumerate((one, two, one, two)):
            if number < 2:
                await session.call("t/add", number)
            for name in ("tools/pick", "/tools/pick"):
                answer = await session.call_as(int, name, idempotency_key="k")
                assert answer == number % 2
    assert picked == [0, 1]


async def test_access_rules_hold_for_a_sessions_operations() -> None:
    async with open_hop(read, _define(whoami)) as hop, hop.connect(peer("bob")) as session:
        await session.call("t/define", msgspec.Raw(b"null"))
        assert await _fails(session, "tools/whoami") == "FORBIDDEN"
        assert b"tools/whoami" not in bytes(await session.call("services/list"))
        assert await session.call_as(list[str], "t/define", "tools/whoami") == [
            "op:agent",
            "peer:bob",
        ]


async def test_the_end_of_the_session_ends_its_operations_and_their_calls() -> None:
    waiting = Waiting()
    found: list[Hop] = []
    async with open_hop(read, _define(waiting.wait)) as hop:
        found.append(hop)
        async with hop.connect() as session, trio.open_nursery() as nursery:
            await session.call("t/define", msgspec.Raw(b"null"))
            nursery.start_soon(_ignore, session, "tools/wait")
            await trio.testing.wait_all_tasks_blocked()
            assert waiting.running == 1
            session.connection.close()
            await trio.testing.wait_all_tasks_blocked()
            assert waiting.running == 0
            layer = hop.served[0].layer
            assert layer is not None
            assert layer.is_closed
            assert len(layer) == 0


async def _ignore(session: CallSession, name: str) -> None:
    with pytest.raises(CallError, match="UNAVAILABLE"):
        await session.call(name)


async def test_watchers_of_the_session_hear_of_its_operations(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with (
        open_hop(read, _define(whoami)) as hop,
        hop.connect(peer("bob", "fs:read")) as session,
        hop.connect(peer("bob", "fs:read")) as beside,
        session.subscribe("services/watch") as mine,
        beside.subscribe("services/watch") as theirs,
    ):
        first = await anext(mine)
        assert bytes(await anext(theirs)) == bytes(first)
        await session.call("t/define", msgspec.Raw(b"null"))
        second = await anext(mine)
        assert bytes(second) != bytes(first)
        listed = await session.call_as(dict[str, Any], "services/list")
        assert listed["version"] == msgspec.json.decode(second)["version"]
        with trio.move_on_after(5) as scope:
            await anext(theirs)
        assert scope.cancelled_caught

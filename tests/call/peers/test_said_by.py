"""Errors that came over several nodes: who has said them, as far as the caller may know."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager
from itertools import pairwise
from typing import Any

import msgspec
import pytest

from alknet.call.codes import CallError
from alknet.call.context import Context
from alknet.call.operations import OperationError, operation, public, scopes
from alknet.call.peers import PeerRef
from alknet.call.session import CallSession
from alknet.core.config_re_export import ReExport
from alknet.core.identity import ANONYMOUS, OWNER, Identity
from alknet.testing.operations import peer
from tests.call.peers.calculators import USER, Seen, chain, hub_and_worker
from tests.call.peers.federated import MemoryNode, open_world, rule
from tests.call.sessions import CARRIERS

ADD = "math/add"
WRONG = [1, "2"]


async def error_of(client: CallSession, *route: str, **options: Any) -> CallError:
    """Return how a call fails whose input only the worker knows to be wrong."""
    with pytest.raises(CallError) as caught:
        await client.call(ADD, WRONG, peer=route or None, **options)
    assert caught.value.code == "INVALID_INPUT"
    return caught.value


@asynccontextmanager
async def hub_for(
    identity: Identity, *rules: ReExport, back: Sequence[str] = ("calc",)
) -> AsyncGenerator[CallSession]:
    hub, worker = hub_and_worker(rules=rules)
    async with open_world(hub, worker) as world:
        await world.link(worker, hub, back=back)
        yield await world.client(hub, identity)


W1 = rule(["w1", "any"], "math/*", scopes=["math"])
ANY = rule("any", "math/*", scopes=["math"])
W1_FOR_STAFF = rule("w1", "math/*", scopes=["staff"])
W1_OTHERS = rule("w1", "math/sum", scopes=["math"])

# The caller, the rules, the route, and who is told to have said it.
TABLE: list[tuple[Identity, Sequence[ReExport], tuple[str, ...], tuple[str, ...]]] = [
    (USER, [W1], ("w1",), ("w1",)),
    (USER, [W1], ("any",), ("w1",)),
    (USER, [ANY], ("any",), ("any",)),
    (USER, [ANY, W1_FOR_STAFF], ("any",), ("any",)),
    (USER, [ANY, W1_OTHERS], ("any",), ("any",)),
    (peer("boss", "math", "staff"), [ANY, W1_FOR_STAFF], ("any",), ("w1",)),
    (ANONYMOUS, [rule("any")], ("any",), ("any",)),
    (OWNER, [], ("w1",), ("w1",)),
    (OWNER, [], ("any",), ("w1",)),
]


@pytest.mark.parametrize(("identity", "rules", "route", "by"), TABLE)
async def test_a_caller_is_told_whom_it_could_have_called_by_that_name(
    identity: Identity,
    rules: Sequence[ReExport],
    route: tuple[str, ...],
    by: tuple[str, ...],
) -> None:
    async with hub_for(identity, *rules) as client:
        assert (await error_of(client, *route)).by == by


@pytest.mark.parametrize("carrier", CARRIERS)
async def test_each_node_on_the_way_puts_its_own_name_for_the_next(carrier: str) -> None:
    nodes = chain(4, seen=Seen())
    async with open_world(*nodes, carrier=carrier) as world:
        for near, far in pairwise(nodes):
            await world.link(far, near, scopes=[], back=["pass", "calc"])
        client = await world.client(nodes[0], peer("user", "pass"))
        route = ("n2", "n3", "n4")
        assert (await error_of(client, *route)).by == route
        # What the third lets the second do is for the third to say.
        nodes[2].federation.forwarder.rules = (rule("**", scopes=["more"]),)
        with pytest.raises(CallError, match="FORBIDDEN: scope 'more' missing") as caught:
            await client.call(ADD, [1], peer=route)
        assert caught.value.by == ("n2", "n3")


async def test_what_the_asked_node_says_itself_has_no_route() -> None:
    async with hub_for(USER, W1) as client:
        with pytest.raises(CallError, match="FORBIDDEN: token refused") as caught:
            await client.call(ADD, [1], peer=("w1",), token="none")
        assert caught.value.by == ()
    with pytest.raises(CallError, match="UNAVAILABLE") as caught:
        await client.call(ADD, [1], peer=("w1",))
    assert caught.value.by is None  # the connection is gone, and nobody has said anything


async def test_a_missing_operation_never_says_how_far_the_call_came() -> None:
    """An internal one, a missing one, and what no rule is about: all look alike."""
    nodes = chain(3, seen=Seen())
    async with open_world(*nodes) as world:
        for near, far in pairwise(nodes):
            await world.link(far, near, scopes=[], back=["pass", "calc"])
        client = await world.client(nodes[0], peer("user", "pass"))
        found = []
        for name, route in [
            ("math/hidden", ("n2", "n3")),
            ("math/missing", ("n2", "n3")),
            (ADD, ("n2", "n9")),
            (ADD, ("n2",)),
            ("node/ping", ("n2", "n3")),
        ]:
            with pytest.raises(CallError) as caught:
                await client.call(name, [1], peer=route)
            found.append((caught.value.code, caught.value.by, caught.value.details))
        assert set(map(str, found)) == {str(("NOT_FOUND", (), None))}


async def test_streams_say_it_too() -> None:
    async with hub_for(USER, W1) as client:
        async with client.upload("math/sum", peer=("any",)) as upload:
            await upload.send("x")
            with pytest.raises(CallError, match="INVALID_INPUT") as caught:
                await upload.finish()
        assert caught.value.by == ("w1",)
        async with client.bidi("math/double", peer=("any",)) as bidi:
            await bidi.send("x")
            with pytest.raises(CallError, match="INVALID_INPUT") as caught:
                await anext(bidi)
        assert caught.value.by == ("w1",)
        async with client.subscribe(ADD, [1], peer=("w1",)) as items:
            with pytest.raises(CallError, match="INVALID_OPERATION_TYPE") as caught:
                await anext(items)
        assert caught.value.by == ()  # the hub knows the kind, and has not asked


async def test_an_answer_that_is_given_again_says_it_again() -> None:
    async with hub_for(USER, W1) as client:
        for _ in range(2):
            assert (await error_of(client, "w1", idempotency_key="k1")).by == ("w1",)


async def test_a_peer_that_ends_a_call_has_said_so() -> None:
    hub, worker = hub_and_worker()
    async with open_world(hub, worker) as world:
        await world.link(worker, hub, back=["calc"])
        client = await world.client(hub, USER)
        async with client.subscribe("math/count", peer=("w1",)) as items:
            await anext(items)
            worker.session("hub").abort_calls(lambda _call: True, "revoked")
            with pytest.raises(CallError, match="authorization was revoked") as caught:
                async for _ in items:
                    pass
        assert caught.value.by == ("w1",)


async def test_whom_a_handler_has_asked_is_not_told_to_its_caller() -> None:
    @operation("sum/all", access=public(), calls=["@w1/math/busy"])
    async def total(ctx: Context) -> msgspec.Raw:
        return await ctx.call("math/busy", peer=PeerRef.specific("w1"))

    @operation("sum/own", access=public())
    async def own() -> None:
        await head.peers.call(PeerRef.specific("w1"), "math/busy")

    @operation("math/busy", access=scopes("calc"))
    async def busy() -> None:
        raise OperationError("UNAVAILABLE", "busy")

    head, worker = MemoryNode("head", [total, own]), MemoryNode("w1", [busy])
    async with open_world(head, worker) as world:
        await world.link(worker, head, back=["calc"])
        client = await world.client(head, USER)
        for name in ("sum/all", "sum/own"):
            with pytest.raises(CallError, match="UNAVAILABLE: busy") as caught:
                await client.call(name)
            assert caught.value.by == ()
        with pytest.raises(CallError) as caught:
            await head.peers.call(PeerRef.any(), "math/busy")
        assert caught.value.by == ("w1",)  # here it is known


# What stands in `by`, and what is believed of it by whoever reads it.
LIES: list[tuple[Any, tuple[str, ...]]] = [
    (["w9"], ("w9",)),
    (["w2"] * 8, ("w2",) * 8),
    (["w2"] * 9, ()),
    (["\u001b[2J"], ()),
    (["W1"], ()),
    (["w" * 64], ()),
    (["w9", 1], ()),
    ([""], ()),
    ("w2", ()),
    ({"w2": 1}, ()),
    (7, ()),
]


@pytest.mark.parametrize(("lie", "read"), LIES)
async def test_what_a_hostile_peer_says_of_its_route_is_bounded_and_not_passed_on(
    lie: Any, read: tuple[str, ...]
) -> None:
    @operation(ADD, access=scopes("calc"))
    async def add(_numbers: list[int | str]) -> None:
        error = CallError("INVALID_INPUT", "no")
        error.by, error.is_passed_on = lie, True
        raise error

    hub = MemoryNode("hub", rules=[W1])
    worker = MemoryNode("w1", [add])
    async with open_world(hub, worker) as world:
        await world.link(worker, hub, back=["calc"])
        client = await world.client(hub, USER)
        for route in ("w1", "any"):
            assert (await error_of(client, route)).by == ("w1",)
        direct = await world.client(worker, peer("user", "calc"))
        assert (await error_of(direct)).by == read

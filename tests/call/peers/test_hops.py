"""Routes over several nodes: each decides for itself, and none is passed twice."""

from __future__ import annotations

from collections.abc import AsyncIterator
from itertools import pairwise

import msgspec
import pytest
import trio
import trio.testing

from alknet.call.codes import CallError
from alknet.call.operations import operation, public
from alknet.call.peers.forwarding import MOST_HOPS
from alknet.core.identity import Identity
from alknet.testing.operations import peer
from tests.call.peers.calculators import Seen, chain, code_of, hub_and_worker
from tests.call.peers.federated import MemoryNode, open_world
from tests.call.sessions import CARRIERS


async def test_each_hop_checks_the_one_before_and_the_originator_rides_along() -> None:
    seen = Seen()
    head, hub, worker = chain(3, seen=seen)
    async with open_world(head, hub, worker) as world:
        await world.link(head, hub, scopes=["pass"])
        await world.link(worker, hub, back=["calc"])
        client = await world.client(head, peer("user", "pass"))
        route = ("n2", "n3")
        assert bytes(await client.call("math/add", [1, 1], peer=route)) == b"2"
        [ctx] = seen.contexts
        assert ctx.identity == peer("n2", "calc")
        assert ctx.forwarded_for == peer("user", "pass")
        # Rights at one hop are none at the next: the user's scopes do not travel.
        stranger = await world.client(head, peer("user", "calc"))
        assert await code_of(stranger.call("math/add", [1], peer=route)) == "FORBIDDEN"
    for scopes_at_hub, scopes_at_worker, code in (
        (["x"], ["calc"], "FORBIDDEN"),
        (["pass"], ["x"], "NOT_FOUND"),  # the hub does not even see what it may not call
    ):
        seen = Seen()
        head, hub, worker = chain(3, seen=seen)
        async with open_world(head, hub, worker) as world:
            await world.link(head, hub, scopes=scopes_at_hub)
            await world.link(worker, hub, back=scopes_at_worker)
            client = await world.client(head, peer("user", "pass", "calc"))
            assert await code_of(client.call("math/add", [1], peer=route)) == code
            assert not seen.contexts


@pytest.mark.parametrize("carrier", CARRIERS)
async def test_all_kinds_pass_several_hops(carrier: str) -> None:
    seen = Seen()
    head, hub, worker = chain(3, seen=seen)
    async with open_world(head, hub, worker, carrier=carrier) as world:
        await world.link(head, hub)
        await world.link(worker, hub)
        client = await world.client(head, peer("user", "*"))
        route = ("n2", "n3")
        async with client.upload("math/sum", {}, peer=route) as upload:
            for n in range(100):
                await upload.send(n)
            assert msgspec.json.decode(await upload.finish()) == sum(range(100))
        async with client.bidi("math/double", {}, peer=route) as both:
            await both.send(21)
            assert msgspec.json.decode(await anext(both)) == 42
        async with client.subscribe("math/count", {}, peer=route) as items:
            assert b"1x" in bytes(await anext(items))
        assert await code_of(client.call("math/fail", {}, peer=route)) == "EMPTY"
        await trio.testing.wait_all_tasks_blocked()
        assert seen.running == head.calls() == hub.calls() == worker.calls() == 0


@pytest.mark.parametrize("carrier", CARRIERS)
async def test_a_caller_three_hops_away_holds_back_the_producer(carrier: str) -> None:
    seen = Seen()
    head, hub, worker = chain(3, seen=seen)
    async with open_world(head, hub, worker, carrier=carrier) as world:
        await world.link(head, hub)
        await world.link(worker, hub)
        client = await world.client(head, peer("user", "*"))
        async with client.subscribe("math/count", {}, peer=("n2", "n3")) as items:
            await anext(items)
            await trio.testing.wait_all_tasks_blocked()
            made = seen.sent
            await trio.testing.wait_all_tasks_blocked()
            assert seen.sent == made
            for node in (head, hub, worker):
                for sessions in node.sessions.values():
                    assert sum(session.budget.used for session in sessions) < 8 * 1024 * 1024
        await trio.testing.wait_all_tasks_blocked()
        assert seen.running == 0


@pytest.mark.parametrize("carrier", CARRIERS)
async def test_an_operation_three_hops_away_that_takes_nothing_holds_back_its_caller(
    carrier: str,
) -> None:
    go = trio.Event()

    @operation("math/drain", access=public())
    async def drain(items: AsyncIterator[str]) -> int:
        await go.wait()
        return len([item async for item in items])

    head, hub = chain(3, seen=Seen())[:2]
    worker = MemoryNode("n3", [drain])
    async with open_world(head, hub, worker, carrier=carrier) as world:
        await world.link(head, hub)
        await world.link(worker, hub)
        client = await world.client(head, peer("user", "*"))
        sent = 0
        async with client.upload("math/drain", peer=("n2", "n3")) as upload:
            with trio.move_on_after(60) as sending:

                async def send_all() -> None:
                    nonlocal sent
                    while True:
                        await upload.send("x" * 20_000)
                        sent += 1

                async with trio.open_nursery() as nursery:
                    nursery.start_soon(send_all)
                    await trio.testing.wait_all_tasks_blocked()
                    before = sent
                    await trio.testing.wait_all_tasks_blocked()
                    assert sent == before > 0  # it stands still
                    nursery.cancel_scope.cancel()
            assert not sending.cancelled_caught
            for node in (head, hub, worker):
                for sessions in node.sessions.values():
                    assert sum(session.budget.used for session in sessions) < 8 * 1024 * 1024
            go.set()
            assert msgspec.json.decode(await upload.finish()) == sent


@pytest.mark.parametrize("hops", [1, 7, 8])
async def test_eight_hops_are_the_most(hops: int) -> None:
    seen = Seen()
    nodes = chain(hops + 1, seen=seen)
    async with open_world(*nodes) as world:
        for here, there in pairwise(nodes):
            await world.link(here, there)
        client = await world.client(nodes[0], peer("user", "*"))
        route = tuple(node.name for node in nodes[1:])
        assert bytes(await client.call("math/add", [1, 1], peer=route)) == b"2"


async def test_a_ninth_hop_is_refused() -> None:
    seen = Seen()
    nodes = chain(3, seen=seen)
    async with open_world(*nodes) as world:
        await world.link(nodes[0], nodes[1])
        await world.link(nodes[1], nodes[2])
        client = await world.client(nodes[0], peer("user", "*"))
        # A route may be eight long, and the request may have come a long way before.
        with pytest.raises(CallError, match="INVALID_INPUT"):
            await client.call("math/add", [1], peer=("n2",) * (MOST_HOPS + 1))
        passed = tuple(f"p{n}" for n in range(MOST_HOPS))
        with pytest.raises(CallError, match="has passed 8 nodes"):
            await client.call("math/add", [1], peer=("n2", "n3"), path=passed)
        with pytest.raises(CallError, match="has passed 8 nodes"):  # refused by the second
            await client.call("math/add", [1], peer=("n2", "n3"), path=passed[1:])
        output = await client.call("math/add", [1], peer=("n2", "n3"), path=passed[2:])
        assert bytes(output) == b"1"
        assert len(seen.contexts) == 1


async def test_a_loop_is_refused_where_it_closes() -> None:
    seen = Seen()
    one, two, three = chain(3, seen=seen)
    async with open_world(one, two, three) as world:
        await world.link(one, two)
        await world.link(two, three)
        await world.link(three, one)
        client = await world.client(one, peer("user", "*"))
        for route in (("n2", "n1", "n3"), ("n2", "n3", "n1", "n2"), ("n2", "n1", "n2", "n1")):
            with pytest.raises(CallError, match="comes back") as caught:
                await client.call("math/add", [1], peer=route)
            assert caught.value.code == "INVALID_INPUT"
        assert bytes(await client.call("math/add", [1], peer=("n2", "n3"))) == b"1"


async def test_what_a_peer_may_not_pass_on_it_cannot_pass_by_saying_so() -> None:
    # The route, the path and the originator are the caller's words; none of them is authority.
    hub, worker = hub_and_worker()
    async with open_world(hub, worker) as world:
        await world.link(worker, hub, back=["calc"])
        client = await world.client(hub, peer("user"))
        assert (
            await code_of(
                client.call(
                    "math/add", [1], peer=("w1",), path=(), forwarded_for=Identity("owner", ("*",))
                )
            )
            == "FORBIDDEN"
        )

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import trio
import trio.testing

from alknet.call.operations import Operation, operation, public, scopes
from alknet.call.peers import PeerEnvironment
from alknet.call.peers.forwarding import Forwarder
from alknet.call.peers.listing import MOST_NAME_BYTES, list_peers_operation
from alknet.core.config_re_export import FederationTable, ReExport
from alknet.core.identity import ANONYMOUS, OWNER, Identity, NodeId
from alknet.core.limits import Limits
from alknet.testing.operations import call_operation, peer
from tests.call.peers.federated import MemoryNode, open_world, rule
from tests.call.peers.fleet import Fleet, offers, open_fleet


@operation("math/add", access=public())
async def add() -> int:
    return 1


@operation("math/sleep", access=public())
async def sleep() -> None:
    await trio.sleep_forever()


@operation("db/read", access=scopes("db"))
async def read() -> int:
    return 1


def listing(
    environment: PeerEnvironment, *rules: ReExport, is_enabled: bool = True
) -> Operation[..., Any]:
    forwarder = Forwarder(environment, node_id=NodeId(bytes(32)), limits=Limits, rules=rules)
    return list_peers_operation(environment, forwarder, is_enabled=lambda: is_enabled)


async def names(
    operation: Operation[..., Any], identity: Identity, **wanted: object
) -> dict[str, Any]:
    listed = await call_operation(operation, wanted, identity=identity)
    return {one["name"]: one.get("operations") for one in listed["peers"]}


RULES = (
    rule("w*", "math/*", scopes=["math"]),
    rule("db", "db/*", scopes=["db"]),
    rule("any", "**", scopes=["math"]),
)


async def small_fleet(fleet: Fleet) -> None:
    for worker in fleet.workers:
        name = worker.peer.name
        operations = ["db/read"] if name == "db" else ["math/add", "math/sleep", "admin/stop"]
        worker.peer.set_operations(worker.ours, offers(operations), "1")


@pytest.mark.parametrize(
    ("identity", "expected"),
    [
        (ANONYMOUS, {}),
        (peer("p"), {}),
        (peer("p", "x"), {}),
        (peer("p", "math"), {"w1": ["math/add", "math/sleep"], "w2": ["math/add", "math/sleep"]}),
        (peer("p", "db"), {"db": ["db/read"]}),
        (
            OWNER,
            {
                "db": ["db/read"],
                "w1": ["admin/stop", "math/add", "math/sleep"],
                "w2": ["admin/stop", "math/add", "math/sleep"],
            },
        ),
    ],
)
async def test_each_caller_sees_what_it_may_call(
    identity: Identity, expected: dict[str, list[str]]
) -> None:
    async with open_fleet("w2", "db", "w1") as fleet:
        await small_fleet(fleet)
        operation = listing(fleet.environment, *RULES)
        assert await names(operation, identity, with_operations=True) == expected
        assert list(await names(operation, identity)) == sorted(expected)
        closed = listing(fleet.environment, *RULES, is_enabled=False)
        seen = await names(closed, identity)
        assert list(seen) == (sorted(expected) if identity == OWNER else [])


async def test_only_the_owner_learns_keys_and_connections() -> None:
    async with open_fleet("w1") as fleet:
        await small_fleet(fleet)
        operation = listing(fleet.environment, *RULES)
        listed = await call_operation(operation, {}, identity=peer("p", "math"))
        assert listed["peers"] == [
            {"name": "w1", "is_healthy": True, "rtt_ms": None, "in_flight": 0}
        ]
        listed = await call_operation(operation, {}, identity=OWNER)
        [own] = listed["peers"]
        assert own["node_id"] is None
        assert (own["sessions"], own["operations_version"]) == (1, "1")


async def test_pages_and_prefixes() -> None:
    async with open_fleet(*(f"w{n}" for n in range(7))) as fleet:
        await small_fleet(fleet)
        operation = listing(fleet.environment, *RULES)
        found: list[str] = []
        after: str | None = ""
        pages = 0
        while after is not None:
            wanted = {"after": after, "limit": 3}
            page = await call_operation(operation, wanted, identity=peer("p", "math"))
            found += [one["name"] for one in page["peers"]]
            after = page["next"]
            pages += 1
        assert found == [f"w{n}" for n in range(7)]
        assert pages == 3
        assert list(await names(operation, OWNER, prefix="w3")) == ["w3"]


async def test_a_page_with_very_many_names_ends_early() -> None:
    async with open_fleet("w1", "w2", "w3") as fleet:
        many = offers(f"math/{'x' * 60}{'y' * 60}.{n}" for n in range(MOST_NAME_BYTES // 120))
        for worker in fleet.workers:
            worker.peer.set_operations(worker.ours, many, "1")
        operation = listing(fleet.environment, *RULES)
        page = await call_operation(operation, {"with_operations": True}, identity=OWNER)
        assert [one["name"] for one in page["peers"]] == ["w1"]
        assert page["next"] == "w1"


async def test_peers_that_offer_the_same_cost_the_rules_once() -> None:
    asked: list[str] = []

    class Counting(ReExport, frozen=True):
        def covers(self, route: Sequence[str], operation: str) -> bool:
            asked.append(operation)
            return super().covers(route, operation)

    one = rule("w*", "math/*")
    counting = Counting(one.peers, one.operations, one.access)
    same = offers(f"math/n{n}" for n in range(100))
    async with open_fleet(*(f"w{n}" for n in range(20))) as fleet:
        for worker in fleet.workers:
            worker.peer.set_operations(worker.ours, same, "1")
        listed = await names(listing(fleet.environment, counting), peer("p"), with_operations=True)
        assert len(listed) == 20
        assert len(asked) == 100


async def test_health_latency_and_load_are_told() -> None:
    hub = MemoryNode("hub", rules=[rule("*")], federation=FederationTable(list_peers=True))
    worker = MemoryNode("w1", [add, sleep, read])
    async with open_world(hub, worker) as world:
        await world.link(worker, hub, back=["x"])
        client = await world.client(hub, peer("p"))
        await client.call("math/add", {}, peer=("w1",))
        async with trio.open_nursery() as nursery:

            async def call() -> None:
                await client.call("math/sleep", {}, peer=("w1",))

            nursery.start_soon(call)
            await trio.testing.wait_all_tasks_blocked()
            listed = await client.call_as(
                dict[str, Any], "services/list-peers", {"with_operations": True}
            )
            nursery.cancel_scope.cancel()
    [one] = listed["peers"]
    assert one["operations"] == ["math/add", "math/sleep"]  # db/read is not for the hub
    assert one["in_flight"] == 1
    assert one["is_healthy"] is True
    assert one["rtt_ms"] >= 0

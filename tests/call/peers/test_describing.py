"""``services/schema`` of what a peer offers: for those who may call it over this node."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import msgspec
import pytest
import trio

from alknet.call.codes import CallError
from alknet.call.operations import operation, public
from alknet.call.peers.describing import describe_imported
from alknet.call.session import CallSession
from alknet.call.spec import ErrorSpec
from alknet.core.identity import OWNER
from alknet.testing.operations import peer
from tests.call.peers.federated import MemoryNode, open_world, rule
from tests.call.peers.fleet import offers

USER = peer("user", "math")


class Failure(msgspec.Struct):
    where: str


@operation(
    "math/steps",
    access=public(),
    errors=(ErrorSpec("TOO_FAR", "There are no more.", Failure), ErrorSpec("LATE")),
    title="Count",
)
async def steps(count: int) -> AsyncIterator[int]:
    """Count on and on."""
    for n in range(count):
        await trio.sleep(0)
        yield n


async def described(session: CallSession, name: str, *route: str) -> dict[str, Any] | str:
    try:
        found = await session.call("services/schema", {"name": name, "peer": route})
    except CallError as exc:
        return exc.code
    return msgspec.json.decode(found, type=dict[str, Any])


@pytest.mark.parametrize("route", ["w1", "any"])
async def test_who_may_call_it_learns_what_the_peer_says_of_it(route: str) -> None:
    hub = MemoryNode("hub", rules=[rule(["w*", "any"], "math/*", scopes=["math"])])
    worker = MemoryNode("w1", [steps])
    async with open_world(hub, worker) as world:
        await world.link(worker, hub)
        at_hub = await described(await world.client(hub, USER), "/math/steps", route)
        at_worker = await described(hub.session("w1"), "math/steps")
        assert isinstance(at_hub, dict)
        assert isinstance(at_worker, dict)
        assert at_hub.pop("provenance") == "from_call"
        del at_worker["provenance"], at_worker["access"]
        assert at_hub == at_worker
        assert at_hub["op_type"] == "subscription"
        owner = await world.client(hub, OWNER)
        assert isinstance(await described(owner, "math/steps", route), dict)


async def test_for_all_others_it_is_not_there() -> None:
    hub = MemoryNode("hub", rules=[rule(["w*", "any"], "math/*", scopes=["math"])])
    worker = MemoryNode("w1", [steps])
    async with open_world(hub, worker) as world:
        await world.link(worker, hub)
        stranger = await world.client(hub, peer("stranger"))
        user = await world.client(hub, USER)
        missing = [
            (stranger, "math/steps", ("w1",)),
            (user, "math/none", ("w1",)),
            (user, "services/list", ("w1",)),
            (user, "math/steps", ("w2",)),
            (user, "math/steps", ("W 2",)),
            (user, "math/steps", ("w1", "w1")),
        ]
        for session, name, route in missing:
            assert await described(session, name, *route) == "NOT_FOUND", (name, route)


@pytest.mark.parametrize(
    ("schema", "expected"),
    [(b"true", {}), (b"false", {"not": {}}), (b'{"type":"null"}', {"type": "null"})],
)
def test_schemas_that_are_no_objects_are_described_by_ones_that_mean_the_same(
    schema: bytes, expected: dict[str, object]
) -> None:
    [(_, offered)] = offers(["m/a"]).items()
    offered = msgspec.structs.replace(offered, input_schema=msgspec.Raw(schema))
    assert describe_imported(offered).input_schema == expected

"""Who administers a node sees and ends what runs on it, whoever owns it."""

from __future__ import annotations

import pytest
import trio

from alknet.call.codes import CallError
from alknet.call.resource import LONGEST_ORIGINATOR
from alknet.call.resource_operations import resource_operations
from alknet.core.identity import Identity, NodeId, Peer
from alknet.core.limits import Limits
from alknet.stores.memory import MemoryIdentityStore
from alknet.stores.ownership import StoredOwnership
from alknet.testing.operations import call_operation, peer
from alknet.testing.resources import open_resources


async def life(*, task_status: trio.TaskStatus[None]) -> None:
    task_status.started()
    await trio.sleep_forever()


def ownership() -> StoredOwnership:
    identities = MemoryIdentityStore([Peer(name="a"), Peer(name="b")])
    return StoredOwnership(identities, NodeId(b"\x01" * 32))


async def test_they_list_and_end_what_nobody_owns_any_more() -> None:
    rows = ownership()
    async with open_resources(ownership=rows) as resources:
        listing, release = resource_operations(resources)
        await resources.own(peer("a"), "tty", "1", life, forwarded_for=peer("user"))
        await resources.own(peer("b"), "tty", "2", life)
        await rows.identities.remove_peer("b")
        about = {"type": "tty", "state": "up"}
        one = {"id": "1", "owner": "peer:a", "spawned_by": "peer:a", "spawned_for": "peer:user"}
        two = {"id": "2", "owner": None, "spawned_by": "peer:b", "spawned_for": None}
        assert await call_operation(listing) == [{**about, **one}, {**about, **two}]
        await call_operation(release, {"type": "tty", "id": "2"})
        assert await call_operation(listing) == [{**about, **one}]
        with pytest.raises(CallError, match="NOT_FOUND"):
            await call_operation(release, {"type": "tty", "id": "2"})


async def test_nobody_makes_the_list_too_long_to_be_sent() -> None:
    async with open_resources(["a"]) as resources:
        listing, _ = resource_operations(resources)
        speaks_for = Identity("x" * 4000)  # of which a node may have 4,096 resources
        await resources.own(peer("a"), "tty", "1", life, forwarded_for=speaks_for)
        [listed] = await call_operation(listing)
        assert listed["spawned_for"] == "x" * LONGEST_ORIGINATOR


async def test_only_they_do() -> None:
    async with open_resources(["a"]) as resources:
        for operation in resource_operations(resources):
            with pytest.raises(CallError, match="admin:node"):
                await call_operation(operation, {"type": "tty", "id": "1"}, identity=peer("a", "*"))
            admin = peer("a", "admin:*")
            if operation.spec.name == "node/resources":
                assert await call_operation(operation, identity=admin) == []


async def test_the_states_are_told_apart() -> None:
    rows = ownership()
    await rows.record("peer:a", "pod", "1")
    may_end = trio.Event()

    async def slow(*, task_status: trio.TaskStatus[None]) -> None:
        try:
            await trio.sleep_forever()
        finally:
            with trio.CancelScope(shield=True):
                await may_end.wait()

    async with open_resources(ownership=rows) as resources, trio.open_nursery() as nursery:

        def states() -> list[str]:
            return [one.state for one in resources.listing()]

        nursery.start_soon(resources.own, peer("a"), "tty", "1", slow)
        await trio.testing.wait_all_tasks_blocked()
        assert states() == ["unknown", "starting"]
        nursery.cancel_scope.cancel()
        with trio.CancelScope(shield=True):
            await trio.testing.wait_all_tasks_blocked()
        assert states() == ["unknown", "ending"]
        may_end.set()


async def test_what_a_removed_peer_left_running_does_not_count_against_a_new_one() -> None:
    rows = ownership()
    async with open_resources(ownership=rows, limits=Limits(resources_per_identity=1)) as resources:
        await resources.own(peer("a"), "tty", "1", life)
        await rows.identities.remove_peer("a")
        await rows.identities.put_peer(Peer(name="a"))
        await resources.own(peer("a"), "tty", "2", life)
        with pytest.raises(CallError, match="RESOURCE_EXHAUSTED"):
            await resources.own(peer("a"), "tty", "3", life)
        await resources.release("tty", "1")
        await resources.release("tty", "2")
        await resources.own(peer("a"), "tty", "3", life)

"""One peer over several connections: the newest gets the new calls, and nothing goes too early."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import permutations

import pytest
import trio

from alknet.call.codes import CallError
from alknet.call.peers import PeerRef
from tests.call.peers.fleet import ECHO, Fleet, Worker, offers, open_fleet

W1 = PeerRef.specific("w1")


async def two_connections(fleet: Fleet) -> tuple[Worker, Worker]:
    old, new = await fleet.add("w1"), await fleet.connect("w1")
    fleet.attach(new)
    return old, new


async def test_the_newest_connection_gets_the_new_calls() -> None:
    async with open_fleet() as fleet:
        old, new = await two_connections(fleet)
        assert old.peer is new.peer
        assert new.peer.sessions == (new.ours, old.ours)
        await fleet.environment.call(W1, "echo/unary")
        assert (old.operations.started, new.operations.started) == (0, 1)


async def test_calls_on_the_older_connection_end_in_peace() -> None:
    async with open_fleet() as fleet, trio.open_nursery() as nursery:
        old = await fleet.add("w1")
        release = trio.Event()

        async def wait(_given: object) -> object:
            await release.wait()
            return "from the old one"

        old.operations.queries["echo/slow"] = wait
        outputs: list[bytes] = []

        async def call() -> None:
            outputs.append(bytes(await fleet.environment.call(W1, "echo/slow")))

        nursery.start_soon(call)
        await trio.testing.wait_all_tasks_blocked()
        new = await fleet.connect("w1")
        fleet.attach(new)
        await fleet.environment.call(W1, "echo/unary")
        assert (old.peer.in_flight, new.operations.started) == (1, 1)
        release.set()
        await trio.testing.wait_all_tasks_blocked()
        assert outputs == [b'"from the old one"']
        assert new.peer.in_flight == 0


@pytest.mark.parametrize("ends", list(permutations(range(3))))
async def test_nothing_detaches_while_one_connection_lives(ends: Sequence[int]) -> None:
    async with open_fleet() as fleet:
        workers = [await fleet.connect("w1") for _ in range(3)]
        for worker in workers:
            fleet.attach(worker)
        alive = list(workers)
        for index in ends:
            assert fleet.environment.get("w1") is workers[0].peer
            assert [one.name for one in fleet.environment.offering("echo/unary")] == ["w1"]
            await fleet.environment.call(PeerRef.any(), "echo/unary")
            assert alive[-1].operations.started >= 1
            fleet.detach(workers[index])
            alive.remove(workers[index])
        assert fleet.environment.get("w1") is None
        assert fleet.environment.offering("echo/unary") == ()


async def test_a_connection_that_ended_is_passed_by_before_it_is_detached() -> None:
    async with open_fleet() as fleet:
        old, new = await two_connections(fleet)
        new.ours.end(0)
        await fleet.environment.call(W1, "echo/unary")
        assert old.operations.started == 1
        old.ours.end(0)
        with pytest.raises(CallError, match="has ended") as caught:
            await fleet.environment.call(W1, "echo/unary")
        assert caught.value.code == "UNAVAILABLE"
        assert caught.value.has_not_started


async def test_what_the_peer_offered_stays_until_the_newer_connection_says_more() -> None:
    async with open_fleet() as fleet:
        await fleet.add("w1", names=["a/old"])
        new = await fleet.connect("w1")
        with fleet.environment.attach("w1", new.ours) as peer:
            assert set(peer.operations) == {"a/old"}
            peer.set_operations(new.ours, offers(["a/new"]), "2")
            assert set(peer.operations) == {"a/new"}
            assert peer.operations_version == "2"
            assert fleet.environment.offering("a/old") == ()


async def test_what_an_older_connection_says_counts_once_the_newer_is_gone() -> None:
    async with open_fleet() as fleet:
        old, new = await two_connections(fleet)
        old.peer.set_operations(old.ours, offers(["a/late"]), "3")
        assert set(old.peer.operations) == set(ECHO)
        fleet.detach(new)
        assert set(old.peer.operations) == {"a/late"}
        assert old.peer.operations_version == "3"
        assert fleet.environment.offering("echo/unary") == ()


async def test_a_session_that_is_detached_says_nothing_more() -> None:
    async with open_fleet() as fleet:
        old, new = await two_connections(fleet)
        fleet.detach(old)
        new.peer.set_operations(old.ours, offers(["a/late"]), "3")
        assert set(new.peer.operations) == set(ECHO)


async def test_a_session_attached_twice_is_there_until_both_have_left() -> None:
    async with open_fleet() as fleet:
        worker = await fleet.connect("w1")
        with fleet.environment.attach("w1", worker.ours):
            with fleet.environment.attach("w1", worker.ours) as peer:
                assert peer.sessions == (worker.ours,)
            assert fleet.environment.get("w1") is peer
        assert fleet.environment.get("w1") is None


async def test_changes_are_told() -> None:
    async with open_fleet() as fleet:
        seen = []

        async def follow() -> None:
            version = fleet.environment.version
            while True:
                version = await fleet.environment.wait_changed(version)
                seen.append([peer.name for peer in fleet.environment])

        async with trio.open_nursery() as nursery:
            nursery.start_soon(follow)
            await trio.testing.wait_all_tasks_blocked()
            worker = await fleet.add("w1")
            await trio.testing.wait_all_tasks_blocked()
            assert seen[-1] == ["w1"]
            told = len(seen)
            worker.peer.set_operations(worker.ours, offers(["a/b"]), "2")
            await trio.testing.wait_all_tasks_blocked()
            assert len(seen) == told + 1
            fleet.detach(worker)
            await trio.testing.wait_all_tasks_blocked()
            assert seen[-1] == []
            nursery.cancel_scope.cancel()

"""Peers that shut down in good order: no call is lost by it, and none runs twice."""

from __future__ import annotations

import msgspec
import pytest
import trio

from alknet.call.codes import CallError
from alknet.call.peers import First, PeerRef, RoundRobin
from alknet.core.contracts import CloseCode
from alknet.core.limits import Limits
from tests.call.peers.fleet import open_fleet
from tests.call.sessions import CARRIERS

FIRST = PeerRef.any(First())
TURNS = PeerRef.any(RoundRobin())


@pytest.mark.parametrize("carrier", CARRIERS)
@pytest.mark.parametrize("pause", range(0, 20, 3))
async def test_no_call_is_lost_or_run_twice_while_a_peer_shuts_down(
    carrier: str, pause: int
) -> None:
    async with open_fleet(carrier=carrier) as fleet:
        workers = [await fleet.add(name) for name in ("w1", "w2")]
        w1 = workers[0]
        for _ in range(2):  # they have a stream each that calls go by
            await fleet.environment.call(TURNS, "echo/unary")
        outputs = []

        async def call(number: int) -> None:
            for _ in range(5):
                sent = {"n": number}
                output = await fleet.environment.call(TURNS, "echo/unary", sent)
                outputs.append(msgspec.json.decode(output) == sent)

        async with trio.open_nursery() as nursery:
            for number in range(20):
                nursery.start_soon(call, number)
            for _ in range(pause):
                await trio.lowlevel.checkpoint()
            w1.theirs.connection.draining.set()
        assert outputs == [True] * 100
        assert sum(worker.operations.started for worker in workers) == 102


@pytest.mark.parametrize("carrier", CARRIERS)
async def test_a_call_that_outlasts_the_shutdown_is_not_taken_for_one_that_has_not_begun(
    carrier: str, autojump_clock: trio.testing.MockClock
) -> None:
    async with open_fleet(carrier=carrier, limits=Limits(drain_timeout_s=3.0)) as fleet:
        w1, w2 = await fleet.add("w1"), await fleet.add("w2")
        release = trio.Event()

        async def stubborn(_given: msgspec.Raw) -> object:
            with trio.CancelScope(shield=True):
                await release.wait()
            return None

        w1.operations.queries["echo/slow"] = stubborn
        failed: list[CallError] = []

        async def call() -> None:
            with pytest.raises(CallError) as caught:
                await fleet.environment.call(FIRST, "echo/slow")
            failed.append(caught.value)
            release.set()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(call)
            await trio.testing.wait_all_tasks_blocked()
            w1.theirs.connection.draining.set()
        assert [error.code for error in failed] == ["UNAVAILABLE"]
        assert not failed[0].has_not_started
        assert (w1.operations.started, w2.operations.started) == (1, 0)


@pytest.mark.parametrize("carrier", CARRIERS)
async def test_a_call_that_runs_when_a_limit_ends_the_connection_has_begun(carrier: str) -> None:
    async with open_fleet(carrier=carrier) as fleet:
        w1, w2 = await fleet.add("w1"), await fleet.add("w2")
        failed: list[CallError] = []

        async def call() -> None:
            with pytest.raises(CallError) as caught:
                await fleet.environment.call(FIRST, "echo/slow")
            failed.append(caught.value)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(call)
            await trio.testing.wait_all_tasks_blocked()
            w1.theirs.end(CloseCode.LIMIT, "too much")
        assert [error.code for error in failed] == ["UNAVAILABLE"]
        assert not failed[0].has_not_started
        assert (w1.operations.started, w2.operations.started) == (1, 0)


async def test_a_peer_that_takes_its_leave_is_the_last_choice() -> None:
    async with open_fleet() as fleet:
        w1, w2 = await fleet.add("w1"), await fleet.add("w2")
        w1.ours.is_leaving = True
        for _ in range(3):
            await fleet.environment.call(FIRST, "echo/unary")
        assert (w1.operations.started, w2.operations.started) == (0, 3)
        fleet.detach(w2)
        await fleet.environment.call(FIRST, "echo/unary")
        assert w1.operations.started == 1


async def test_an_older_connection_serves_where_the_peer_leaves_by_the_newer() -> None:
    async with open_fleet() as fleet:
        old, new = await fleet.add("w1"), await fleet.connect("w1")
        fleet.attach(new)
        new.ours.is_leaving = True
        assert new.peer.session is old.ours
        old.ours.end(0)
        assert new.peer.session is new.ours

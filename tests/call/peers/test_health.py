"""Peers that fail are left alone for a while, and asked before they come back."""

from __future__ import annotations

from itertools import pairwise

import msgspec
import pytest
import trio
import trio.testing

from alknet.call.codes import CallError
from alknet.call.peers import First, LeastInFlight, PeerRef
from alknet.call.peers.health import EJECT_AFTER, FIRST_S, FORGET_S, MOST_S
from alknet.core.contracts import CloseCode
from tests.call.peers.fleet import Fleet, Worker, open_fleet

FIRST = PeerRef.any(First())


async def unavailable(_given: msgspec.Raw) -> object:
    raise CallError("UNAVAILABLE", "my disk is gone")


async def hang(_given: msgspec.Raw) -> object:
    await trio.sleep_forever()
    raise AssertionError


async def fail(fleet: Fleet, worker: Worker, times: int, **options: float) -> None:
    for _ in range(times):
        with pytest.raises(CallError):
            await fleet.environment.call(
                PeerRef.specific(worker.name), "echo/slow", timeout_s=options.get("timeout_s")
            )


async def sick(fleet: Fleet, name: str) -> Worker:
    """Return a worker whose calls and pings fail."""
    worker = await fleet.add(name)
    worker.operations.queries["echo/slow"] = unavailable
    worker.operations.queries["node/ping"] = unavailable
    return worker


async def test_a_peer_that_fails_again_and_again_is_passed_by(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with open_fleet() as fleet:
        w1, w2 = await sick(fleet, "w1"), await fleet.add("w2")
        await fail(fleet, w1, EJECT_AFTER - 1)
        assert [peer.name for peer in fleet.environment.offering("echo/unary")] == ["w1", "w2"]
        await fail(fleet, w1, 1)
        assert not w1.peer.is_healthy
        assert fleet.environment.offering("echo/unary") == (w2.peer,)
        for _ in range(10):
            await fleet.environment.call(FIRST, "echo/unary")
        assert w2.operations.started == 10


async def test_a_peer_that_was_detached_meanwhile_is_judged_no_more() -> None:
    async with open_fleet() as fleet:
        w1, w2, w3 = await sick(fleet, "w1"), await fleet.add("w2"), await fleet.add("w3")
        await fail(fleet, w1, EJECT_AFTER - 1)
        go = trio.Event()

        async def unavailable_later(given: msgspec.Raw) -> object:
            await go.wait()
            return await unavailable(given)

        w1.operations.queries["echo/slow"] = unavailable_later
        async with trio.open_nursery() as nursery:
            nursery.start_soon(fail, fleet, w1, 1)
            await trio.testing.wait_all_tasks_blocked()
            w1.attachment.close()  # while its session lives
            go.set()
        assert fleet.environment.offering("echo/unary") == (w2.peer, w3.peer)


async def test_an_answer_in_between_begins_the_count_anew() -> None:
    async with open_fleet("w2") as fleet:
        w1 = await sick(fleet, "w1")
        for _ in range(3):
            await fail(fleet, w1, EJECT_AFTER - 1)
            await fleet.environment.call(PeerRef.specific("w1"), "echo/unary")
        assert w1.peer.is_healthy


async def test_a_refusal_is_an_answer() -> None:
    async with open_fleet("w2") as fleet:
        w1 = await sick(fleet, "w1")
        await fail(fleet, w1, EJECT_AFTER - 1)
        with pytest.raises(CallError, match="NOT_FOUND"):
            await fleet.environment.call(PeerRef.specific("w1"), "no/such")
        assert w1.peer.failures == 0


async def test_an_ejected_peer_comes_back_once_it_answers(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with open_fleet("w2") as fleet:
        w1 = await sick(fleet, "w1")
        await fail(fleet, w1, EJECT_AFTER)
        began_at = trio.current_time()
        await trio.sleep(FIRST_S * 10)
        assert fleet.environment.offering("echo/unary") == (fleet.environment.get("w2"),)

        async def pong(_given: msgspec.Raw) -> object:
            return {}

        w1.operations.queries["node/ping"] = pong
        await trio.sleep(MOST_S)
        assert w1.peer.is_healthy
        assert trio.current_time() - began_at <= FIRST_S * 10 + MOST_S
        assert [peer.name for peer in fleet.environment.offering("echo/unary")] == ["w2", "w1"]


async def test_of_a_peer_that_goes_while_it_is_asked_nothing_is_kept(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with open_fleet("w2") as fleet:
        w1 = await sick(fleet, "w1")
        w1.operations.queries["node/ping"] = hang
        await fail(fleet, w1, EJECT_AFTER)
        await trio.sleep(FIRST_S + 1)
        assert w1.ours.calling.pending
        w1.ours.end(CloseCode.OK)  # it fails the probe, and
        w1.attachment.close()  # ends the attachment
        await trio.sleep(1)
        assert not fleet.environment._ejector._record


async def test_probes_become_rarer(autojump_clock: trio.testing.MockClock) -> None:
    async with open_fleet("w2") as fleet:
        w1 = await sick(fleet, "w1")
        pings: list[float] = []

        async def ping(_given: msgspec.Raw) -> object:
            pings.append(trio.current_time())
            raise CallError("UNAVAILABLE", "not yet")

        w1.operations.queries["node/ping"] = ping
        await fail(fleet, w1, EJECT_AFTER)
        await trio.sleep(600)
        pauses = [later - sooner for sooner, later in pairwise(pings)]
        assert max(pauses) <= MOST_S
        assert min(pauses[6:]) >= MOST_S / 2
        assert pings[0] <= FIRST_S
        assert len(pings) < 30


@pytest.mark.parametrize("count", [1, 2, 3, 4, 5])
async def test_half_of_the_peers_at_most_are_ejected(
    count: int, autojump_clock: trio.testing.MockClock
) -> None:
    async with open_fleet() as fleet:
        workers = [await sick(fleet, f"w{n}") for n in range(count)]
        for worker in workers:
            await fail(fleet, worker, EJECT_AFTER)
        ejected = [worker for worker in workers if not worker.peer.is_healthy]
        assert len(ejected) == count // 2
        for worker in workers:
            if worker.peer.is_healthy:
                fleet.detach(worker)
        assert len(fleet.environment.offering("echo/unary")) >= len(ejected) - len(ejected) // 2


async def test_no_peer_that_offers_it_is_well_is_unavailable() -> None:
    async with open_fleet() as fleet:
        w1 = await sick(fleet, "w1")
        await fleet.add("w2", names=["other/one"])
        await fail(fleet, w1, EJECT_AFTER)
        with pytest.raises(CallError, match="failed of late") as caught:
            await fleet.environment.call(PeerRef.any(LeastInFlight()), "echo/unary")
        assert caught.value.code == "UNAVAILABLE"
        assert caught.value.retryable
        await fleet.environment.call(PeerRef.specific("w1"), "echo/unary")


async def test_callers_in_a_hurry_eject_nobody(autojump_clock: trio.testing.MockClock) -> None:
    async with open_fleet("w2") as fleet:
        w1 = await fleet.add("w1")
        await fail(fleet, w1, 2 * EJECT_AFTER, timeout_s=0.5)
        assert len(fleet.environment.offering("echo/slow")) == 2
        await fail(fleet, w1, EJECT_AFTER, timeout_s=2.0)
        assert not w1.peer.is_healthy


async def test_subscriptions_that_fail_count_too() -> None:
    async with open_fleet("w2") as fleet:
        w1 = await fleet.add("w1")
        w1.operations.timeouts["echo/endless"] = 0.0

        async def take_all() -> None:
            ref = PeerRef.specific("w1")
            async with fleet.environment.subscribe(ref, "echo/endless") as items:
                async for _ in items:
                    pass

        for _ in range(EJECT_AFTER):
            with pytest.raises(CallError, match="TIMEOUT"):
                await take_all()
        assert not w1.peer.is_healthy


async def test_calls_lost_with_an_old_connection_say_nothing_of_the_new_one() -> None:
    async with open_fleet("w2") as fleet, trio.open_nursery() as nursery:
        old = await fleet.add("w1")

        async def call() -> None:
            with pytest.raises(CallError, match="UNAVAILABLE"):
                await fleet.environment.call(PeerRef.specific("w1"), "echo/slow")

        for _ in range(2 * EJECT_AFTER):
            nursery.start_soon(call)
        await trio.testing.wait_all_tasks_blocked()
        new = await fleet.connect("w1")
        fleet.attach(new)
        old.vanish()
        await trio.testing.wait_all_tasks_blocked()
        assert new.peer.is_healthy
        assert new.peer.in_flight == 0


async def test_a_new_connection_brings_an_ejected_peer_back(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with open_fleet("w2") as fleet:
        old = await sick(fleet, "w1")
        await fail(fleet, old, EJECT_AFTER)
        new = await fleet.connect("w1")
        fleet.attach(new)
        assert new.peer.is_healthy
        await fleet.environment.call(PeerRef.specific("w1"), "echo/unary")
        await trio.sleep(2 * MOST_S)  # and nobody asks any more whether it lives
        assert new.operations.started == 1


async def test_a_peer_that_leaves_while_it_is_ejected_is_forgotten() -> None:
    async with open_fleet("w2") as fleet:
        w1 = await sick(fleet, "w1")
        await fail(fleet, w1, EJECT_AFTER)
        fleet.detach(w1)
        assert [peer.name for peer in fleet.environment] == ["w2"]
        again = await fleet.add("w1")
        assert again.peer.is_healthy
        assert len(fleet.environment.offering("echo/unary")) == 2


async def test_a_peer_that_fails_again_soon_is_left_alone_for_longer(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with open_fleet("w2") as fleet:
        w1 = await fleet.add("w1")
        w1.operations.queries["echo/slow"] = unavailable

        async def away_for() -> float:
            await fail(fleet, w1, EJECT_AFTER)
            began_at = trio.current_time()
            while len(fleet.environment.offering("echo/slow")) < 2:
                await fleet.environment.wait_changed(fleet.environment.version)
            return trio.current_time() - began_at

        first, second, third = [await away_for() for _ in range(3)]
        assert FIRST_S / 2 <= first <= FIRST_S
        assert FIRST_S <= second <= 2 * FIRST_S
        assert 2 * FIRST_S <= third <= 4 * FIRST_S
        await trio.sleep(FORGET_S + 1)
        assert await away_for() <= FIRST_S

"""Calls to peers: who gets them, what moves, and what must not."""

from __future__ import annotations

import msgspec
import pytest
import trio

from alknet.call.codes import CallError
from alknet.call.peers import First, PeerEnvironment, PeerRef, RoundRobin
from alknet.call.peers.environment import MOST_TRIES, SMALL_BYTES
from alknet.call.session import CallOptions
from alknet.core.limits import Limits
from alknet.errors import LocalError
from alknet.testing import cancel_at_every_checkpoint
from tests.call.peers.fleet import Worker, offers, open_fleet
from tests.call.sessions import is_idle

FIRST = PeerRef.any(First())
W1 = PeerRef.specific("w1")


def started(*workers: Worker) -> list[int]:
    return [worker.operations.started for worker in workers]


async def test_a_call_goes_to_the_peer_that_is_named() -> None:
    async with open_fleet("w1") as fleet:
        w2 = await fleet.add("w2")
        output = await fleet.environment.call(PeerRef.specific("w2"), "echo/unary", {"a": 1})
        assert msgspec.json.decode(output) == {"a": 1}
        assert w2.operations.started == 1
        assert w2.peer.rtt_s is not None
        assert w2.peer.in_flight == 0


async def test_any_takes_only_peers_that_offer_the_operation() -> None:
    async with open_fleet() as fleet:
        plain = await fleet.add("w1", names=["echo/unary"])
        special = await fleet.add("w2", names=["echo/unary", "echo/stream"])
        environment = fleet.environment
        async with environment.subscribe(FIRST, "echo/stream", {"count": 2}) as items:
            assert [bytes(item) async for item in items] == [b'{"n":0}', b'{"n":1}']
        assert started(plain, special) == [0, 1]
        assert [peer.name for peer in environment.offering("echo/unary")] == ["w1", "w2"]
        special.peer.set_operations(special.ours, offers(["echo/unary"]), "2")
        with pytest.raises(CallError, match="no attached peer offers"):
            await environment.call(FIRST, "echo/stream")


async def test_nobody_to_ask_is_not_found() -> None:
    async with open_fleet("w1") as fleet:
        for ref, operation in ((FIRST, "no/such"), (PeerRef.specific("w9"), "echo/unary")):
            with pytest.raises(CallError) as caught:
                await fleet.environment.call(ref, operation)
            assert caught.value.code == "NOT_FOUND"
            assert caught.value.has_not_started


async def test_streams_of_every_kind_run_at_the_peer_and_are_counted() -> None:
    async with open_fleet() as fleet:
        peer = (await fleet.add("w1")).peer
        async with fleet.environment.upload(W1, "echo/total") as upload:
            assert peer.in_flight == 1
            for n in (1, 2, 3):
                await upload.send(n)
            assert bytes(await upload.finish()) == b"6"
        async with fleet.environment.bidi(W1, "echo/each") as both:
            await both.send("x")
            assert bytes(await anext(both)) == b'"x"'
            await both.finish()
        assert peer.in_flight == 0


async def test_a_call_that_was_not_sent_moves_to_another_peer() -> None:
    async with open_fleet() as fleet:
        w1, w2 = await fleet.add("w1"), await fleet.add("w2")
        w1.ours.end(0)
        await fleet.environment.call(FIRST, "echo/unary")
        assert started(w1, w2) == [0, 1]


async def test_a_call_that_a_peer_refuses_as_it_shuts_down_moves_and_runs_once() -> None:
    async with open_fleet() as fleet, trio.open_nursery() as nursery:
        w1, w2 = await fleet.add("w1"), await fleet.add("w2")
        nursery.start_soon(fleet.environment.call, W1, "echo/slow")
        await trio.testing.wait_all_tasks_blocked()
        w1.theirs.connection.draining.set()
        await trio.testing.wait_all_tasks_blocked()
        await fleet.environment.call(FIRST, "echo/unary")
        assert started(w1, w2) == [1, 1]
        nursery.cancel_scope.cancel()


async def test_a_call_that_a_busy_peer_refuses_moves() -> None:
    limits = Limits(calls_per_connection=1)
    async with open_fleet(limits=limits) as fleet, trio.open_nursery() as nursery:
        w1, w2 = await fleet.add("w1"), await fleet.add("w2")
        nursery.start_soon(fleet.environment.call, W1, "echo/slow")
        await trio.testing.wait_all_tasks_blocked()
        await fleet.environment.call(FIRST, "echo/unary")
        assert started(w1, w2) == [1, 1]
        with pytest.raises(CallError, match="too many calls") as caught:
            await fleet.environment.call(W1, "echo/unary")
        assert caught.value.has_not_started
        nursery.cancel_scope.cancel()


async def test_a_subscription_moves_before_it_is_entered() -> None:
    async with open_fleet() as fleet:
        w1, w2 = await fleet.add("w1"), await fleet.add("w2")
        w1.ours.end(0)
        async with fleet.environment.subscribe(FIRST, "echo/stream", {"count": 1}) as items:
            assert w2.peer.in_flight == 1
            assert [bytes(item) async for item in items] == [b'{"n":0}']
        assert started(w1, w2) == [0, 1]


async def test_a_call_that_may_have_started_never_moves() -> None:
    async with open_fleet() as fleet, trio.open_nursery() as nursery:
        w1, w2 = await fleet.add("w1"), await fleet.add("w2")
        failed: list[CallError] = []

        async def call() -> None:
            with pytest.raises(CallError) as caught:
                await fleet.environment.call(FIRST, "echo/slow")
            failed.append(caught.value)

        nursery.start_soon(call)
        await trio.testing.wait_all_tasks_blocked()
        w1.vanish()
        await trio.testing.wait_all_tasks_blocked()
        assert [error.code for error in failed] == ["UNAVAILABLE"]
        assert not failed[0].has_not_started
        assert started(w1, w2) == [1, 0]
        assert w1.peer.in_flight == 0


async def test_what_a_handler_says_of_others_does_not_move_its_own_call() -> None:
    async with open_fleet() as fleet:
        w1, w2 = await fleet.add("w1"), await fleet.add("w2")

        async def refused(_given: msgspec.Raw) -> object:
            error = CallError("UNAVAILABLE", "my own peer was too busy")
            error.is_refused = True  # as it was told to this handler, of another call
            raise error

        w1.operations.queries["echo/unary"] = refused
        with pytest.raises(CallError, match="too busy") as caught:
            await fleet.environment.call(FIRST, "echo/unary")
        assert not caught.value.has_not_started
        assert started(w1, w2) == [1, 0]


async def test_specific_never_falls_through_to_another_peer() -> None:
    async with open_fleet() as fleet:
        w1, w2 = await fleet.add("w1"), await fleet.add("w2")
        w1.ours.end(0)
        with pytest.raises(CallError) as caught:
            await fleet.environment.call(W1, "echo/unary")
        assert caught.value.code == "UNAVAILABLE"
        assert started(w1, w2) == [0, 0]


async def test_a_call_tries_each_peer_once_and_so_many_at_most() -> None:
    async with open_fleet() as fleet:
        workers = [await fleet.add(f"w{n}") for n in range(MOST_TRIES + 2)]
        for worker in workers:
            worker.theirs.serving.is_draining = True
        with pytest.raises(CallError, match="shutting down"):
            await fleet.environment.call(FIRST, "echo/unary")
        refusals = [worker.peer.failures for worker in workers]
        assert refusals == [1] * MOST_TRIES + [0] * 2
        fleet.detach(workers[-1])
        workers[1].theirs.serving.is_draining = False
        await fleet.environment.call(FIRST, "echo/unary")
        assert workers[1].operations.started == 1


@pytest.mark.parametrize("pause", range(12))
async def test_a_call_runs_once_at_most_whenever_its_peer_vanishes(pause: int) -> None:
    async with open_fleet() as fleet, trio.open_nursery() as nursery:
        w1, w2 = await fleet.add("w1"), await fleet.add("w2")

        async def vanish() -> None:
            for _ in range(pause):
                await trio.lowlevel.checkpoint()
            w1.vanish()

        nursery.start_soon(vanish)
        error: CallError | None = None
        try:
            await fleet.environment.call(FIRST, "echo/unary")
        except CallError as exc:
            error = exc
        if error is not None:
            assert error.code == "UNAVAILABLE"
            assert not error.has_not_started
            assert w2.operations.started == 0
        assert sum(started(w1, w2)) <= 1
        assert w1.peer.in_flight == w2.peer.in_flight == 0


async def test_a_cancel_at_any_checkpoint_leaves_nothing_at_either_end() -> None:
    async with open_fleet() as fleet:
        worker = await fleet.add("w1")
        environment = fleet.environment

        async def make() -> None:
            await environment.call(FIRST, "echo/unary", {"a": 1})
            async with environment.subscribe(FIRST, "echo/stream", {"count": 3}) as items:
                async for _ in items:
                    pass
            async with environment.upload(FIRST, "echo/total") as upload:
                await upload.send(1)
                await upload.finish()

        async def after() -> None:
            assert await is_idle(worker.ours, worker.theirs)
            assert worker.peer.in_flight == 0
            assert worker.operations.running == 0

        assert await cancel_at_every_checkpoint(make, after) > 5
        assert worker.peer.failures == 0


async def test_a_cancelled_call_is_aborted_at_the_peer() -> None:
    async with open_fleet() as fleet:
        worker = await fleet.add("w1")
        with trio.CancelScope() as scope:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(fleet.environment.call, FIRST, "echo/slow")
                await trio.testing.wait_all_tasks_blocked()
                assert worker.peer.in_flight == 1
                scope.cancel()
        await trio.testing.wait_all_tasks_blocked()
        assert worker.operations.cancelled == 1
        assert await is_idle(worker.ours, worker.theirs)


async def test_large_outputs_take_a_stream_of_their_own() -> None:
    async with open_fleet() as fleet:
        worker = await fleet.add("w1")
        await fleet.environment.call(W1, "echo/unary")
        before = worker.ours.lanes.streams.copy()
        worker.peer.set_operations(worker.ours, offers(["echo/slow"], large_output=True), "2")
        async with trio.open_nursery() as nursery:
            nursery.start_soon(fleet.environment.call, W1, "echo/slow")
            await trio.testing.wait_all_tasks_blocked()
            (own,) = worker.ours.lanes.streams - before
            assert own.is_single_use
            nursery.cancel_scope.cancel()


async def test_turns_are_kept_for_each_operation_by_itself() -> None:
    async with open_fleet() as fleet:
        w1, w2 = await fleet.add("w1"), await fleet.add("w2")
        ref = PeerRef.any(RoundRobin())
        for _ in range(4):
            await fleet.environment.call(ref, "echo/unary")
            async with fleet.environment.subscribe(ref, "echo/stream", {"count": 1}) as items:
                await anext(items)
        assert started(w1, w2) == [4, 4]


def test_references_are_by_name_or_any() -> None:
    assert PeerRef.named("any") is PeerRef.any()
    assert PeerRef.named("w1") == PeerRef.specific("w1")
    assert (str(PeerRef.any()), str(PeerRef.specific("w1"))) == ("@any", "@w1")
    for name in ("any", "W1", "", "a/b"):
        with pytest.raises(LocalError):
            PeerRef.specific(name)


def test_an_empty_environment_is_empty() -> None:
    environment = PeerEnvironment()
    assert len(environment) == 0
    assert list(environment) == []
    assert environment.get("w1") is None


async def test_all_tries_together_have_the_time_of_the_call(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with open_fleet() as fleet:
        for name in ("w1", "w2", "w3"):
            worker = await fleet.add(name)
            worker.theirs.serving.is_draining = True
            slow_down(worker)
        began_at = trio.current_time()
        with pytest.raises(CallError, match="TIMEOUT"):
            await fleet.environment.call(FIRST, "echo/unary", timeout_s=5.0)
        # Two tries of 3 s, and no third.
        assert trio.current_time() - began_at <= 6.0


def slow_down(worker: Worker) -> None:
    """Let each request wait 3 s before it is seen by the peer."""
    calling = worker.ours.calling
    call = calling.call

    async def late(operation: str, input: object, options: CallOptions) -> msgspec.Raw:  # noqa: A002
        await trio.sleep(3)
        return await call(operation, input, options)

    calling.call = late  # type: ignore[method-assign]  # a network, as far as a call sees it


@pytest.mark.parametrize(("size", "counts"), [(SMALL_BYTES - 2, True), (SMALL_BYTES - 1, False)])
async def test_only_small_calls_say_how_fast_a_peer_is(size: int, counts: bool) -> None:
    async with open_fleet() as fleet:
        worker = await fleet.add("w1")
        await fleet.environment.call(W1, "echo/unary", "x" * size)
        assert (worker.peer.rtt_s is not None) == counts

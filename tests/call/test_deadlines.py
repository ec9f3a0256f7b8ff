"""Deadlines of our calls: none is lost, none comes early, and answered calls are forgotten."""

from __future__ import annotations

import math

import msgspec
import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st

from alknet.call.codes import CallError
from alknet.call.deadlines import MOST_STALE, Deadlines
from alknet.call.pending import PendingCall
from alknet.call.proto import Aborted, Requested
from tests.call.sessions import CARRIERS, Operations, RawPeer, raw_peer, session_pair

both = pytest.mark.parametrize("carrier", CARRIERS)


def _call(name: str = "d1") -> PendingCall:
    return PendingCall(name, None)  # type: ignore[arg-type]  # nothing here looks at the stream


@given(st.lists(st.tuples(st.floats(0, 100), st.booleans()), max_size=60), st.floats(0, 100))
def test_exactly_the_unanswered_calls_of_the_past_expire(
    calls: list[tuple[float, bool]], now: float
) -> None:
    deadlines = Deadlines(lambda: len(calls))
    made = [(deadline, _call(), is_answered) for deadline, is_answered in calls]
    for deadline, call, _ in made:
        deadlines.add(deadline, call)
    assert deadlines.next == min((deadline for deadline, _, _ in made), default=math.inf)
    for _, call, is_answered in made:
        if is_answered:
            call.settle(msgspec.Raw(b"1"))
    expired = set(map(id, deadlines.expired(now)))
    assert expired == {id(c) for at, c, is_answered in made if at <= now and not is_answered}
    left = [at for at, _, is_answered in made if at > now and not is_answered]
    assert now < deadlines.next <= min(left, default=math.inf)


def test_answered_calls_do_not_pile_up() -> None:
    waiting = [_call(f"w{n}") for n in range(5)]
    deadlines = Deadlines(lambda: len(waiting))
    for call in waiting:
        deadlines.add(50.0, call)
    for n in range(1000):
        call = _call(f"d{n}")
        deadlines.add(100.0 + n, call)
        call.settle(msgspec.Raw(b"1"))
        assert len(deadlines) <= 2 * len(waiting) + MOST_STALE + 1
    assert list(deadlines.expired(2000.0)) == waiting


async def test_an_output_that_was_taken_is_not_kept() -> None:
    call = _call()
    call.settle(msgspec.Raw(b"[1]"))
    assert bytes(await call.wait()) == b"[1]"
    assert not bytes(await call.wait())


@both
async def test_each_call_times_out_at_its_own_time(
    carrier: str, autojump_clock: trio.testing.MockClock
) -> None:
    ended: dict[float, float] = {}
    operations = Operations()
    async with session_pair(carrier, operations) as (client, server):
        # A long deadline first: those that come later and end sooner must not wait for it.
        async with trio.open_nursery() as nursery:

            async def call(timeout_s: float) -> None:
                with pytest.raises(CallError, match="TIMEOUT"):
                    await client.call("echo/slow", timeout_s=timeout_s)
                ended[timeout_s] = trio.current_time()

            for timeout_s in (50, 5, 20, 1, 20):
                nursery.start_soon(call, timeout_s)
                await trio.testing.wait_all_tasks_blocked()
        assert all(at - 0.1 <= timeout_s <= at for timeout_s, at in ended.items())
        assert len(ended) == 4
        await trio.testing.wait_all_tasks_blocked()
        assert not client.calling.pending
        assert not server.serving.calls


@both
async def test_a_callee_that_never_answers_is_given_up_and_told(
    carrier: str, autojump_clock: trio.testing.MockClock
) -> None:
    async with raw_peer(carrier, Operations()) as (peer, us), trio.open_nursery() as nursery:

        async def call() -> None:
            with pytest.raises(CallError, match="TIMEOUT"):
                await us.call("a/b", timeout_s=3)
            assert trio.current_time() == pytest.approx(4)  # a second of grace

        nursery.start_soon(call)
        far = peer
        if carrier == "memory":
            far = RawPeer(peer.connection, await peer.connection.accept_stream())
        request = await far.receive()
        assert isinstance(request, Requested)
        assert await far.receive() == Aborted(request.id)


async def test_a_deadline_that_passed_before_the_call_ends_it(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with session_pair("memory", Operations()) as (client, _server):
        await client.call("echo/unary")
        with pytest.raises(CallError, match="TIMEOUT"):
            await client.call("echo/slow", timeout_s=-5)
        assert trio.current_time() < 0.1

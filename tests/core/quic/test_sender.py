"""When a sender's bytes are taken, and what a cancel of it leaves behind."""

from __future__ import annotations

import trio
from trio.testing import MockClock, assert_checkpoints

from tests.core.quic.worlds import exchange, world


class CancelAfterStep(trio.abc.Instrument):
    """Cancels *scope* once the task of that name has run until it waits."""

    def __init__(self, name: str, scope: trio.CancelScope) -> None:
        self._name = name
        self._scope = scope

    def after_task_step(self, task: trio.lowlevel.Task) -> None:
        if task.name == self._name:
            self._scope.cancel()


async def test_a_cancel_after_the_hand_over_does_not_hide_that_bytes_were_taken(
    autojump_clock: MockClock,
) -> None:
    async with world() as here:
        dialer, _ = await here.connect()
        stream = await dialer.open_stream()
        scope, has_returned = trio.CancelScope(), False

        async def send() -> None:
            nonlocal has_returned
            with scope:
                await stream.send_all(b"taken")
                has_returned = True

        trio.lowlevel.add_instrument(CancelAfterStep("the sender", scope))
        async with trio.open_nursery() as nursery:
            nursery.start_soon(send, name="the sender")
        assert has_returned
        assert not scope.cancelled_caught


async def test_a_sender_that_is_cancelled_already_hands_nothing_over(
    autojump_clock: MockClock,
) -> None:
    async with world() as here:
        dialer, _ = await here.connect()
        stream = await dialer.open_stream()
        with trio.CancelScope() as scope:
            scope.cancel()
            await stream.send_all(b"never")
        assert scope.cancelled_caught
        assert dialer.engine.unacknowledged(stream.stream_id) == 0


async def test_a_sender_yields(autojump_clock: MockClock) -> None:
    async with world() as here:
        dialer, _ = await here.connect()
        stream = await dialer.open_stream()
        for data in (b"", b"something"):
            with assert_checkpoints():
                await stream.send_all(data)


# what is sent at once


async def test_what_nothing_will_join_leaves_without_another_tick(
    autojump_clock: MockClock,
) -> None:
    async with world() as here:
        dialer, acceptor = await here.connect()
        await exchange(dialer, acceptor, b"warm")
        await trio.sleep(1)
        stream, before = await dialer.open_stream(), len(here.net.trace)
        assert stream.send_now(b"alone")
        assert len(here.net.trace) == before + 1
        there = await acceptor.accept_stream()
        assert await there.receive_some() == b"alone"


async def test_who_waits_for_a_turn_is_not_overtaken(autojump_clock: MockClock) -> None:
    async with world() as here:
        first, _ = await here.connect()
        second, acceptor = await here.connect()
        await trio.sleep(1)
        waiting, stream = await first.open_stream(), await second.open_stream()
        before = len(here.net.trace)
        first.engine.send_stream_data(waiting.stream_id, b"since before")
        first.schedule()
        assert stream.send_now(b"alone")
        assert len(here.net.trace) == before
        there = await acceptor.accept_stream()
        assert await there.receive_some() == b"alone"
        assert len(here.net.trace) >= before + 2

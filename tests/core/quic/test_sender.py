"""When a sender's bytes are taken, and what a cancel of it leaves behind."""

from __future__ import annotations

import trio
from trio.testing import MockClock, assert_checkpoints

from tests.core.quic.worlds import world


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

"""Wake-ups cost one pass and nothing else, and calls wake nobody who has nothing to do."""

from __future__ import annotations

from collections import Counter

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from alknet.core.contracts import Stream
from alknet.core.quic.wakeups import Alarm, Doorbell
from tests.core.quic.worlds import world

CALLS = 100
# As long as a call takes on a fast machine.
CALL_S = 0.0001


class Steps(trio.abc.Instrument):
    """Counts how often each task ran."""

    def __init__(self) -> None:
        self.of: Counter[str] = Counter()

    def before_task_step(self, task: trio.lowlevel.Task) -> None:
        self.of[task.name] += 1


# the doorbell


async def test_many_rings_are_one_wake_up() -> None:
    bell, woken = Doorbell(), 0

    async def wait() -> None:
        nonlocal woken
        while True:
            await bell.wait()
            woken += 1

    async with trio.open_nursery() as nursery:
        nursery.start_soon(wait)
        await wait_all_tasks_blocked()
        for round_ in range(1, 5):
            bell.ring()
            bell.ring()
            await wait_all_tasks_blocked()
            assert woken == round_
        nursery.cancel_scope.cancel()


async def test_a_ring_before_the_wait_is_not_lost_and_still_yields() -> None:
    bell = Doorbell()
    bell.ring()
    with trio.testing.assert_checkpoints():
        await bell.wait()
    with trio.move_on_after(0) as scope:
        await bell.wait()
    assert scope.cancelled_caught


async def test_a_cancelled_wait_keeps_the_ring() -> None:
    bell = Doorbell()
    with trio.move_on_after(0):
        await bell.wait()
    bell.ring()
    with trio.CancelScope() as scope:
        scope.cancel()
        await bell.wait()
    assert scope.cancelled_caught
    await bell.wait()


async def test_a_ring_for_a_task_that_is_cancelled_at_once_is_its_wake_up() -> None:
    bell, woken = Doorbell(), 0

    async def wait() -> None:
        nonlocal woken
        await bell.wait()
        woken += 1

    async with trio.open_nursery() as nursery:
        nursery.start_soon(wait)
        await wait_all_tasks_blocked()
        bell.ring()
        nursery.cancel_scope.cancel()
    assert woken == 1


# the alarm


async def test_an_alarm_moves_both_ways_and_wakes_once(autojump_clock: MockClock) -> None:
    alarm, steps = Alarm(), Steps()

    async def move() -> None:
        for when in (7.0, 3.0, 5.0):
            alarm.move(start + when)
            await wait_all_tasks_blocked()

    async with trio.open_nursery() as nursery:
        start = trio.current_time()
        trio.lowlevel.add_instrument(steps)
        nursery.start_soon(alarm.sleep_until, None, name="sleeper")
        nursery.start_soon(move)
    trio.lowlevel.remove_instrument(steps)
    assert trio.current_time() - start == pytest.approx(5)
    assert steps.of["sleeper"] == 2  # its beginning and its end


async def test_an_alarm_yields_also_when_its_time_has_passed(autojump_clock: MockClock) -> None:
    with trio.testing.assert_checkpoints():
        await Alarm().sleep_until(trio.current_time() - 1)


async def test_moving_an_alarm_while_nobody_sleeps_does_nothing() -> None:
    alarm = Alarm()
    alarm.move(5.0)
    await alarm.sleep_until(trio.current_time())
    alarm.move(5.0)


# what a call costs


async def test_a_call_wakes_each_flusher_once_and_hardly_a_timer(
    autojump_clock: MockClock,
) -> None:
    async with world() as here, trio.open_nursery() as nursery:
        dialer, acceptor = await here.connect()
        stream = await dialer.open_stream()
        await stream.send_all(b"first")
        nursery.start_soon(_echo, await acceptor.accept_stream())
        await stream.receive_some()
        await trio.sleep(1)  # for what follows a handshake
        here.net.delay = CALL_S / 2
        steps = Steps()
        began = trio.current_time()
        trio.lowlevel.add_instrument(steps)
        for _ in range(CALLS):
            await stream.send_all(b"x" * 100)
            assert await stream.receive_some() == b"x" * 100
        trio.lowlevel.remove_instrument(steps)
        # Two endpoints, so two of each. Deadlines that have moved surface once a millisecond.
        surfaced = 2 * (trio.current_time() - began) / 0.001 + 4
        assert steps.of["quic timer"] <= 2 * surfaced < CALLS
        assert 2 * CALLS <= steps.of["quic flusher"] <= 2 * CALLS + 10
        nursery.cancel_scope.cancel()


async def test_deadlines_that_move_later_wake_nobody_until_the_first_has_come(
    autojump_clock: MockClock,
) -> None:
    async with world() as here:
        dialer, acceptor = await here.connect()
        steps = Steps()
        stream = await dialer.open_stream()
        trio.lowlevel.add_instrument(steps)
        await stream.send_all(b"x")
        far = await acceptor.accept_stream()
        assert await far.receive_some() == b"x"
        await trio.sleep(0.5)
        trio.lowlevel.remove_instrument(steps)
        # A delayed acknowledgement, a probe's time that has become void, path probing.
        assert steps.of["quic timer"] <= 20


async def _echo(stream: Stream) -> None:
    while data := await stream.receive_some():
        await stream.send_all(data)

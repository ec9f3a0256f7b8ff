"""Frames go at once where one call follows the other, and together where many are made."""

from __future__ import annotations

import pytest
import trio

from alknet.call.outbox import Budget, Outbox
from alknet.core.contracts import Stream
from alknet.core.limits import Limits
from alknet.testing.memory import memory_connection_pair
from tests.call.sessions import Operations, is_idle, session_pair


class Steps(trio.abc.Instrument):
    """Counts the steps of tasks, by name."""

    def __init__(self) -> None:
        self.steps: list[str] = []

    def before_task_step(self, task: trio.lowlevel.Task) -> None:
        self.steps.append(task.name)


class Counted:
    """A stream that counts how it was written to."""

    def __init__(self, stream: Stream, *, takes_now: bool = True) -> None:
        self.sent: list[bytes] = []
        self.sent_now: list[bytes] = []
        self._stream = stream
        self._takes_now = takes_now

    async def send_all(self, data: bytes) -> None:
        self.sent.append(bytes(data))
        await self._stream.send_all(data)

    def send_now(self, data: bytes) -> bool:
        if self._takes_now and self._stream.send_now(data):
            self.sent_now.append(data)
            return True
        return False

    async def send_eof(self) -> None:
        await self._stream.send_eof()

    def notify_stopped(self, callback: object) -> None:
        pass


@pytest.mark.parametrize("takes_now", [True, False])
async def test_a_frame_alone_goes_at_once_if_the_stream_takes_it(takes_now: bool) -> None:
    async with memory_connection_pair() as (dialer, acceptor), trio.open_nursery() as nursery:
        stream = Counted(await dialer.open_stream(), takes_now=takes_now)
        budget = Budget(1000, lambda: None)
        outbox = Outbox(stream, budget, 100)  # type: ignore[arg-type]
        nursery.start_soon(outbox.run)
        outbox.put(b"first", is_alone=True)
        assert stream.sent_now == ([b"first"] if takes_now else [])
        assert budget.used == (0 if takes_now else 5)
        await trio.testing.wait_all_tasks_blocked()
        far = await acceptor.accept_stream()
        assert await far.receive_some() == b"first"
        assert budget.used == 0
        outbox.finish()


async def test_no_frame_overtakes_another() -> None:
    async with memory_connection_pair() as (dialer, acceptor), trio.open_nursery() as nursery:
        stream = Counted(await dialer.open_stream())
        outbox = Outbox(stream, Budget(1000, lambda: None), 100)  # type: ignore[arg-type]
        nursery.start_soon(outbox.run)
        outbox.put(b"1")
        outbox.put(b"2", is_alone=True)
        outbox.put(b"3")
        await trio.testing.wait_all_tasks_blocked()
        outbox.put(b"4", is_alone=True)
        outbox.finish()
        outbox.put(b"5", is_alone=True)  # too late: dropped
        far = await acceptor.accept_stream()
        await trio.testing.wait_all_tasks_blocked()
        assert await far.receive_some() == b"1234"
        assert stream.sent == [b"123"]
        assert stream.sent_now == [b"4"]


async def test_a_frame_alone_waits_for_the_one_that_is_being_sent() -> None:
    limits = Limits(stream_receive_window_bytes=10)
    async with (
        memory_connection_pair(limits=limits) as (dialer, acceptor),
        trio.open_nursery() as nursery,
    ):
        stream = Counted(await dialer.open_stream())
        outbox = Outbox(stream, Budget(1000, lambda: None), 100)  # type: ignore[arg-type]
        nursery.start_soon(outbox.run)
        outbox.put(b"x" * 25)
        await trio.testing.wait_all_tasks_blocked()
        outbox.put(b"y", is_alone=True)
        assert not stream.sent_now
        far = await acceptor.accept_stream()
        received = b""
        while len(received) < 26:
            received += await far.receive_some()
        assert received == b"x" * 25 + b"y"
        outbox.finish()


async def test_one_call_after_the_other_wakes_no_writer() -> None:
    async with session_pair("memory", Operations()) as (client, server):
        for _ in range(3):
            await client.call("echo/unary")
        steps = Steps()
        trio.lowlevel.add_instrument(steps)
        for _ in range(10):
            await client.call("echo/unary")
        trio.lowlevel.remove_instrument(steps)
        # The caller, a reader and a worker there, and a reader here.
        assert len(steps.steps) <= 4 * 10 + 1
        assert not [name for name in steps.steps if name == "call writer"]
        assert await is_idle(client, server)


async def test_calls_made_together_leave_together() -> None:
    async with session_pair("memory", Operations()) as (client, server):
        await client.call("echo/unary")
        steps = Steps()
        trio.lowlevel.add_instrument(steps)
        async with trio.open_nursery() as nursery:
            for _ in range(64):
                nursery.start_soon(client.call, "echo/unary")
        trio.lowlevel.remove_instrument(steps)
        assert len([name for name in steps.steps if name == "call writer"]) <= 8
        assert await is_idle(client, server)

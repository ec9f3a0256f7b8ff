"""What a call costs above the transport: CPU and scheduling of two sessions in one process.

Both ends are on streams in memory, so that no socket, no TLS and no other process counts. The
floor sends the same frames over the same streams, without sessions.
"""

from __future__ import annotations

import gc
import time
from collections import deque
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from functools import partial

import msgspec
import trio

from alknet.call.dispatch import OperationDispatcher
from alknet.call.operations import operation, scopes
from alknet.call.registry import Registry
from alknet.call.session import CallSession, open_session
from alknet.core.contracts import Connection, Stream
from alknet.core.identity import Identity
from alknet.core.limits import Limits
from alknet.testing.memory import memory_connection_pair
from alknet.testing.operations import FixedIdentities, FixedOwnership
from benchmarks.table import Row, Table, row_of

REFERENCE = "frames alone"
SESSIONS = "alknet sessions"
# Sessions, and calls in flight over all of them.
CASES = ((1, 1), (1, 64), (1, 512), (64, 64))
LIMITS = Limits(calls_per_connection=10_000)
CLIENT = Identity("peer:bench", ("math:*", "other"))
INPUT = b'{"a":12345,"b":67890,"note":"what a small request says"}'
FRAME = b'{"type":"call.requested","id":"d12345","payload":{"operationId":"/math/add","input":%b}}'
NOTES = [
    "CPU is of both sides together: halve it for one side.",
    (
        "steps are runs of a task until it waits, passes are rounds of the scheduler (an epoll_wait"
        " each), tasks are those started: all per call, counted in a round of their own."
    ),
    f"`{REFERENCE}`: the request's bytes there and back by the same streams, one reader a side.",
]

Call = Callable[[], Awaitable[object]]


class Sum(msgspec.Struct):
    a: int
    b: int
    note: str = ""


@operation("math/add", access=scopes("math:add"))
async def add(numbers: Sum) -> Sum:
    """Add two numbers."""
    return Sum(numbers.a + numbers.b, numbers.b, numbers.note)


@operation("math/wait", access=scopes("math:add"))
async def wait(numbers: Sum) -> Sum:
    """Add two numbers after one checkpoint."""
    await trio.lowlevel.checkpoint()
    return Sum(numbers.a + numbers.b, numbers.b, numbers.note)


class Counting(trio.abc.Instrument):
    """Counts what the scheduler does."""

    def __init__(self) -> None:
        self.steps = self.passes = self.tasks = 0

    def before_task_step(self, task: trio.lowlevel.Task) -> None:
        self.steps += 1

    def before_io_wait(self, timeout: float) -> None:
        self.passes += 1

    def task_spawned(self, task: trio.lowlevel.Task) -> None:
        self.tasks += 1


def run(is_quick: bool) -> Table:
    calls, rounds = (2_000, 1) if is_quick else (20_000, 5)
    rows = trio.run(measure, calls, rounds)
    return Table("session", "A call above the transport", REFERENCE, rows, NOTES)


async def measure(calls: int, rounds: int, cases: Sequence[tuple[int, int]] = CASES) -> list[Row]:
    """Alternate rounds of *calls* by sessions and by frames alone, for each case."""
    rows = []
    for links, in_flight in cases:
        case = f"{in_flight} in flight" if links == 1 else f"{links} sessions x 1 in flight"
        async with AsyncExitStack() as stack:
            found: dict[str, list[dict[str, float]]] = {}
            ready = [
                (name, [await stack.enter_async_context(make()) for _ in range(links)])
                for name, make in KINDS
            ]
            for _ in range(rounds):
                for name, callers in ready:
                    found.setdefault(name, []).append(await _round(callers, in_flight, calls))
        rows += [row_of(name, case, figures) for name, figures in found.items()]
    return rows


async def _round(callers: list[Call], in_flight: int, calls: int) -> dict[str, float]:
    await _run(callers, in_flight, in_flight * 2)  # warm
    gc.collect()
    started_at = time.process_time()
    await _run(callers, in_flight, calls)
    took = time.process_time() - started_at
    counting = Counting()
    trio.lowlevel.add_instrument(counting)
    await _run(callers, in_flight, calls // 4)
    trio.lowlevel.remove_instrument(counting)
    counted = calls // 4
    return {
        "CPU us/call": took / calls * 1e6,
        "steps/call": counting.steps / counted,
        "passes/call": counting.passes / counted,
        "tasks/call": max(0, counting.tasks - in_flight) / counted,
    }


async def _run(callers: list[Call], in_flight: int, calls: int) -> None:
    remaining = iter(range(calls))

    async def worker(call: Call) -> None:
        for _ in remaining:
            await call()

    async with trio.open_nursery() as nursery:
        for number in range(in_flight):
            nursery.start_soon(worker, callers[number % len(callers)])


@asynccontextmanager
async def _sessions(name: str = "math/add") -> AsyncGenerator[Call]:
    dispatcher = OperationDispatcher(
        Registry([add, wait]),
        identities=FixedIdentities(),
        ownership=FixedOwnership(),
        limits=LIMITS,
    )
    async with (
        memory_connection_pair(alpn="alknet/call", limits=LIMITS) as (dialer, acceptor),
        trio.open_nursery() as nursery,
    ):
        acceptor.identity = CLIENT
        nursery.start_soon(CallSession(acceptor, dispatcher, limits=LIMITS).run)
        async with open_session(dialer, limits=LIMITS) as session:
            yield partial(session.call, name, msgspec.Raw(INPUT))


@asynccontextmanager
async def _floor() -> AsyncGenerator[Call]:
    frame = FRAME % INPUT
    async with (
        memory_connection_pair(limits=LIMITS) as (dialer, acceptor),
        trio.open_nursery() as nursery,
    ):
        caller = _BareCaller(await dialer.open_stream(), frame)
        nursery.start_soon(caller.read)
        nursery.start_soon(caller.write)
        nursery.start_soon(_echo, acceptor)
        yield caller.call
        nursery.cancel_scope.cancel()


async def _echo(connection: Connection) -> None:
    stream = await connection.accept_stream()
    while data := await stream.receive_some():
        await stream.send_all(data)


class _BareCaller:
    """Sends one frame again and again; frames of one tick leave together."""

    def __init__(self, stream: Stream, frame: bytes) -> None:
        self._stream = stream
        self._frame = frame
        self._unsent = 0
        self._work = trio.lowlevel.ParkingLot()
        self._waiting: deque[trio.lowlevel.Task] = deque()

    async def call(self) -> None:
        self._unsent += 1
        self._work.unpark()
        self._waiting.append(trio.lowlevel.current_task())
        await trio.lowlevel.wait_task_rescheduled(lambda _: trio.lowlevel.Abort.FAILED)

    async def write(self) -> None:
        while True:
            if not self._unsent:
                await self._work.park()
            batch, self._unsent = self._frame * self._unsent, 0
            await self._stream.send_all(batch)

    async def read(self) -> None:
        rest = 0
        while data := await self._stream.receive_some():
            answers, rest = divmod(rest + len(data), len(self._frame))
            for _ in range(answers):
                trio.lowlevel.reschedule(self._waiting.popleft())


KINDS: tuple[tuple[str, Callable[[], AbstractAsyncContextManager[Call]]], ...] = (
    (SESSIONS, _sessions),
    (f"{SESSIONS}, a handler that waits", partial(_sessions, "math/wait")),
    (REFERENCE, _floor),
)

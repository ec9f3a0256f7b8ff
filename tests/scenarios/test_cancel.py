"""A call cancelled anywhere leaves nothing: no task, no stream, no entry, on neither side."""

from __future__ import annotations

import random  # noqa: TID251  seeded
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager

import msgspec
import pytest
import trio

from alknet.call.operations import operation, public
from alknet.call.session import CallSession
from alknet.call.views import FOLLOW_INTERVAL_S
from alknet.client import open_session
from alknet.core.contracts import Connection
from alknet.core.endpoint.tasks import TaskNode, render, task_tree
from alknet.core.quic.connection import QuicConnection
from alknet.testing.contract import cancel_at_every_checkpoint
from alknet.testing.nodes import NodePair, open_node_pair
from tests.scenarios.rig import TRANSPORTS, eventually

pytestmark = [pytest.mark.slow, pytest.mark.parametrize("transport", TRANSPORTS)]


class Count(msgspec.Struct):
    items: int


class Watch:
    """Operations that know how many of them run."""

    def __init__(self) -> None:
        self.running = self.started = 0

    def __enter__(self) -> None:
        self.running += 1
        self.started += 1

    def __exit__(self, *exc: object) -> None:
        self.running -= 1


WATCH = Watch()


@operation("watch/unary", access=public())
async def unary() -> int:
    """Take a few turns of the event loop."""
    with WATCH:
        for _ in range(5):
            await trio.lowlevel.checkpoint()
        return 5


@operation("watch/items", access=public())
async def items(count: Count) -> AsyncGenerator[int]:
    """Count."""
    with WATCH:
        for n in range(count.items):
            await trio.lowlevel.checkpoint()
            yield n


@operation("watch/slow", access=public())
async def slow() -> None:
    """Take longer than anybody waits; only an abort ends it in time."""
    with WATCH:
        await trio.sleep(20)


def count_tasks(tree: TaskNode | None = None) -> int:
    tree = tree or task_tree()
    return 1 + sum(count_tasks(child) for nursery in tree.nurseries for child in nursery)


def open_streams(connection: Connection) -> int:
    return len(connection._streams) if isinstance(connection, QuicConnection) else 0


class Books:
    """All that a call could leave behind in two nodes and the sessions between them."""

    def __init__(self, pair: NodePair, session: CallSession | None) -> None:
        self.pair = pair
        self.session = session

    def _sessions(self) -> list[CallSession]:
        nodes = (self.pair.left, self.pair.right)
        served = [session for node in nodes for session in node._calls.sessions]
        return served if self.session is None else [*served, self.session]

    def balance(self) -> dict[str, int]:
        sessions = self._sessions()
        return {
            "running operations": WATCH.running,
            "served calls": sum(len(session.serving.calls) for session in sessions),
            "pending calls": sum(len(session.calling.pending) for session in sessions),
            "call streams": sum(len(session.lanes.streams) for session in sessions),
            "transport streams": sum(open_streams(session.connection) for session in sessions),
            "held bytes": sum(session.budget.used for session in sessions),
            "sessions": len(sessions),
            "connections": len(self.pair.right.endpoint.connections()),
            "handshakes": self.pair.right.endpoint.handshakes,
            "tasks": count_tasks(),
        }

    async def at_rest(self) -> dict[str, int]:
        """Return the balance once it has stood for longer than what watches the nodes pauses."""
        found, since = self.balance(), trio.current_time()
        while trio.current_time() - since < 2 * FOLLOW_INTERVAL_S:
            await trio.sleep(0.01)
            if self.balance() != found:
                found, since = self.balance(), trio.current_time()
        return found

    async def settle(self, expected: dict[str, int]) -> None:
        """Wait until all is as *expected*."""
        with trio.move_on_after(30):
            while self.balance() != expected:
                await trio.sleep(0.001)
        left = {what: n for what, n in self.balance().items() if n != expected[what]}
        assert not left, f"{left}\n{render(task_tree())}"


async def call_once(session: CallSession) -> None:
    assert bytes(await session.call("watch/unary")) == b"5"


async def give_up_on_a_slow_call(session: CallSession) -> None:
    with trio.move_on_after(0.01):
        await session.call("watch/slow")


async def call_with_much_input(session: CallSession) -> None:
    """Over 64 KiB: takes a stream of its own."""
    await session.call("node/ping", {"pad": "p" * 200_000})


async def call_four_at_once(session: CallSession) -> None:
    async with trio.open_nursery() as nursery:
        for _ in range(4):
            nursery.start_soon(call_once, session)


async def take_all_items(session: CallSession) -> None:
    async with session.subscribe("watch/items", {"items": 6}) as subscription:
        assert [bytes(item) async for item in subscription] == [b"%d" % n for n in range(6)]


async def leave_after_one_item(session: CallSession) -> None:
    async with session.subscribe("watch/items", {"items": 10_000}) as subscription:
        async for _ in subscription:
            break


@pytest.mark.parametrize(
    "use",
    [
        call_once,
        give_up_on_a_slow_call,
        call_with_much_input,
        call_four_at_once,
        take_all_items,
        leave_after_one_item,
    ],
    ids=lambda use: use.__name__,
)
async def test_a_call_cancelled_at_every_checkpoint(
    transport: str, use: Callable[[CallSession], Awaitable[None]]
) -> None:
    async with (
        open_node_pair(operations=[unary, items, slow]) as pair,
        pair.session(transports=[transport]) as session,
    ):
        books = Books(pair, session)
        await use(session)  # opens what stays open
        await session.call("node/ping")
        expected = await books.at_rest()
        assert expected["running operations"] == expected["pending calls"] == 0
        started = WATCH.started
        tried = await cancel_at_every_checkpoint(
            lambda: use(session), lambda: books.settle(expected)
        )
        assert tried >= 1
        if use is not call_with_much_input:
            assert WATCH.started > started
        await use(session)
        assert session.close_reason is None


async def test_a_dial_and_its_call_cancelled_at_every_checkpoint(transport: str) -> None:
    async with open_node_pair(operations=[unary, items, slow]) as pair:
        books = Books(pair, None)

        @asynccontextmanager
        async def dialled() -> AsyncGenerator[CallSession]:
            async with open_session(
                pair.right.ticket, key=pair.left.credentials.key, transports=[transport]
            ) as session:
                yield session

        async def dial_and_call() -> None:
            async with dialled() as session:
                await call_once(session)

        await dial_and_call()
        await eventually(lambda: not pair.right.endpoint.connections())
        expected = await books.at_rest()
        assert expected["sessions"] == expected["connections"] == 0
        tried = await cancel_at_every_checkpoint(
            dial_and_call, lambda: books.settle(expected), limit=300
        )
        assert tried > 5
        # And at each turn of any other task: those that race, shake hands, serve and answer.
        tried = await cancel_at_every_step(dial_and_call, lambda: books.settle(expected))
        assert tried > 30
        await dial_and_call()


class _CancelAtStep(trio.abc.Instrument):
    """Cancels a scope when the n-th turn of any task is over."""

    def __init__(self, scope: trio.CancelScope, step: int) -> None:
        self._scope = scope
        self._left = step

    def after_task_step(self, _task: trio.lowlevel.Task) -> None:
        self._left -= 1
        if self._left == 0:
            self._scope.cancel()


async def cancel_at_every_step(
    make: Callable[[], Awaitable[None]], after: Callable[[], Awaitable[None]]
) -> int:
    """As `cancel_at_every_checkpoint`, with the turns of all tasks; return how many were tried."""
    for step in range(1, 1000):
        with trio.CancelScope() as scope:
            instrument = _CancelAtStep(scope, step)
            trio.lowlevel.add_instrument(instrument)
            try:
                await make()
            finally:
                trio.lowlevel.remove_instrument(instrument)
        await after()
        if not scope.cancelled_caught:
            return step
    raise AssertionError("still running")


async def test_clients_that_come_and_go_leave_nothing(transport: str) -> None:
    chance = random.Random(transport)

    async def live(session: CallSession) -> None:
        uses = [
            call_once,
            give_up_on_a_slow_call,
            call_four_at_once,
            take_all_items,
            leave_after_one_item,
        ]
        for _ in range(5):
            with trio.move_on_after(chance.choice([0, 0.001, 0.01, 1])):
                await chance.choice(uses)(session)

    async def come_and_go(pair: NodePair) -> None:
        for _ in range(4):
            with trio.move_on_after(chance.choice([0.01, 0.05, 1])):
                async with pair.session(transports=[transport]) as session:
                    await live(session)

    async with open_node_pair(operations=[unary, items, slow]) as pair:
        books = Books(pair, None)
        expected = await books.at_rest()
        async with trio.open_nursery() as nursery:
            for _ in range(30):
                nursery.start_soon(come_and_go, pair)
        await books.settle(expected)
        assert not pair.right.endpoint.connections()

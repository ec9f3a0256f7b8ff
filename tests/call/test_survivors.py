"""Abort policies: children end with their parents, but for those that are let run on."""

from __future__ import annotations

import logging
import math
from contextlib import AsyncExitStack
from typing import Any

import msgspec
import pytest
import trio

from alknet.call.codes import CallError
from alknet.call.context import Context
from alknet.call.lineage import Lineage
from alknet.call.operations import Operation, operation, public
from alknet.call.proto.events import Requested
from alknet.call.registry import Registry
from alknet.call.session import CallSession
from alknet.call.survivors import Survivors
from alknet.client import open_session
from alknet.core.limits import Limits
from alknet.errors import LocalError
from alknet.node import Node
from alknet.testing.contract import cancel_at_every_checkpoint
from alknet.testing.memory import memory_connection_pair
from alknet.testing.operations import admit_request, call_operation
from tests.call.nodes import Hop, open_hop
from tests.call.work import Work


def _parent(*, continue_running: bool, calls: str = "t/work") -> Operation[..., Any]:
    @operation("t/parent", access=public(), calls=[calls])
    async def parent(ctx: Context) -> Any:
        output = await ctx.call(calls, continue_running=continue_running)
        return msgspec.json.decode(output)

    return parent


async def _left_early(session: CallSession, name: str = "t/parent") -> None:
    """Make a call, and leave it once nothing moves any more."""
    async with trio.open_nursery() as nursery:
        nursery.start_soon(session.call, name)
        await trio.testing.wait_all_tasks_blocked()
        nursery.cancel_scope.cancel()
    await trio.testing.wait_all_tasks_blocked()


async def test_a_child_ends_with_its_parent_unless_it_is_let_run_on() -> None:
    for continue_running in (False, True):
        work = Work()
        async with open_hop(work.work, _parent(continue_running=continue_running)) as hop:
            async with hop.connect() as session:
                await _left_early(session)
                assert hop.served[0].serving.calls == {}
            assert work.running == int(continue_running)
            assert len(hop.dispatcher.survivors) == int(continue_running)
            work.go.set()
            await trio.testing.wait_all_tasks_blocked()
            assert work.finished == int(continue_running)
            assert len(hop.dispatcher.survivors) == 0


async def test_it_survives_the_disconnect_and_the_deadline_of_its_parent(
    autojump_clock: trio.testing.MockClock,
) -> None:
    work = Work()
    async with open_hop(work.work, _parent(continue_running=True)) as hop:
        async with hop.connect() as session, trio.open_nursery() as nursery:
            nursery.start_soon(session.call, "t/parent")
            await trio.testing.wait_all_tasks_blocked()
            nursery.cancel_scope.cancel()
            session.connection.close()
        async with hop.connect() as session:
            with pytest.raises(CallError, match="TIMEOUT"):
                await session.call("t/parent", timeout_s=2)
        assert work.running == 2
        work.go.set()
        await trio.testing.wait_all_tasks_blocked()
        assert (work.finished, work.cancelled) == (2, 0)


async def test_its_own_deadline_ends_it_and_the_log_says_so(
    autojump_clock: trio.testing.MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    work = Work()

    @operation("t/short", access=public(), max_duration_s=5)
    async def limited() -> None:
        await work.work()

    parent = _parent(continue_running=True, calls="t/short")
    async with open_hop(limited, parent) as hop, hop.connect() as session:
        started_at = trio.current_time()
        await _left_early(session)
        assert work.running == 1
        while len(hop.dispatcher.survivors):
            await trio.sleep(0.5)
        assert trio.current_time() - started_at == pytest.approx(5, abs=1)
        assert work.cancelled == 1
    [record] = [r for r in caplog.records if r.message == "call.failed_alone"]
    assert (record.levelno, record.__dict__["code"]) == (logging.WARNING, "TIMEOUT")
    assert record.__dict__["operation"] == "t/short"


async def test_a_parent_that_stays_gets_the_answer_and_the_errors() -> None:
    @operation("t/fails", access=public())
    async def fails() -> None:
        raise CallError("CONFLICT", "no")

    @operation("t/both", access=public(), calls=["t/fails", "t/quick"])
    async def both(ctx: Context) -> list[Any]:
        with pytest.raises(CallError, match="CONFLICT"):
            await ctx.call("t/fails", continue_running=True)
        with pytest.raises(CallError, match="NOT_FOUND"):
            await ctx.call("t/none", continue_running=True)
        return [msgspec.json.decode(await ctx.call("t/quick", continue_running=True))]

    @operation("t/quick", access=public())
    async def quick(ctx: Context) -> list[str | None]:
        return [ctx.identity.id, ctx.info.parent_id]

    assert await call_operation(both, beside=[fails, quick]) == [["anonymous", "d1"]]


async def test_one_that_has_not_started_is_not_started() -> None:
    work = Work()

    @operation("t/late", access=public(), calls=["t/work"])
    async def late(ctx: Context) -> None:
        with trio.CancelScope() as scope:
            scope.cancel()
            await ctx.call("t/work", continue_running=True)

    assert await call_operation(late, beside=[work.work]) is None
    assert work.started == 0


async def test_one_whose_lineage_breaks_before_its_first_step_is_not_started() -> None:
    async def start() -> msgspec.Raw:
        raise AssertionError("started")

    async with open_hop() as hop:
        above = Lineage()
        above.leave()
        with pytest.raises(CallError, match="ABORTED"):
            await hop.dispatcher.survivors.run(start, Lineage(above), "t/work")
        assert len(hop.dispatcher.survivors) == 0


async def test_a_survivor_starts_nothing_new_and_what_it_has_started_finishes() -> None:
    work, first = Work(), Work()
    seen: list[str] = []

    @operation("t/first", access=public())
    async def begin() -> None:
        await first.work()

    @operation("t/middle", access=public(), calls=["t/first", "t/work"])
    async def middle(ctx: Context) -> None:
        await ctx.call("t/first")
        for continue_running in (False, True):
            try:
                await ctx.call("t/work", continue_running=continue_running)
            except CallError as exc:
                seen.append(exc.code)

    parent = _parent(continue_running=True, calls="t/middle")
    async with open_hop(begin, work.work, middle, parent) as hop, hop.connect() as session:
        await _left_early(session)
        assert first.running == 1
        first.go.set()
        await trio.testing.wait_all_tasks_blocked()
        assert first.finished == 1
        assert seen == ["ABORTED", "ABORTED"]
        assert work.started == 0


async def test_they_are_bounded() -> None:
    work = Work()
    limits = Limits(surviving_calls=2)
    async with open_hop(work.work, _parent(continue_running=True), limits=limits) as hop:
        async with hop.connect() as session:
            for _ in range(2):
                await _left_early(session)
            with pytest.raises(CallError, match="RESOURCE_EXHAUSTED"):
                await session.call("t/parent")
            work.go.set()
            await trio.testing.wait_all_tasks_blocked()
            assert await session.call_as(str, "t/parent") == "done"
        assert work.finished == 3


async def test_the_end_of_the_node_waits_for_them_and_then_cancels_them(
    autojump_clock: trio.testing.MockClock,
) -> None:
    for patience_s in (1, 9):
        work = Work()
        async with open_hop(work.work, _parent(continue_running=True)) as hop:
            async with hop.connect() as session:
                await _left_early(session)
            async with trio.open_nursery() as nursery:
                until = trio.current_time() + patience_s
                nursery.start_soon(hop.dispatcher.survivors.drain, until)
                await trio.sleep(5)
                work.go.set()
            await trio.testing.wait_all_tasks_blocked()
            assert work.running == 0
            assert (work.finished, work.cancelled) == ((1, 0) if patience_s > 5 else (0, 1))


async def test_a_node_that_stops_waits_for_them() -> None:
    begun = trio.Event()
    go = trio.Event()
    finished = 0

    @operation("t/begin", access=public(), internal=True)
    async def begin() -> None:
        nonlocal finished
        begun.set()
        await go.wait()
        finished += 1

    @operation("t/parent", access=public(), calls=["t/begin"])
    async def parent(ctx: Context) -> None:
        await ctx.call("t/begin", continue_running=True)

    async def let_go_when_it_stops() -> None:
        await node.endpoint.draining.wait()
        await trio.testing.wait_all_tasks_blocked()
        go.set()

    async with trio.open_nursery() as beside:
        async with Node(operations=[begin, parent]) as node:
            async with open_session(str(node.ticket)) as session, trio.open_nursery() as nursery:
                nursery.start_soon(session.call, "t/parent")
                await begun.wait()
                nursery.cancel_scope.cancel()
            assert node.status()["surviving_calls"] == 1
            assert finished == 0
            beside.start_soon(let_go_when_it_stops)
        assert finished == 1


async def test_a_drain_that_was_cancelled_can_be_made_again(nursery: trio.Nursery) -> None:
    survivors = Survivors(Limits)
    await nursery.start(survivors.serve)

    async def work() -> msgspec.Raw:
        await trio.sleep_forever()
        raise AssertionError

    async def run() -> None:
        with pytest.raises(CallError, match="the node stops"):
            await survivors.run(work, Lineage(), "t/work")

    nursery.start_soon(run)
    await trio.testing.wait_all_tasks_blocked()
    with trio.move_on_after(0) as left:
        await survivors.drain(math.inf)
    assert left.cancelled_caught
    await trio.testing.wait_all_tasks_blocked()
    assert len(survivors) == 1
    await survivors.drain(trio.current_time())
    await trio.testing.wait_all_tasks_blocked()
    assert len(survivors) == 0
    nursery.cancel_scope.cancel()


@pytest.mark.parametrize("is_hurried_first", [False, True])
async def test_a_hurried_end_waits_for_none(
    is_hurried_first: bool, autojump_clock: trio.testing.MockClock
) -> None:
    work = Work()
    async with open_hop(work.work, _parent(continue_running=True)) as hop:
        async with hop.connect() as session:
            await _left_early(session)
        begun_at = trio.current_time()
        async with trio.open_nursery() as nursery:
            if is_hurried_first:
                hop.dispatcher.survivors.hurry()
            nursery.start_soon(hop.dispatcher.survivors.drain, math.inf)
            if not is_hurried_first:
                await trio.testing.wait_all_tasks_blocked()
                assert work.running == 1
                hop.dispatcher.survivors.hurry()
        await trio.testing.wait_all_tasks_blocked()
        assert work.cancelled == 1
        assert trio.current_time() - begun_at < 1
        await hop.dispatcher.survivors.drain(math.inf)  # there is nothing left to wait for


async def test_where_no_node_runs_nothing_can_run_on() -> None:
    @operation("t/lonely", access=public(), calls=["t/lonely"])
    async def lonely(ctx: Context) -> None:
        with pytest.raises(LocalError, match="survivors"):
            await ctx.call("t/lonely", continue_running=True)

    async with memory_connection_pair() as (_, connection):
        request = Requested(id="d1", operation="t/lonely")
        assert await admit_request(Registry([lonely]), connection, request).run() == b"null"


# Three hops: a caller, the node in the middle, and a node behind it.


class Hops:
    """A node behind another, of which it runs ``t/work`` and whose ``t/far`` calls it."""

    def __init__(self) -> None:
        self.work = Work()
        self.running = 0

    def operations(self, far: CallSession) -> list[Operation[..., Any]]:
        @operation("t/far", access=public())
        async def call_far() -> str:
            self.running += 1
            try:
                return await far.call_as(str, "t/work")
            finally:
                self.running -= 1

        @operation("t/cascade", access=public(), calls=["t/far"])
        async def cascade(ctx: Context) -> Any:
            return msgspec.json.decode(await ctx.call("t/far"))

        @operation("t/survive", access=public(), calls=["t/far"])
        async def survive(ctx: Context) -> Any:
            return msgspec.json.decode(await ctx.call("t/far", continue_running=True))

        return [call_far, cascade, survive]

    async def open(self, stack: AsyncExitStack) -> tuple[Hop, Hop, CallSession]:
        """Return the node in the middle, the far one, and a session to the first."""
        far = await stack.enter_async_context(open_hop(self.work.work))
        between = await stack.enter_async_context(far.connect())
        middle = await stack.enter_async_context(open_hop(*self.operations(between)))
        session = await stack.enter_async_context(middle.connect())
        return middle, far, session

    def is_gone(self, *hops: Hop) -> bool:
        """Whether nothing of any call is left."""
        calls = [served.serving.calls for hop in hops for served in hop.served]
        pending = [served.calling.pending for hop in hops for served in hop.served]
        survivors = [len(hop.dispatcher.survivors) for hop in hops]
        return not (self.running or self.work.running or any([*calls, *pending, *survivors]))


async def test_an_abort_goes_to_the_last_hop() -> None:
    hops = Hops()
    async with AsyncExitStack() as stack:
        middle, far, session = await hops.open(stack)
        await _left_early(session, "t/cascade")
        assert hops.work.cancelled == 1
        assert hops.is_gone(middle, far)


async def test_a_survivor_keeps_what_it_called_far_away() -> None:
    hops = Hops()
    async with AsyncExitStack() as stack:
        middle, far, session = await hops.open(stack)
        await _left_early(session, "t/survive")
        assert (hops.running, hops.work.running) == (1, 1)
        hops.work.go.set()
        await trio.testing.wait_all_tasks_blocked()
        assert (hops.work.finished, hops.work.cancelled) == (1, 0)
        assert hops.is_gone(middle, far)


@pytest.mark.parametrize("name", ["t/cascade", "t/survive"])
async def test_cancelled_anywhere_no_hop_keeps_an_orphan(name: str) -> None:
    hops = Hops()
    hops.work.go.set()
    async with AsyncExitStack() as stack:
        middle, far, session = await hops.open(stack)

        async def call() -> None:
            assert await session.call_as(str, name) == "done"

        async def after() -> None:
            await trio.testing.wait_all_tasks_blocked()
            assert hops.is_gone(middle, far)

        assert await cancel_at_every_checkpoint(call, after) >= 1


@pytest.mark.parametrize("name", ["t/cascade", "t/survive"])
async def test_a_middle_hop_cancelled_anywhere_keeps_no_orphan(name: str) -> None:
    """The handler's own task is cancelled at each of its checkpoints, as an abort does."""
    hops = Hops()
    hops.work.go.set()
    async with AsyncExitStack() as stack:
        far = await stack.enter_async_context(open_hop(hops.work.work))
        between = await stack.enter_async_context(far.connect())
        made = {entry.spec.name: entry for entry in hops.operations(between)}

        async def call() -> None:
            assert await call_operation(made[name], beside=[made["t/far"]]) == "done"

        async def after() -> None:
            await trio.testing.wait_all_tasks_blocked()
            assert hops.is_gone(far)

        assert await cancel_at_every_checkpoint(call, after) >= 2

"""Drains end when they should, whoever asks and however often."""

from __future__ import annotations

import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from alknet.core.contracts import CloseCode, Connection
from alknet.core.limits import Limits
from tests.core.endpoint_kit import Handler, echo
from tests.core.test_endpoint import bench, never


async def stubborn(connection: Connection) -> None:
    with trio.CancelScope(shield=True):
        await trio.sleep(60)


async def test_a_second_drain_does_not_wait_again(autojump_clock: MockClock) -> None:
    limits = Limits(drain_timeout_s=10)
    async with bench(Handler(stubborn), limits=limits) as b:
        await b.connect()
        start = trio.current_time()
        await b.endpoint.drain()
        first = trio.current_time() - start
        assert 10 <= first <= 13
        await b.endpoint.drain()
        assert trio.current_time() - start - first <= 0.1


async def test_a_drain_of_nothing_takes_no_time(autojump_clock: MockClock) -> None:
    async with bench(Handler(echo)) as b:
        start = trio.current_time()
        await b.endpoint.drain()
        assert trio.current_time() == start


async def test_a_second_drain_beside_the_first_waits_for_it(autojump_clock: MockClock) -> None:
    async with bench(Handler(never), limits=Limits(drain_timeout_s=5)) as b:
        dialer = await b.connect()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(b.endpoint.drain)
            nursery.start_soon(b.endpoint.drain)
            await wait_all_tasks_blocked()
            b.endpoint.hurry()
        assert trio.current_time() < 1
        assert dialer.close_reason is not None
        assert dialer.close_reason.code == CloseCode.SHUTDOWN

"""One budget for what all connections of a node hold."""

from __future__ import annotations

import trio
from trio.testing import MockClock

from alknet.core.budget import Account, MemoryBudget
from alknet.core.limits import Limits
from alknet.core.quic.windows import FLOOR_STREAM_BYTES
from alknet.testing.network import FakeNetwork
from alknet.testing.worlds import open_fake_endpoints
from tests.core.quic.test_windows import transfer

KIB = 1024
MIB = 1024 * KIB
ALPN = "alknet/test"


def test_an_account_charges_and_gives_back() -> None:
    budget = MemoryBudget(1000)
    first, second = Account(budget), Account(budget)
    first.add_unread(100)
    first.set_sending(4, 300)
    second.set_sending(4, 50)
    assert (budget.used, first.held, first.sending) == (450, 400, (4,))
    first.set_sending(4, 200)
    first.add_unread(-60)
    assert budget.used == 290
    first.set_sending(4, 0)
    assert (budget.used, first.sending) == (90, ())
    first.clear()
    first.clear()
    assert budget.used == 50
    second.clear()
    assert budget.used == 0


def test_it_is_tight_from_three_quarters_on() -> None:
    budget = MemoryBudget(1000)
    states = []
    for budget.used in (749, 750, 999, 1000):
        states.append((budget.is_tight, budget.is_exhausted))
    assert states == [(False, False), (True, False), (True, False), (True, True)]


async def test_what_is_held_is_charged_and_all_of_it_given_back(autojump_clock: MockClock) -> None:
    async with open_fake_endpoints(FakeNetwork(), alpns=[ALPN]) as ends:
        dialer, acceptor = await ends.connect(ALPN)
        read, aborted, lost = [await dialer.open_stream() for _ in range(3)]
        async with trio.open_nursery() as nursery:
            nursery.start_soon(read.send_all, bytes(500 * KIB))
            for stream in (aborted, lost):
                await stream.send_all(bytes(50 * KIB))
            await trio.sleep(1)
            assert ends.server.budget.used == 228 * KIB  # the window of one, and two whole ones
            assert ends.client.budget.used == dialer.engine.unacknowledged_in_all() > 0
            accepted = [await acceptor.accept_stream() for _ in range(3)]
            theirs = sorted(accepted, key=lambda stream: stream.stream_id)
            aborted.reset(1)
            theirs[2].stop_sending(2)
            await trio.sleep(1)
            assert ends.server.budget.used == 128 * KIB
            got = 0
            while got < 500 * KIB:
                got += len(await theirs[0].receive_some())
        await trio.sleep(1)
        assert ends.server.budget.used == ends.client.budget.used == 0


async def test_a_connection_that_ends_holds_nothing(autojump_clock: MockClock) -> None:
    async with open_fake_endpoints(FakeNetwork(), alpns=[ALPN]) as ends:
        dialer, acceptor = await ends.connect(ALPN)
        stream = await dialer.open_stream()
        await stream.send_all(bytes(60 * KIB))
        theirs = await acceptor.accept_stream()
        await trio.sleep(0.02)
        assert ends.server.budget.used > 0
        assert ends.client.budget.used > 0
        acceptor.close(1)
        await dialer.wait_closed()
        assert len(await theirs.receive_some()) > 0  # what had arrived is still there
        assert ends.server.budget.used == ends.client.budget.used == 0


async def test_without_memory_windows_are_the_floor_and_everybody_goes_on(
    autojump_clock: MockClock,
) -> None:
    async with open_fake_endpoints(FakeNetwork(), alpns=[ALPN]) as ends:
        before = await ends.connect(ALPN)
        await transfer(before[0], before[1], 2 * MIB)
        ends.server.budget.used = ends.server.budget.total
        during = await ends.connect(ALPN)
        for dialer, acceptor in (before, during):
            await transfer(dialer, acceptor, 1 * MIB)
            assert acceptor.engine._windows.popitem()[1].size == FLOOR_STREAM_BYTES
            await transfer(acceptor, dialer, 300 * KIB)
        await trio.sleep(1)
        assert ends.server.budget.used == ends.server.budget.total


async def test_many_bulk_readers_that_pause_stay_near_the_budget(autojump_clock: MockClock) -> None:
    limits = Limits(buffered_bytes_total=1 * MIB)
    async with open_fake_endpoints(FakeNetwork(), alpns=[ALPN], limits=limits) as ends:
        most = 0
        async with trio.open_nursery() as nursery:
            for _ in range(40):
                dialer, acceptor = await ends.connect(ALPN)
                stream = await dialer.open_stream()
                nursery.start_soon(stream.send_all, bytes(1 * MIB))
                await acceptor.accept_stream()  # and read nothing
                await trio.sleep(0.2)
                most = max(most, ends.server.budget.used)
            nursery.cancel_scope.cancel()
        # Seven first windows, then floors.
        assert 1 * MIB <= most <= 1 * MIB + 34 * FLOOR_STREAM_BYTES

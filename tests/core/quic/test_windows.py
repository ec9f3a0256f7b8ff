"""Windows that follow the reader, send buffers that follow the path."""

from __future__ import annotations

import pytest
import trio
from trio.testing import MockClock

from alknet.core.budget import MemoryBudget
from alknet.core.limits import Limits
from alknet.core.quic.connection import QuicConnection
from alknet.core.quic.windows import (
    FLOOR_CONNECTION_BYTES,
    FLOOR_STREAM_BYTES,
    MIN_SEND_BYTES,
    TIGHT_SEND_BYTES,
    DeliveryRate,
    ReceiveWindow,
    first_windows,
    send_buffer,
)
from alknet.testing.network import FakeNetwork
from alknet.testing.worlds import open_fake_endpoints

KIB = 1024
MIB = 1024 * KIB
ALPN = "alknet/test"


def test_a_window_read_within_two_round_trips_doubles_up_to_its_bound() -> None:
    window = ReceiveWindow(100, now=0.0)
    assert not window.follow(49, 0.01, 0.1, 350)  # less than half of it
    assert window.follow(50, 0.02, 0.1, 350)
    assert window.size == 200
    assert not window.follow(149, 0.03, 0.1, 350)
    assert window.follow(150, 0.03, 0.1, 350)
    assert window.size == 350
    assert not window.follow(10_000, 0.04, 0.1, 350)
    assert window.size == 350


def test_a_window_read_slowly_stays() -> None:
    window = ReceiveWindow(100, now=0.0)
    assert not window.follow(50, 0.1, 0.1, 1000)
    assert not window.follow(100, 0.2, 0.1, 1000)
    assert window.size == 100
    assert window.follow(150, 0.25, 0.1, 1000)


def test_a_window_shrinks_by_halves_or_at_once_and_never_below_the_floor() -> None:
    window = ReceiveWindow(1000, now=0.0)
    window.shrink(300, is_exhausted=False)
    assert window.size == 500
    window.shrink(300, is_exhausted=False)
    assert window.size == 300
    window.size = 1000
    window.shrink(300, is_exhausted=True)
    assert window.size == 300
    small = ReceiveWindow(100, now=0.0)  # by configuration
    small.shrink(300, is_exhausted=True)
    assert small.size == 100


def test_the_rate_follows_the_fastest_lately() -> None:
    rate = DeliveryRate()
    assert rate.sample(1000, 1.0, 0.1)
    assert not rate.sample(1500, 1.05, 0.1)  # not a round trip yet
    assert rate.sample(3000, 1.1, 0.1)
    assert rate.per_s == pytest.approx(20_000)
    rate.sample(3000, 1.25, 0.1)  # a pause
    assert rate.per_s == pytest.approx(17_500)
    rate.sample(0, 1.5, 0.1)  # another path, which begins to count anew
    assert rate.per_s == pytest.approx(17_500)


def test_a_send_buffer_is_two_round_trips_within_its_bounds() -> None:
    budget, rate = MemoryBudget(1000), DeliveryRate()
    assert send_buffer(rate, 0.1, 4 * MIB, budget) == MIN_SEND_BYTES
    rate.per_s = 10 * MIB
    assert send_buffer(rate, 0.1, 4 * MIB, budget) == 2 * MIB
    assert send_buffer(rate, 1.0, 4 * MIB, budget) == 4 * MIB
    assert send_buffer(rate, 0.1, 1000, budget) == 1000
    budget.used = 750
    assert send_buffer(rate, 0.1, 4 * MIB, budget) == TIGHT_SEND_BYTES
    budget.used = 1000
    assert send_buffer(rate, 0.1, 4 * MIB, budget) == FLOOR_STREAM_BYTES


def test_new_connections_begin_small_and_smaller_when_memory_is_short() -> None:
    budget = MemoryBudget(1000)
    assert first_windows(Limits(), budget) == (128 * KIB, 256 * KIB)
    tiny = Limits(stream_receive_window_bytes=2 * KIB, connection_receive_window_bytes=3 * KIB)
    assert first_windows(tiny, budget) == (2 * KIB, 3 * KIB)
    budget.used = 750
    assert first_windows(Limits(), budget) == (FLOOR_STREAM_BYTES, FLOOR_CONNECTION_BYTES)
    assert first_windows(tiny, budget) == (2 * KIB, 3 * KIB)


async def drain(connection: QuicConnection, total: int) -> None:
    stream = await connection.accept_stream()
    while total > 0:
        total -= len(await stream.receive_some())
    assert total == 0


async def transfer(sender: QuicConnection, reader: QuicConnection, total: int) -> float:
    """Return how long it took."""
    began = trio.current_time()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(drain, reader, total)
        stream = await sender.open_stream()
        await stream.send_all(bytes(total))
    return trio.current_time() - began


async def test_windows_and_buffers_grow_with_the_path(autojump_clock: MockClock) -> None:
    async with open_fake_endpoints(FakeNetwork(delay=0.05), alpns=[ALPN]) as ends:
        dialer, acceptor = await ends.connect(ALPN)
        assert acceptor.engine.send_buffer_bytes == MIN_SEND_BYTES
        await transfer(acceptor, dialer, 8 * MIB)
        (window,) = dialer.engine._windows.values()
        assert window.size >= 1 * MIB
        assert dialer.engine._connection_window.size >= window.size
        assert acceptor.engine.send_buffer_bytes >= 512 * KIB
        assert dialer.engine.send_buffer_bytes == MIN_SEND_BYTES


async def test_an_unknown_peer_that_dialled_us_makes_us_hold_one_mebibyte(
    autojump_clock: MockClock,
) -> None:
    async with open_fake_endpoints(FakeNetwork(delay=0.05), alpns=[ALPN]) as ends:
        dialer, acceptor = await ends.connect(ALPN)
        await transfer(dialer, acceptor, 16 * MIB)
        assert acceptor.engine._connection_window.size <= 1 * MIB
        assert not acceptor.engine.is_proven
        assert dialer.engine.is_proven


async def test_a_reader_that_is_slow_keeps_the_first_window(autojump_clock: MockClock) -> None:
    async with open_fake_endpoints(FakeNetwork(delay=0.01), alpns=[ALPN]) as ends:
        dialer, acceptor = await ends.connect(ALPN)
        async with trio.open_nursery() as nursery:
            stream = await acceptor.open_stream()
            nursery.start_soon(stream.send_all, bytes(1 * MIB))
            theirs, got = await dialer.accept_stream(), 0
            while got < 1 * MIB:
                got += len(await theirs.receive_some(16 * KIB))
                await trio.sleep(0.1)
                assert len(theirs._unread) <= 128 * KIB
        assert dialer.engine._windows[stream.stream_id].size == 128 * KIB

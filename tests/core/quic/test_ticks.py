"""What a tick of the scheduler costs: a pass for each connection that changed, no more."""

from __future__ import annotations

from collections import Counter

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from tests.core.quic.hostile import ROUND_TRIP, attack
from tests.core.quic.test_floods import PING, stream_frame
from tests.core.quic.test_hostile_floods import counted_passes
from tests.core.quic.worlds import World, read_exactly, world

WRITERS = 20


def sent_by_client(here: World) -> int:
    return sum(1 for passage in here.net.trace if passage.source != here.server.address)


async def test_what_is_written_in_one_tick_leaves_in_one_packet(
    autojump_clock: MockClock,
) -> None:
    async with world() as here, trio.open_nursery() as nursery:
        dialer, _ = await here.connect()
        opened = [await dialer.open_stream() for _ in range(WRITERS)]
        await trio.sleep(1)
        before = sent_by_client(here)
        for stream in opened:
            nursery.start_soon(stream.send_all, b"a small frame " * 2)
        await wait_all_tasks_blocked()
        assert sent_by_client(here) == before + 1
        await trio.sleep(1)
        assert all(dialer.engine.unacknowledged(stream.stream_id) == 0 for stream in opened)


async def test_a_flush_serves_those_that_changed_and_nobody_else(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with world() as here:
        acceptors = [(await here.connect())[1] for _ in range(30)]
        await trio.sleep(1)
        with counted_passes(monkeypatch, here.server.endpoint) as passes:
            for acceptor in acceptors[:3] * 4:
                acceptor.send_datagram(b"one of four")
            await wait_all_tasks_blocked()
            assert len(passes) == 3


async def test_packets_make_no_trio_object(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Events, scopes and tasks are for those who wait, of whom there are as many as before."""
    async with attack() as scene:
        await trio.sleep(1)
        made: Counter[str] = Counter()
        for kind in (trio.Event, trio.CancelScope, trio.lowlevel.ParkingLot):
            _count_new(monkeypatch, kind, made)
        tasks = trio.lowlevel.current_statistics().tasks_living
        few = await _costs(scene.attacker.say, made, 20)
        many = await _costs(scene.attacker.say, made, 400)
        assert trio.lowlevel.current_statistics().tasks_living == tasks
        # A batch wakes the reader, and may move an alarm: sleeping anew makes a scope.
        assert sum(many.values()) <= sum(few.values()) + 2 * 400 / 64 + 4


async def _costs(say: object, made: Counter[str], packets: int) -> Counter[str]:
    assert callable(say)
    before = made.copy()
    for _ in range(packets):
        say(PING)
    await wait_all_tasks_blocked()
    await trio.sleep(ROUND_TRIP)
    return made - before


def _count_new(monkeypatch: pytest.MonkeyPatch, kind: type, made: Counter[str]) -> None:
    init = kind.__dict__["__init__"]

    def counting(self: object, *args: object, **kwargs: object) -> None:
        made[kind.__name__] += 1
        init(self, *args, **kwargs)

    monkeypatch.setattr(kind, "__init__", counting)


async def test_data_that_is_read_makes_a_stream_and_no_object_for_each_packet(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with attack() as scene:
        scene.attacker.engine._get_or_create_stream_for_send(0)
        scene.attacker.say(stream_frame(0, 0, b"begin"))
        stream = await scene.far.accept_stream()
        await read_exactly(stream, 5)
        made: Counter[str] = Counter()
        for kind in (trio.Event, trio.lowlevel.ParkingLot):
            _count_new(monkeypatch, kind, made)
        for number in range(100):
            scene.attacker.say(stream_frame(0, 5 + 1_000 * number, bytes(1_000)))
        await read_exactly(stream, 100_000)
        assert sum(made.values()) <= 4
        stream.reset(0)
        await stream.aclose()

from __future__ import annotations

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from alknet.core.datagram import MAX_BATCH, Address
from alknet.testing.contract import cancel_at_every_checkpoint
from alknet.testing.network import FakeNetwork, FakeUdpSocket

HERE: Address = ("192.0.2.1", 1)
THERE: Address = ("192.0.2.2", 2)
ELSEWHERE: Address = ("2001:db8::3", 3)


async def arriving(sock: FakeUdpSocket, within: float = 60.0) -> list[bytes]:
    """Everything that arrives within the time, in order."""
    found: list[bytes] = []
    with trio.move_on_after(within):
        while True:
            found += [data for data, _ in await sock.receive()]
    return found


def send_many(network: FakeNetwork, count: int = 200) -> FakeUdpSocket:
    here, there = network.socket(HERE), network.socket(THERE)
    for n in range(count):
        assert here.send(n.to_bytes(2, "big"), THERE)
    return there


async def test_a_datagram_arrives_after_the_delay_with_its_source(
    autojump_clock: MockClock,
) -> None:
    network = FakeNetwork(delay=0.25)
    here, there = network.socket(HERE), network.socket(THERE)
    here.send(b"x", THERE)
    sent_at = trio.current_time()
    assert await there.receive() == [(b"x", HERE)]
    assert trio.current_time() - sent_at == pytest.approx(0.25)


async def test_a_good_network_keeps_order_and_hands_over_bounded_batches(
    autojump_clock: MockClock,
) -> None:
    there = send_many(FakeNetwork())
    assert len(await there.receive()) == MAX_BATCH
    rest = await arriving(there)
    assert rest == [n.to_bytes(2, "big") for n in range(MAX_BATCH, 200)]


async def test_loss_takes_its_share_and_repeats_by_seed(autojump_clock: MockClock) -> None:
    runs = [await arriving(send_many(FakeNetwork(seed, loss=0.3))) for seed in (1, 1, 2)]
    assert runs[0] == runs[1] != runs[2]
    assert 100 < len(runs[0]) < 180


async def test_reordering_changes_the_order_and_nothing_else(autojump_clock: MockClock) -> None:
    network = FakeNetwork(3, reorder=0.2)
    found = await arriving(send_many(network))
    assert found != sorted(found)
    assert len(found) == len(set(found)) == 200
    assert network.counters["reordered"] > 0


async def test_duplicates_arrive_twice(autojump_clock: MockClock) -> None:
    network = FakeNetwork(4, duplicate=0.5)
    found = await arriving(send_many(network))
    assert len(set(found)) == 200
    assert len(found) == 200 + network.counters["duplicated"]


async def test_long_datagrams_fall_into_the_black_hole(autojump_clock: MockClock) -> None:
    network = FakeNetwork(mtu=1_200)
    here, there = network.socket(HERE), network.socket(THERE)
    assert here.send(bytes(1_201), THERE)
    assert here.send(bytes(1_200), THERE)
    assert [len(data) for data in await arriving(there)] == [1_200]
    assert network.counters["too_long"] == 1


async def test_after_a_rebinding_others_see_another_address(autojump_clock: MockClock) -> None:
    network = FakeNetwork()
    here, there = network.socket(HERE), network.socket(THERE)
    network.rebind(here, ELSEWHERE)
    here.send(b"from the new one", THERE)
    assert await there.receive() == [(b"from the new one", ELSEWHERE)]
    assert here.local_address == HERE
    there.send(b"to the old one", HERE)
    there.send(b"to the new one", ELSEWHERE)
    assert await arriving(here) == [b"to the new one"]
    assert network.counters["unreachable"] == 1


async def test_nothing_passes_in_a_blackout(autojump_clock: MockClock) -> None:
    network = FakeNetwork()
    here, there = network.socket(HERE), network.socket(THERE)
    with network.blackout():
        here.send(b"lost", THERE)
    here.send(b"found", THERE)
    assert await arriving(there) == [b"found"]


async def test_a_full_socket_takes_nothing_until_it_is_writable() -> None:
    network = FakeNetwork()
    here = network.socket(HERE)
    async with trio.open_nursery() as nursery:
        with here.full():
            assert not here.send(b"x", THERE)
            nursery.start_soon(here.wait_writable)
            await wait_all_tasks_blocked()
            assert nursery.child_tasks
    assert here.send(b"x", THERE)


async def test_an_overflowing_queue_loses_what_comes_last(autojump_clock: MockClock) -> None:
    network = FakeNetwork()
    there = send_many(network, 5_000)
    assert len(await arriving(there)) + network.counters["overflowed"] == 5_000
    assert network.counters["overflowed"] > 0


async def test_addresses_are_taken_once_and_free_again_after_a_close() -> None:
    network = FakeNetwork()
    first = network.socket(HERE)
    with pytest.raises(OSError, match="in use"):
        network.socket(HERE)
    first.close()
    first.close()
    network.socket(HERE)
    one, two = network.socket(("192.0.2.9", 0)), network.socket(("192.0.2.9", 0))
    assert one.local_address != two.local_address
    with pytest.raises(OSError, match="in use"):
        network.rebind(one, HERE)


async def test_closing_wakes_a_reader_with_an_error() -> None:
    here = FakeNetwork().socket(HERE)

    async def read() -> None:
        with pytest.raises(trio.ClosedResourceError):
            await here.receive()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(read)
        await wait_all_tasks_blocked()
        here.close()
    with pytest.raises(trio.ClosedResourceError):
        here.send(b"x", THERE)
    with pytest.raises(trio.ClosedResourceError):
        await here.wait_writable()


async def test_a_cancelled_receive_takes_nothing() -> None:
    network = FakeNetwork(delay=0)
    here, there = network.socket(HERE), network.socket(THERE)
    here.send(b"x", THERE)
    received: list[bytes] = []

    async def receive() -> None:
        received.extend(data for data, _ in await there.receive())

    assert await cancel_at_every_checkpoint(receive) == 1
    assert received == [b"x"]

"""When packets are acknowledged: counted, not timed."""

from __future__ import annotations

import trio
from aioquic.quic.recovery import QuicPacketSpace
from aioquic.tls import Epoch
from trio.testing import MockClock

from alknet.core.quic.acks import ACK_DELAY_S, BULK_BYTES, MANY_PACKETS, AckPolicy
from alknet.core.quic.endpoint import TICK_S
from alknet.testing.network import FakeNetwork
from alknet.testing.worlds import open_fake_endpoints
from tests.core.quic.sansio import SERVER_ADDRESS, EnginePair, connected
from tests.core.quic.test_windows import transfer

ALPN = "alknet/test"
MIB = 1024 * 1024


def arrived(*numbers: int) -> QuicPacketSpace:
    space = QuicPacketSpace()
    for number in numbers:
        space.ack_queue.add(number)
        space.largest_received_packet = max(space.largest_received_packet, number)
    return space


def acknowledged(space: QuicPacketSpace, received: int = 0) -> AckPolicy:
    policy = AckPolicy()
    policy.on_acknowledged(space, received)
    return policy


def test_a_few_small_packets_wait() -> None:
    space = arrived(0)
    policy = acknowledged(space)
    for number in range(1, MANY_PACKETS):
        space.ack_queue.add(number)
        space.largest_received_packet = number
        assert not policy.is_due(space, BULK_BYTES - 1)
    space.largest_received_packet = MANY_PACKETS
    assert policy.is_due(space, BULK_BYTES - 1)


def test_the_first_packet_is_no_news() -> None:
    assert not AckPolicy().is_due(arrived(5), 0)
    assert AckPolicy().is_due(arrived(5, 7), 0)


def test_a_request_acknowledges_what_confirmed_the_handshake() -> None:
    pair = EnginePair()
    pair.dialer.connect(SERVER_ADDRESS, pair.now)
    while pair._carry():
        pass
    assert pair.dialer.is_confirmed
    assert [len(side.sent) for side in (pair.client, pair.server)] == [2, 2]
    # It may have left out a number, which is kept beside.
    sent = pair.acceptor._spaces[Epoch.ONE_RTT].sent_packets
    waiting = [number for number, packet in sent.items() if packet.in_flight]
    assert waiting
    stream_id = pair.dialer.open_stream(unidirectional=False)
    pair.dialer.send_stream_data(stream_id, b"request")
    pair._carry()
    assert len(pair.client.sent) == 3
    assert not sent.keys() & set(waiting)


def test_bulk_does_not_wait() -> None:
    space = arrived(0)
    policy = acknowledged(space, 1000)
    assert not policy.is_due(space, 1000 + BULK_BYTES - 1)
    assert policy.is_due(space, 1000 + BULK_BYTES)


def test_neither_a_gap_nor_its_end_waits() -> None:
    space = arrived(0, 1)
    policy = acknowledged(space)
    space.ack_queue.add(3)
    assert policy.is_due(space, 0)
    policy.on_acknowledged(space, 0)
    space.ack_queue.add(4)  # in order again, behind the old gap
    assert not policy.is_due(space, 0)
    space.ack_queue.add(6)  # another
    assert policy.is_due(space, 0)
    policy.on_acknowledged(space, 0)
    space.ack_queue.add(2)  # closes the first
    assert policy.is_due(space, 0)


def test_delays_stay_below_what_aioquic_announces() -> None:
    pair = connected()
    assert pair.dialer._ack_delay == pair.acceptor._ack_delay == ACK_DELAY_S
    assert pair.acceptor._loss.max_ack_delay >= ACK_DELAY_S + TICK_S + 0.005


def test_a_packet_after_a_gap_is_acknowledged_at_once() -> None:
    pair = connected()
    pair.run(1)
    stream_id = pair.dialer.open_stream(unidirectional=False)
    pair.dialer._skip_at = 10**9  # no gap but ours
    pair.dialer.send_ping(0)
    pair.run(1)
    sent = []
    for word in (b"one", b"two", b"three"):
        pair.dialer.send_stream_data(stream_id, word)
        sent += [data for data, _ in pair.dialer.datagrams_to_send(pair.now)]
    assert len(sent) == 3
    pair.deliver(sent[0], to_server=True)
    assert not pair.acceptor.datagrams_to_send(pair.now)
    pair.deliver(sent[2], to_server=True)
    assert len(pair.acceptor.datagrams_to_send(pair.now)) == 1
    assert pair.acceptor._spaces[Epoch.ONE_RTT].ack_at is None


async def test_bulk_is_acknowledged_once_per_pass(autojump_clock: MockClock) -> None:
    async with open_fake_endpoints(FakeNetwork(), alpns=[ALPN]) as ends:
        dialer, acceptor = await ends.connect(ALPN)
        await transfer(dialer, acceptor, 2 * MIB)
        assert dialer.engine.packets_sent > 1_400
        assert acceptor.engine.packets_sent < dialer.engine.packets_sent // 5


async def test_acknowledging_acknowledgements_comes_to_an_end(autojump_clock: MockClock) -> None:
    network = FakeNetwork(seed=2, loss=0.05, reorder=0.05)
    async with open_fake_endpoints(network, alpns=[ALPN]) as ends:
        dialer, acceptor = await ends.connect(ALPN)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(transfer, dialer, acceptor, MIB // 4)
            nursery.start_soon(transfer, acceptor, dialer, MIB // 4)
        network.loss = network.reorder = 0.0
        await trio.sleep(1)
        before = network.counters["sent"]
        await trio.sleep(8)  # less than a keep-alive
        assert network.counters["sent"] - before <= 10
        for connection in (dialer, acceptor):
            queue = connection.engine._spaces[Epoch.ONE_RTT].ack_queue
            assert len(queue) <= 64

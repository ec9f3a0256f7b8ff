"""NewReno: what makes its window grow, what makes it shrink, and that a bad path still moves."""

from __future__ import annotations

import pytest
import trio
from aioquic.quic.packet import QuicPacketType
from aioquic.quic.packet_builder import QuicSentPacket
from aioquic.tls import Epoch
from trio.testing import MockClock

from alknet.core.quic.congestion import CongestionControl
from alknet.testing.network import FakeNetwork
from alknet.testing.worlds import open_fake_endpoints
from tests.core.quic.test_windows import transfer

ALPN = "alknet/test"
KIB = 1024
MIB = 1024 * KIB
FIRST = 12_000


class Flight:
    """Sends packets through a controller, by number."""

    def __init__(self) -> None:
        self.control = CongestionControl(max_datagram_size=1200)
        self.packets: list[QuicSentPacket] = []

    def send(self, count: int, now: float, size: int = 1200) -> list[QuicSentPacket]:
        sent = []
        for _ in range(count):
            packet = QuicSentPacket(
                epoch=Epoch.ONE_RTT,
                in_flight=True,
                is_ack_eliciting=True,
                is_crypto_packet=False,
                packet_number=len(self.packets),
                packet_type=QuicPacketType.ONE_RTT,
                sent_time=now,
                sent_bytes=size,
            )
            self.control.on_packet_sent(packet=packet)
            self.packets.append(packet)
            sent.append(packet)
        return sent

    def acknowledge(self, packets: list[QuicSentPacket], now: float) -> None:
        for packet in packets:
            self.control.on_packet_acked(now=now, packet=packet)

    @property
    def window(self) -> int:
        return self.control.congestion_window


def test_a_full_window_doubles_in_slow_start() -> None:
    flight = Flight()
    assert flight.window == FIRST
    flight.acknowledge(flight.send(10, 1.0), 1.1)
    assert flight.window == 2 * FIRST
    assert flight.control.bytes_in_flight == 0


def test_a_window_that_nobody_fills_stays() -> None:
    flight = Flight()
    for second in range(1, 1000):
        flight.acknowledge(flight.send(4, float(second), 200), second + 0.1)
    assert flight.window == FIRST


def test_a_loss_halves_once_for_all_in_flight_together() -> None:
    flight = Flight()
    first = flight.send(10, 1.0)
    flight.control.on_packets_lost(now=1.2, packets=first[:2])
    flight.control.on_packets_lost(now=1.3, packets=first[2:4])
    assert flight.window == flight.control.ssthresh == FIRST // 2
    flight.acknowledge(first[4:], 1.4)  # sent before the loss was known
    assert flight.window == FIRST // 2
    flight.control.on_packets_lost(now=2.0, packets=flight.send(5, 1.5))
    assert flight.window == FIRST // 4
    assert flight.control.bytes_in_flight == 0
    assert flight.control.full_losses == 0


def test_afterwards_it_grows_by_a_packet_for_each_window() -> None:
    flight = Flight()
    flight.control.on_packets_lost(now=1.1, packets=flight.send(10, 1.0))
    for at in (2.0, 3.0):
        flight.acknowledge(flight.send(flight.window // 1200, at), at + 0.1)
    assert flight.window == 6_000 + 2 * 1200


def test_persistent_congestion_leaves_two_packets() -> None:
    flight = Flight()
    flight.control.on_packets_lost(now=1.1, packets=flight.send(10, 1.0))
    flight.control.on_persistent_congestion()
    assert flight.window == 2_400


def test_longer_packets_make_a_longer_first_window_and_no_longer_one_later() -> None:
    flight = Flight()
    flight.control.resize(9000)
    assert flight.window == 18_000
    flight.control.on_packets_lost(now=1.1, packets=flight.send(2, 1.0, 9000))
    assert flight.control.full_losses == 2
    assert flight.window == 18_000  # two packets are the least
    flight.control.resize(1200)
    flight.control.on_packets_lost(now=2.1, packets=flight.send(2, 2.0))
    assert flight.window == 9_000
    assert flight.control.full_losses == 2


def test_slow_start_ends_when_the_round_trip_grows() -> None:
    flight = Flight()
    for step in range(40):
        rtt = 0.05 if step < 10 else 0.1
        flight.control.on_rtt_measurement(now=1.0 + step * 0.1, rtt=rtt)
    assert flight.control.ssthresh == FIRST


@pytest.mark.parametrize("loss", [0.05, 0.1])
async def test_a_lossy_path_still_makes_progress(autojump_clock: MockClock, loss: float) -> None:
    network = FakeNetwork(seed=7, loss=loss, delay=0.01)
    async with open_fake_endpoints(network, alpns=[ALPN]) as ends:
        dialer, acceptor = await ends.connect(ALPN)
        assert await transfer(dialer, acceptor, 512 * KIB) < 20


async def test_connections_of_one_path_share_it(autojump_clock: MockClock) -> None:
    network = FakeNetwork(seed=7, loss=0.01, delay=0.02)
    async with open_fake_endpoints(network, alpns=[ALPN]) as ends:
        times: list[float] = []

        async def run() -> None:
            dialer, acceptor = await ends.connect(ALPN)
            times.append(await transfer(dialer, acceptor, 1 * MIB))

        async with trio.open_nursery() as nursery:
            for _ in range(4):
                nursery.start_soon(run)
        assert max(times) < 6 * min(times)

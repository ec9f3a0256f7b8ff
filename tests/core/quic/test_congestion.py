"""CUBIC: what makes its window grow, what makes it shrink, and that a bad path still moves."""

from __future__ import annotations

from statistics import median

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


def test_a_loss_cuts_once_for_all_in_flight_together() -> None:
    flight = Flight()
    first = flight.send(10, 1.0)
    flight.control.on_packets_lost(now=1.2, packets=first[:2])
    flight.control.on_packets_lost(now=1.3, packets=first[2:4])
    assert flight.window == flight.control.ssthresh == 8_400
    flight.acknowledge(first[4:], 1.4)  # sent before the loss was known
    assert flight.window == 8_400
    flight.control.on_packets_lost(now=2.0, packets=flight.send(5, 1.5))
    assert flight.window == 5_880
    assert flight.control.bytes_in_flight == 0
    assert flight.control.full_losses == 0


def test_a_small_window_grows_as_renos_on_the_average() -> None:
    flight = Flight()
    flight.control.on_packets_lost(now=0.1, packets=flight.send(10, 0.05))
    flight.control.on_rtt_measurement(now=0.2, rtt=0.01)
    for step in range(5):
        at = 1.0 + step / 100
        flight.acknowledge(flight.send(flight.window // 1200, at), at + 0.005)
    # RFC 9438 sec. 4.3: about half a packet for each window, for it has lost less than half.
    assert 8_400 + 2 * 1200 <= flight.window <= 8_400 + 3 * 1200


def test_a_large_window_returns_fast_dwells_and_goes_beyond() -> None:
    flight = Flight()
    control = flight.control
    control.congestion_window = 400 * 1200
    flight.control.on_packets_lost(now=1.0, packets=flight.send(400, 0.9))
    control.on_rtt_measurement(now=1.0, rtt=0.1)
    assert flight.window == 280 * 1200
    windows = []
    for step in range(140):
        at = 1.1 + step / 10
        flight.acknowledge(flight.send(flight.window // 1200, at), at + 0.1)
        windows.append(flight.window // 1200)
    # The cube root of 120 / 0.4 is 6.7 s.
    assert windows[66] == pytest.approx(400, abs=4)
    assert windows[30] > 350
    assert windows[80] - windows[54] < 8
    assert windows[139] > 500


def test_fast_convergence_leaves_room_for_others() -> None:
    flight = Flight()
    flight.control.on_packets_lost(now=1.1, packets=flight.send(10, 1.0))
    flight.control.on_packets_lost(now=2.1, packets=flight.send(7, 2.0))
    assert flight.control._too_large == 8_400 * 1.7 / 2


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
    assert flight.window == 12_600
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
    # One network of 50 is unlucky enough to let the first end four times sooner than the last.
    spreads = [await _spread(seed) for seed in (7, 8, 10)]
    assert median(spreads) < 6


async def _spread(seed: int) -> float:
    """How many times as long as the first of four transfers the last of them takes."""
    network = FakeNetwork(seed=seed, loss=0.01, delay=0.02)
    async with open_fake_endpoints(network, alpns=[ALPN]) as ends:
        times: list[float] = []

        async def run() -> None:
            dialer, acceptor = await ends.connect(ALPN)
            times.append(await transfer(dialer, acceptor, 2 * MIB))

        async with trio.open_nursery() as nursery:
            for _ in range(4):
                nursery.start_soon(run)
    return max(times) / min(times)

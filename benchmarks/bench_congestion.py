"""Congestion control: what gets through a bottleneck with loss, on a network of virtual time.

Two real endpoints of ours exchange packets, only the controller differs. A busy machine makes it
slower, and changes no figure. Chance does: which datagrams are lost, and which packet numbers are
left out, moves one run by a fifth; so each line is the median of several networks.
"""

from __future__ import annotations

from typing import Any

import trio
from aioquic.quic.congestion.cubic import CubicCongestionControl
from aioquic.quic.congestion.reno import RenoCongestionControl
from trio.testing import MockClock

from alknet.core.quic.congestion import CongestionControl
from alknet.core.quic.connection import QuicConnection
from alknet.testing.network import FakeNetwork
from alknet.testing.worlds import open_fake_endpoints
from benchmarks.table import Table, row_of

ALPN = "bench-congestion/1"
MEGABIT = 125_000
BANDWIDTH = 20 * MEGABIT
QUEUE_BYTES = 100_000
LOSSES = (0.0, 0.001, 0.01, 0.03)
ROUND_TRIPS_S = (0.02, 0.1)
SECONDS, QUICK_SECONDS = 20.0, 2.0
SEEDS, QUICK_SEEDS = range(1, 10), range(1, 2)


class StockReno(RenoCongestionControl):
    """aioquic's default."""

    full_losses = 0

    def resize(self, max_datagram_size: int) -> None:
        self._max_datagram_size = max_datagram_size


class StockCubic(CubicCongestionControl):
    """aioquic's other one (RFC 9438)."""

    full_losses = 0

    def resize(self, max_datagram_size: int) -> None:
        self._max_datagram_size = self.additive_increase_factor = max_datagram_size


CONTROLS: dict[str, type[Any]] = {
    "alknet": CongestionControl,
    "aioquic reno": StockReno,
    "aioquic cubic": StockCubic,
}
NOTES = [
    (
        f"One transfer through {BANDWIDTH // MEGABIT} Mbit/s with a queue of {QUEUE_BYTES:,} bytes "
        "that drops what comes when it is full; losses besides are random and seeded. Medians of "
        f"{len(SEEDS)} networks."
    ),
    (
        "Time is virtual: the figures do not depend on the machine. «dropped» is the share of "
        "datagrams that the queue refused, «rtt ms» the smoothed round trip at the end."
    ),
]


def run(is_quick: bool) -> Table:
    seconds = QUICK_SECONDS if is_quick else SECONDS
    seeds = QUICK_SEEDS if is_quick else SEEDS
    rows = [
        row_of(
            name,
            f"{rtt * 1000:.0f} ms, {loss:.1%} lost",
            [measure(name, seed, rtt, loss, seconds) for seed in seeds],
        )
        for rtt in ROUND_TRIPS_S
        for loss in LOSSES
        for name in CONTROLS
    ]
    return Table("congestion", "Congestion control", "aioquic reno", rows, NOTES, [])


def measure(name: str, seed: int, rtt: float, loss: float, seconds: float) -> dict[str, float]:
    clock = MockClock(autojump_threshold=0)
    return trio.run(_transfer, name, seed, rtt, loss, seconds, clock=clock)


async def _transfer(
    name: str, seed: int, rtt: float, loss: float, seconds: float
) -> dict[str, float]:
    network = FakeNetwork(
        seed, loss=loss, delay=rtt / 2, bandwidth=BANDWIDTH, queue_bytes=QUEUE_BYTES
    )
    async with open_fake_endpoints(network, alpns=[ALPN]) as ends:
        dialer, acceptor = await ends.connect(ALPN)
        acceptor.engine._loss._cc = CONTROLS[name](max_datagram_size=1200)
        before = network.counters.copy()
        received = 0
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_pour, acceptor)
            stream = await dialer.accept_stream()
            with trio.move_on_after(seconds):
                while True:
                    received += len(await stream.receive_some())
            sent = network.counters["sent"] - before["sent"]
            dropped = network.counters["dropped"] - before["dropped"]
            rtt_ms = acceptor.engine._loss._rtt_smoothed * 1000
            nursery.cancel_scope.cancel()
    return {
        "Mbit/s": received / seconds / MEGABIT,
        "dropped %": 100 * dropped / sent,
        "rtt ms": rtt_ms,
    }


async def _pour(connection: QuicConnection) -> None:
    stream = await connection.open_stream()
    while True:
        await stream.send_all(bytes(256 * 1024))

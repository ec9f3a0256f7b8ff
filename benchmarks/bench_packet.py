"""What a packet costs, without sockets, tasks or a clock: aioquic's own way beside ours.

Two engines hand each other datagrams under a virtual clock; figures are microseconds of CPU.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable
from typing import TypeVar

from aioquic.tls import Epoch
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from alknet.core.limits import Limits
from alknet.core.quic import packets
from alknet.core.quic.engine import Engine, client_engine, server_engine
from alknet.core.quic.policy import client_policy, server_policy
from alknet.core.tls.credentials import NodeCredentials
from alknet.core.tls.trust import PinnedKey
from benchmarks.packet_parts import parts
from benchmarks.table import Aim, Row, Table

STOCK, OURS = "aioquic's way", "alknet's way"
METRIC = "CPU us"
SEND, RECEIVE = "packet of {} B sent", "packet of {} B received"
ACK_BUILT, ACK_READ = "ACK built and sent", "ACK received, per packet acknowledged"
EMPTY, TIMER = "pass with nothing to send", "get_timer"
CALL, BATCH = "small call, 1 in flight, both sides", "small call in a batch of 64, both sides"
CALL_BYTES = 108
BATCH_CALLS = 64
CALL_EVERY_S = 0.000_2
TRIP_S = 0.000_05
SIZES = (1_200, 8_900)
HUGE = 1 << 40
CLIENT, SERVER = ("192.0.2.1", 1), ("192.0.2.2", 2)
ALPN = "alknet/bench"
NOTES = [
    "Sans-IO: no socket, no task, a virtual clock; both ways interleaved in one process.",
    "A pass is all that the engine does in one: windows, bounds, path MTU, acknowledgements.",
    "A call is a request and an answer of 108 bytes on one stream, with idle passes and timers.",
    "Figures are the least of the rounds: other work on the machine can only add to them.",
    "Below: what a packet of 1200 bytes costs on each step, and on loopback sockets.",
]
AIMS = [
    Aim(f"{OURS} / {STOCK}, {SEND.format(1_200)}, {METRIC}", 0.4, is_at_least=False),
    Aim(f"{OURS} / {STOCK}, {CALL}, {METRIC}", 0.5, is_at_least=False),
]
T = TypeVar("T")


def run(is_quick: bool) -> Table:
    rounds, repeats = (1, 20) if is_quick else (30, 40)
    rows = measure(rounds=rounds, repeats=repeats)
    rows += [Row(OURS, case, {METRIC: value}) for case, value in parts(repeats).items()]
    return Table("packet", "A packet", STOCK, rows, NOTES, AIMS)


def measure(*, rounds: int, repeats: int) -> list[Row]:
    """Alternate rounds of both ways; *repeats* is how many passes or calls a round has."""
    found: dict[tuple[str, str], list[float]] = {}
    pairs = {STOCK: Pair(is_hot=False), OURS: Pair(is_hot=True)}
    gc.disable()
    try:
        for _ in range(rounds):
            for name, pair in pairs.items():
                for case, cost_us in pair.costs(repeats).items():
                    found.setdefault((case, name), []).append(cost_us)
    finally:
        gc.enable()
    return [_least(name, case, figures) for (case, name), figures in found.items()]


def _least(peer: str, case: str, rounds: list[float]) -> Row:
    spread = (max(rounds) - min(rounds)) / min(rounds)
    return Row(peer, case, {METRIC: min(rounds)}, spread)


class Stopwatch:
    """Adds up CPU time."""

    def __init__(self) -> None:
        self._seconds = 0.0
        self._count = 0

    def time(self, action: Callable[[], T], count: int = 1) -> T:
        """Do *action*, which is worth *count*."""
        began_at = time.process_time_ns()
        result = action()
        self._seconds += (time.process_time_ns() - began_at) / 1e9
        self._count += count
        return result

    def add(self, count: int) -> None:
        """Count what was timed with a count of 0."""
        self._count += count

    @property
    def each_us(self) -> float:
        return self._seconds / self._count * 1e6


class Pair:
    """A client and a server that are connected, with windows that hold nothing back."""

    def __init__(self, *, is_hot: bool) -> None:
        key = NodeCredentials(Ed25519PrivateKey.generate())
        limits = Limits()
        self.now = 1_000.0
        policy = client_policy(PinnedKey(key.node_id), key)
        self.client = client_engine(policy, alpn=ALPN, server_name=None, limits=limits)
        self.client.connect(SERVER, self.now)
        first = self.client.datagrams_to_send(self.now)
        cid = packets.read_header_untrusted(first[0][0]).destination_cid
        self.server = server_engine(
            server_policy(key), alpns=[ALPN], limits=limits, original_destination_cid=cid
        )
        self._deliver(first, self.server)
        for _ in range(10):
            self._exchange()
            self.now += 0.001
        assert self.client.is_confirmed
        self.stream_id = self.client.open_stream(unidirectional=False)
        for engine in (self.client, self.server):
            engine.is_hot = is_hot
            engine._remote_max_data = HUGE
            engine._local_max_data.value = engine._local_max_data.sent = HUGE
        self._call(CALL_BYTES)
        for engine in (self.client, self.server):
            stream = engine._streams[self.stream_id]
            stream.max_stream_data_remote = HUGE
            stream.max_stream_data_local = stream.max_stream_data_local_sent = HUGE

    def costs(self, repeats: int) -> dict[str, float]:
        """Measure each case once."""
        costs: dict[str, float] = {}
        for size in SIZES:
            costs |= self._bulk(size, repeats)
        for engine in (self.client, self.server):
            engine._max_datagram_size = SIZES[0]
        costs |= self._idle(10 * repeats)
        costs[CALL] = self._calls(5 * repeats, 1)
        costs[BATCH] = self._calls(repeats // 8 + 1, BATCH_CALLS)
        return costs

    def _bulk(self, size: int, repeats: int) -> dict[str, float]:
        """Send bursts of 32 packets and their acknowledgement, *repeats* times in all."""
        sent, received, built, read = (Stopwatch() for _ in range(4))
        for engine in (self.client, self.server):
            engine._max_datagram_size = size
        for _ in range(repeats // 4 + 1):
            self._let_through()
            self.client.send_stream_data(self.stream_id, bytes(32 * (size - 60)))
            burst = sent.time(lambda: self.client.datagrams_to_send(self.now), 0)
            sent.add(len(burst))
            self.now += TRIP_S
            received.time(lambda b=burst: self._deliver(b, self.server), len(burst))  # type: ignore[misc]
            self._drain(self.server)
            self.now += 0.03
            answer = built.time(lambda: self.server.datagrams_to_send(self.now), 1)
            read.time(lambda a=answer: self._deliver(a, self.client), len(burst))  # type: ignore[misc]
            self._settle()
        costs = {SEND.format(size): sent.each_us, RECEIVE.format(size): received.each_us}
        if size == SIZES[0]:
            costs |= {ACK_BUILT: built.each_us, ACK_READ: read.each_us}
        return costs

    def _idle(self, repeats: int) -> dict[str, float]:
        self._settle()
        passes, timers = Stopwatch(), Stopwatch()
        send, get_timer, now = self.client.datagrams_to_send, self.client.get_timer, self.now

        def idle_passes() -> None:
            for _ in range(repeats):
                send(now)

        def timers_read() -> None:
            for _ in range(repeats):
                get_timer()

        passes.time(idle_passes, repeats)
        timers.time(timers_read, repeats)
        return {EMPTY: passes.each_us, TIMER: timers.each_us}

    def _calls(self, repeats: int, batch: int) -> float:
        watch = Stopwatch()
        self._let_through()

        def calls() -> None:
            for _ in range(repeats):
                self._call(CALL_BYTES, batch)

        watch.time(calls, repeats * batch)
        return watch.each_us

    def _call(self, size: int, batch: int = 1) -> None:
        """Send requests in one pass and answers in another, as an endpoint drives it."""
        began_at = self.now
        for here, there in ((self.client, self.server), (self.server, self.client)):
            for _ in range(batch):
                here.send_stream_data(self.stream_id, bytes(size))
            self._pass(here, there)
            self._drain(there)
            self.now += TRIP_S
        self._pass(self.client, self.server)
        self.now = began_at + CALL_EVERY_S
        for here, there in ((self.client, self.server), (self.server, self.client)):
            timer = here.get_timer()
            if timer is not None and timer <= self.now:
                here.handle_timer(self.now)
                self._pass(here, there)

    def _pass(self, here: Engine, there: Engine) -> None:
        self._deliver(here.datagrams_to_send(self.now), there)
        here.get_timer()

    def _deliver(self, datagrams: list[tuple[bytes, tuple[str, int]]], to: Engine) -> None:
        address = CLIENT if to is not self.client else SERVER
        for data, _ in datagrams:
            to.receive_datagram(data, address, self.now)

    def _drain(self, engine: Engine) -> None:
        while engine.next_event() is not None:
            pass

    def _exchange(self) -> None:
        for here, there in ((self.client, self.server), (self.server, self.client)):
            self._deliver(here.datagrams_to_send(self.now), there)
            self._drain(here)
            self._drain(there)

    def _settle(self) -> None:
        """Let all be sent and acknowledged."""
        for _ in range(4):
            self._let_through()
            self.now += 0.03
            self._exchange()
        assert not self.client._spaces[Epoch.ONE_RTT].ack_eliciting_in_flight

    def _let_through(self) -> None:
        """Take away what holds packets back: the window, pacing and the search for the MTU."""
        for engine in (self.client, self.server):
            engine._loss._cc.congestion_window = HUGE
            engine._loss._pacer.packet_time = None

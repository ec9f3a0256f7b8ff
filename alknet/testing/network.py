"""A network of datagrams inside one process, as bad as a test wants it to be.

Loss, delay, reordering and duplicates are drawn from a seed, so a run can be repeated; a path can
swallow long datagrams or be worse one way, an address can change, the lights can go out. It has no
tasks: what is under way lies in the receiver's queue until its time has come on Trio's clock. Run
it under pytest-trio's ``autojump_clock``, and delays cost nothing. What became of each datagram is
kept in a trace, to be printed when a run fails.
"""

from __future__ import annotations

import errno
import heapq
import itertools
import os
from collections import Counter, deque
from collections.abc import Iterator
from contextlib import contextmanager
from random import Random  # noqa: TID251  seeded: a test's bad luck must be repeatable
from typing import NamedTuple

import trio

from alknet.core.datagram import MAX_BATCH, Address, DatagramSocket, NetworkPath, format_address

__all__ = ["FakeNetwork", "FakeUdpSocket", "Passage"]

# Datagrams that lie in one socket's queue, as many small ones as a 4 MiB buffer takes.
MAX_QUEUED = 4_096
FIRST_FREE_PORT = 49_152
# Passages that a trace keeps: the end of a run is where it went wrong.
MAX_TRACE = 20_000


class Passage(NamedTuple):
    """One line of a trace: what became of a datagram.

    Attributes:
        time: When it was sent, on Trio's clock.
        source: Who sent it, as others see it.
        target: For whom it was.
        size: In bytes.
        fate: ``delivered``, ``reordered``, or why not, as in `FakeNetwork.counters`.
        arrives_at: When the first copy arrives; None if none does.
    """

    time: float
    source: Address
    target: Address
    size: int
    fate: str
    arrives_at: float | None

    def __str__(self) -> str:
        arrives = "" if self.arrives_at is None else f" at {self.arrives_at:.6f}"
        way = f"{format_address(self.source)} > {format_address(self.target)}"
        return f"{self.time:12.6f} {way} {self.size:5} B {self.fate}{arrives}"


class FakeNetwork:
    """All sockets made by `socket` can reach one another, under these conditions.

    All can be changed while it runs, for what is sent from then on.

    Attributes:
        loss: Share of datagrams that vanish, 0 to 1.
        delay: Seconds that each takes.
        reorder: Share that takes up to four times as long, so that later ones overtake it.
        duplicate: Share that arrives twice, the copy late.
        mtu: Longer datagrams vanish without a word (a black hole); None for no bound.
        bandwidth: Bytes a second in each direction between two hosts; None for no bound.
        queue_bytes: How many wait at most for their turn there; what comes then is dropped.
        is_down: Everything vanishes; see `blackout`.
        counters: ``sent``, ``delivered``, and why not: ``lost``, ``too_long``, ``unreachable``,
            ``overflowed``, ``dropped`` (from a full queue); also ``duplicated`` and ``reordered``.
        trace: What became of the last datagrams, in the order of sending. The same seed and the
            same traffic give the same trace.
    """

    def __init__(  # noqa: PLR0913  conditions, all named
        self,
        seed: int = 0,
        *,
        loss: float = 0.0,
        delay: float = 0.01,
        reorder: float = 0.0,
        duplicate: float = 0.0,
        mtu: int | None = None,
        bandwidth: float | None = None,
        queue_bytes: int = 100_000,
    ) -> None:
        self.loss = loss
        self.delay = delay
        self.reorder = reorder
        self.duplicate = duplicate
        self.mtu = mtu
        self.bandwidth = bandwidth
        self.queue_bytes = queue_bytes
        self._free_at: dict[tuple[str, str], float] = {}
        self.is_down = False
        self.counters: Counter[str] = Counter()
        self.trace: deque[Passage] = deque(maxlen=MAX_TRACE)
        self._worse: dict[tuple[str, str], tuple[float, float]] = {}
        self._random = Random(seed)
        self._sockets: dict[Address, FakeUdpSocket] = {}
        self._ports = itertools.count(FIRST_FREE_PORT)
        self._order = itertools.count()

    def socket(self, address: Address) -> FakeUdpSocket:
        """Make a socket bound to *address*; port 0 takes a free one.

        Raises:
            OSError: The address is taken.
        """
        if address[1] == 0:
            address = (address[0], next(self._ports))
        if address in self._sockets:
            raise OSError(errno.EADDRINUSE, os.strerror(errno.EADDRINUSE), address)
        made = self._sockets[address] = FakeUdpSocket(self, address)
        return made

    def rebind(self, sock: FakeUdpSocket, address: Address) -> None:
        """Give *sock* another address, as a NAT does: it does not notice, its peers do.

        What is sent to the old address from now on is lost.
        """
        if address in self._sockets:
            raise OSError(errno.EADDRINUSE, os.strerror(errno.EADDRINUSE), address)
        del self._sockets[sock.public_address]
        sock.public_address = address
        self._sockets[address] = sock

    @contextmanager
    def blackout(self) -> Iterator[None]:
        """Lose everything that is sent inside the block."""
        self.is_down = True
        try:
            yield
        finally:
            self.is_down = False

    def worsen(self, source: str, target: str, *, loss: float = 0.0, delay: float = 0.0) -> None:
        """Make the way from host *source* to host *target* worse than the way back.

        Args:
            loss: Share that vanishes in addition to `loss`; 0 takes the harm back, as for delay.
            delay: Seconds in addition to `delay`.
        """
        self._worse[source, target] = loss, delay

    def format_trace(self, last: int = 200) -> str:
        """Write the last passages, a line each, for the message of a test that failed."""
        return "\n".join(map(str, list(self.trace)[-last:]))

    def carry(self, data: bytes, source: Address, target: Address) -> None:
        """Take a datagram from a socket and decide its fate."""
        self.counters["sent"] += 1
        receiver = self._sockets.get(target)
        # Each datagram takes the same number of draws: changing one condition mid-way leaves the
        # luck of the others as it was.
        lost, late, twice, by = (self._random.random() for _ in range(4))
        more_loss, more_delay = self._worse.get((source[0], target[0]), (0.0, 0.0))
        delay = self.delay + more_delay
        fate, arrives_at = "delivered", None
        if self.is_down or lost < self.loss + more_loss:
            fate = "lost"
        elif self.mtu is not None and len(data) > self.mtu:
            fate = "too_long"
        elif receiver is None:
            fate = "unreachable"
        elif (waits := self._wait_turn(source[0], target[0], len(data))) is None:
            fate = "dropped"
        else:
            delay += waits
            later = delay * (1 + 3 * by)
            if late < self.reorder:
                self.counters["reordered"] += 1
            arrives_at = trio.current_time() + (later if late < self.reorder else delay)
            if not self._queue(receiver, data, source, arrives_at):
                fate, arrives_at = "overflowed", None
            if twice < self.duplicate:
                self.counters["duplicated"] += 1
                self._queue(receiver, data, source, trio.current_time() + later)
        if fate in {"lost", "too_long", "unreachable", "dropped"}:
            self.counters[fate] += 1
        elif late < self.reorder and arrives_at is not None:
            fate = "reordered"
        self.trace.append(Passage(trio.current_time(), source, target, len(data), fate, arrives_at))

    def forget(self, sock: FakeUdpSocket) -> None:
        """Take a closed socket off the network."""
        self._sockets.pop(sock.public_address, None)

    def _wait_turn(self, source: str, target: str, size: int) -> float | None:
        """Return how long a datagram is under way to the end of the queue, None if it is full."""
        if self.bandwidth is None:
            return 0.0
        now = trio.current_time()
        free_at = max(now, self._free_at.get((source, target), now))
        if (free_at - now) * self.bandwidth > self.queue_bytes:
            return None
        self._free_at[source, target] = free_at + size / self.bandwidth
        return free_at + size / self.bandwidth - now

    def _queue(self, receiver: FakeUdpSocket, data: bytes, source: Address, at: float) -> bool:
        is_taken = receiver.queue(at, next(self._order), data, source)
        self.counters["delivered" if is_taken else "overflowed"] += 1
        return is_taken


class FakeUdpSocket(DatagramSocket):
    """A `DatagramSocket` on a `FakeNetwork`, which makes it.

    Attributes:
        public_address: Where others see it; differs from `local_address` after a rebinding.
    """

    def __init__(self, network: FakeNetwork, address: Address) -> None:
        self.public_address = address
        self._local_address = address
        self._network = network
        self._under_way: list[tuple[float, int, bytes, Address]] = []
        self._arrived = trio.lowlevel.ParkingLot()
        self._writable = trio.Event()
        self._writable.set()
        self._is_closed = False

    @property
    def local_address(self) -> Address:
        return self._local_address

    async def receive(self) -> list[tuple[bytes, Address]]:
        await trio.lowlevel.checkpoint()
        while True:
            self._check_open()
            if batch := self._take_due():
                return batch
            next_at = self._under_way[0][0] if self._under_way else float("inf")
            with trio.move_on_at(next_at):
                await self._arrived.park()

    def send(self, data: bytes, address: NetworkPath) -> bool:
        self._check_open()
        if not self._writable.is_set():
            return False
        self._network.carry(bytes(data), self.public_address, (address[0], address[1]))
        return True

    async def wait_writable(self) -> None:
        self._check_open()
        await self._writable.wait()
        self._check_open()

    def close(self) -> None:
        if self._is_closed:
            return
        self._is_closed = True
        self._network.forget(self)
        self._under_way.clear()
        self._arrived.unpark_all()
        self._writable.set()

    @contextmanager
    def full(self) -> Iterator[None]:
        """Let `send` find the buffer full inside the block."""
        self._writable = trio.Event()
        try:
            yield
        finally:
            self._writable.set()

    def queue(self, arrives_at: float, order: int, data: bytes, source: Address) -> bool:
        """Put a datagram under way to this socket; False if its buffer is full."""
        if len(self._under_way) >= MAX_QUEUED:
            return False
        heapq.heappush(self._under_way, (arrives_at, order, data, source))
        self._arrived.unpark_all()
        return True

    def _take_due(self) -> list[tuple[bytes, Address]]:
        now = trio.current_time()
        batch: list[tuple[bytes, Address]] = []
        while self._under_way and self._under_way[0][0] <= now and len(batch) < MAX_BATCH:
            _, _, data, source = heapq.heappop(self._under_way)
            batch.append((data, source))
        return batch

    def _check_open(self) -> None:
        if self._is_closed:
            raise trio.ClosedResourceError("this socket was closed")

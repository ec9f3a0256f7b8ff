"""A network of datagrams inside one process, as bad as a test wants it to be.

Loss, delay, reordering and duplicates are drawn from a seed, so a run can be repeated; a path can
swallow long datagrams, an address can change, the lights can go out. It has no tasks: what is
under way lies in the receiver's queue until its time has come on Trio's clock. Run it under
pytest-trio's ``autojump_clock``, and delays cost nothing.
"""

from __future__ import annotations

import errno
import heapq
import itertools
import os
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from random import Random  # noqa: TID251  seeded: a test's bad luck must be repeatable

import trio

from alknet.core.datagram import MAX_BATCH, Address, DatagramSocket

__all__ = ["FakeNetwork", "FakeUdpSocket"]

# Datagrams that lie in one socket's queue, as many small ones as a 4 MiB buffer takes.
MAX_QUEUED = 4_096
FIRST_FREE_PORT = 49_152


class FakeNetwork:
    """All sockets made by `socket` can reach one another, under these conditions.

    All can be changed while it runs, for what is sent from then on.

    Attributes:
        loss: Share of datagrams that vanish, 0 to 1.
        delay: Seconds that each takes.
        reorder: Share that takes up to four times as long, so that later ones overtake it.
        duplicate: Share that arrives twice, the copy late.
        mtu: Longer datagrams vanish without a word (a black hole); None for no bound.
        is_down: Everything vanishes; see `blackout`.
        counters: ``sent``, ``delivered``, and why not: ``lost``, ``too_long``, ``unreachable``,
            ``overflowed``; also ``duplicated`` and ``reordered``.
    """

    def __init__(
        self,
        seed: int = 0,
        *,
        loss: float = 0.0,
        delay: float = 0.01,
        reorder: float = 0.0,
        duplicate: float = 0.0,
        mtu: int | None = None,
    ) -> None:
        self.loss = loss
        self.delay = delay
        self.reorder = reorder
        self.duplicate = duplicate
        self.mtu = mtu
        self.is_down = False
        self.counters: Counter[str] = Counter()
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

    def carry(self, data: bytes, source: Address, target: Address) -> None:
        """Take a datagram from a socket and decide its fate."""
        self.counters["sent"] += 1
        receiver = self._sockets.get(target)
        # Each datagram takes the same number of draws: changing one condition mid-way leaves the
        # luck of the others as it was.
        lost, late, twice, by = (self._random.random() for _ in range(4))
        if self.is_down or lost < self.loss:
            self.counters["lost"] += 1
        elif self.mtu is not None and len(data) > self.mtu:
            self.counters["too_long"] += 1
        elif receiver is None:
            self.counters["unreachable"] += 1
        else:
            later = self.delay * (1 + 3 * by)
            if late < self.reorder:
                self.counters["reordered"] += 1
            self._queue(receiver, data, source, later if late < self.reorder else self.delay)
            if twice < self.duplicate:
                self.counters["duplicated"] += 1
                self._queue(receiver, data, source, later)

    def forget(self, sock: FakeUdpSocket) -> None:
        """Take a closed socket off the network."""
        self._sockets.pop(sock.public_address, None)

    def _queue(self, receiver: FakeUdpSocket, data: bytes, source: Address, after_s: float) -> None:
        arrives_at = trio.current_time() + after_s
        is_taken = receiver.queue(arrives_at, next(self._order), data, source)
        self.counters["delivered" if is_taken else "overflowed"] += 1


class FakeUdpSocket:
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

    def send(self, data: bytes, address: Address) -> bool:
        self._check_open()
        if not self._writable.is_set():
            return False
        self._network.carry(bytes(data), self.public_address, address)
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


_: type[DatagramSocket] = FakeUdpSocket

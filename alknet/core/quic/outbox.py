"""What an endpoint sends: at once, or in order when a full socket takes more. Drops the rest."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Sequence
from itertools import islice

import trio

from alknet.core.datagram import MAX_BATCH, DatagramSocket, NetworkPath

__all__ = ["Outbox"]

# Datagrams that wait for a full socket buffer; past it they are lost, as on any network.
MAX_UNSENT = 4_096
# A full device queue (ENOBUFS) looks writable: look again after this.
RETRY_S = 0.001


class Outbox:
    """Sends without waiting.

    Its length is the number of datagrams that wait for a full socket.
    """

    def __init__(
        self, socket: DatagramSocket, counters: Counter[str], on_full: Callable[[], None]
    ) -> None:
        """Send by *socket*.

        Args:
            counters: ``send_buffer_full`` counts what was lost here.
            on_full: Called when something has to wait: somebody is to run `drain`.
        """
        self._socket = socket
        self._counters = counters
        self._on_full = on_full
        self._unsent: deque[tuple[bytes, NetworkPath]] = deque()

    def __len__(self) -> int:
        return len(self._unsent)

    def send(self, data: bytes, address: NetworkPath) -> None:
        """Send one datagram as `send_batch` does."""
        self.send_batch([(data, address)])

    def send_batch(self, batch: Sequence[tuple[bytes, NetworkPath]]) -> None:
        """Send, behind what waits already; what the socket does not take waits too."""
        try:
            taken = 0 if self._unsent else self._socket.send_batch(batch)
        except trio.ClosedResourceError:  # the reader meets it too, and ends the endpoint
            return
        if taken == len(batch):
            return
        end = taken + MAX_UNSENT - len(self._unsent)
        self._unsent.extend(batch[taken:end])
        self._counters["send_buffer_full"] += len(batch[end:])
        self._on_full()

    async def drain(self) -> None:
        """Wait until all that waits was sent. Cancelled, what was not sent waits on."""
        while self._unsent:
            await self._socket.wait_writable()
            if not self._send_unsent():
                await trio.sleep(RETRY_S)

    def _send_unsent(self) -> bool:
        """Send what waits, as far as it goes; return whether anything went."""
        before = len(self._unsent)
        while self._unsent:
            batch = list(islice(self._unsent, MAX_BATCH))
            taken = self._socket.send_batch(batch)
            for _ in range(taken):
                self._unsent.popleft()
            if taken < len(batch):
                break
        return len(self._unsent) < before

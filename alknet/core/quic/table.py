"""Which connections an endpoint has, and where their packets find them. Sans-IO."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack

from alknet.core.datagram import Address, NetworkPath
from alknet.core.quic.connection import QuicConnection
from alknet.core.quic.reset import PeersByAddress
from alknet.core.quic.timers import Timer

__all__ = ["ConnectionTable", "Entry"]


class Entry:
    """What the endpoint keeps about one connection.

    Attributes:
        address: Where its peer is.
        cids: The connection IDs that lead to it.
        admission: Left when the handshake has ended; None from then on.
        close_datagrams: What closed it, to be said again to a peer that goes on.
        after_close: Datagrams that came since.
        proven_at: Where an accepted peer has completed its handshake; None until then.
    """

    __slots__ = (
        "address",
        "admission",
        "after_close",
        "cids",
        "close_datagrams",
        "connection",
        "proven_at",
        "timer",
    )

    def __init__(self, connection: QuicConnection, address: Address) -> None:
        self.connection = connection
        self.address = address
        self.cids: set[bytes] = set()
        self.timer = Timer(connection)
        self.admission: ExitStack | None = None
        self.close_datagrams: Sequence[tuple[bytes, NetworkPath]] = ()
        self.after_close = 0
        self.proven_at: Address | None = None


class ConnectionTable:
    """Connections by themselves, by connection ID and by their peer's address.

    Attributes:
        entries: Of all connections, those in their closing period included.
        routes: Whose a packet is, by its destination connection ID.
    """

    def __init__(self) -> None:
        self.entries: dict[QuicConnection, Entry] = {}
        self.routes: dict[bytes, Entry] = {}
        self._peers: PeersByAddress[Entry] = PeersByAddress()

    @property
    def is_empty(self) -> bool:
        """Nothing is left of any connection."""
        return not (self.entries or self.routes or self._peers)

    def add(self, connection: QuicConnection, address: Address, *cids: bytes) -> Entry:
        """Take in *connection*, whose peer is at *address*."""
        entry = self.entries[connection] = Entry(connection, address)
        self._peers.add(address, entry)
        for cid in cids:
            self.add_route(cid, connection)
        return entry

    def add_route(self, cid: bytes, connection: QuicConnection) -> None:
        """Lead packets with that connection ID to *connection*, if it is still known."""
        if (entry := self.entries.get(connection)) is not None:
            self.routes[cid] = entry
            entry.cids.add(cid)

    def remove_route(self, cid: bytes) -> None:
        """Forget a connection ID that the peer has retired."""
        if (entry := self.routes.pop(cid, None)) is not None:
            entry.cids.discard(cid)

    def move(self, connection: QuicConnection, address: Address) -> None:
        """The peer is at another address from now on."""
        if (entry := self.entries.get(connection)) is not None:
            self._peers.discard(entry.address, entry)
            self._peers.add(address, entry)
            entry.address = address

    def remove(self, connection: QuicConnection) -> Entry | None:
        """Forget *connection*; return what was kept about it, None if it was not known."""
        entry = self.entries.pop(connection, None)
        if entry is not None:
            self._peers.discard(entry.address, entry)
            for cid in entry.cids:
                self.routes.pop(cid, None)
        return entry

    def peers_at(self, address: Address, now: float) -> Iterator[Entry]:
        """Yield the connections with a peer at *address*, as far as the second's budget goes."""
        return self._peers.candidates(address, now)

"""`FakeNetwork` with a say in which datagrams pass."""

from __future__ import annotations

from collections.abc import Callable

from alknet.core.datagram import Address
from alknet.testing.network import FakeNetwork, FakeUdpSocket


class FakeNet(FakeNetwork):
    """Also calls ``filter(data, source, destination)``; False drops the datagram."""

    filter: Callable[[bytes, Address, Address], bool] = staticmethod(lambda *_: True)

    def carry(self, data: bytes, source: Address, target: Address) -> None:
        if self.filter(data, source, target):
            super().carry(data, source, target)

    def host(self, name: str = "192.0.2.1") -> FakeUdpSocket:
        """A socket on a free port of *name*."""
        return self.socket((name, 0))

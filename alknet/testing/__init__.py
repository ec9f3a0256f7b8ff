"""The public test kit: connections in memory, a fake network, cancellation at every checkpoint."""

from alknet.testing.contract import cancel_at_every_checkpoint
from alknet.testing.memory import MemoryConnection, MemoryStream, memory_connection_pair
from alknet.testing.network import FakeNetwork, FakeUdpSocket, Passage

__all__ = [
    "FakeNetwork",
    "FakeUdpSocket",
    "MemoryConnection",
    "MemoryStream",
    "Passage",
    "cancel_at_every_checkpoint",
    "memory_connection_pair",
]

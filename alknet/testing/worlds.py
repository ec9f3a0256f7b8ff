"""Pairs of real QUIC endpoints on a fake network, and call sessions over them.

Everything above the sockets is what a node runs: handshakes with raw keys, the datapath, streams,
sessions, dispatchers. Under pytest-trio's ``autojump_clock`` minutes of a bad network take
milliseconds:

```python
async def test_add_over_loss(autojump_clock):
    network = FakeNetwork(seed=1, loss=0.1)
    async with open_fake_pair(network, [add]) as pair:
        assert await pair.client.call_as(int, "math/add", {"a": 1, "b": 2}) == 3
```
"""

from __future__ import annotations

import math
from collections.abc import AsyncGenerator, Iterable, Sequence
from contextlib import AbstractContextManager, asynccontextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import trio
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from alknet.call.dispatch import OperationDispatcher
from alknet.call.handler import ALPN
from alknet.call.operations import Operation
from alknet.call.registry import Registry
from alknet.call.session import CallSession
from alknet.core.limits import Limits
from alknet.core.quic.connection import QuicConnection
from alknet.core.quic.endpoint import QuicAcceptor, QuicEndpoint
from alknet.core.quic.policy import client_policy, server_policy
from alknet.core.tls.credentials import NodeCredentials
from alknet.core.tls.trust import PinnedKey
from alknet.testing.network import FakeNetwork, FakeUdpSocket
from alknet.testing.operations import FixedIdentities, FixedOwnership, peer

__all__ = [
    "CLIENT_HOST",
    "SERVER_HOST",
    "FakeEndpoints",
    "FakePair",
    "open_fake_endpoints",
    "open_fake_pair",
]

CLIENT_HOST = "192.0.2.1"
SERVER_HOST = "192.0.2.9"


@dataclass
class FakeEndpoints:
    """A client's and a server's endpoint on one network, each with a key of its own.

    Attributes:
        network: What lies between them; change its conditions at will.
        client: Dials.
        server: Accepts connections of any ALPN that it was given.
        client_socket: To rebind (`FakeNetwork.rebind`) or to fill.
    """

    network: FakeNetwork
    client: QuicEndpoint
    server: QuicEndpoint
    client_socket: FakeUdpSocket
    _credentials: tuple[NodeCredentials, NodeCredentials]
    _accepted: trio.MemoryReceiveChannel[QuicConnection]

    async def connect(self, alpn: str) -> tuple[QuicConnection, QuicConnection]:
        """Return ``(dialer, acceptor)``, each of which has proven its key to the other.

        Raises:
            ConnectionEnded: The network was too bad for a handshake.
        """
        own, servers = self._credentials
        policy = client_policy(PinnedKey(servers.node_id), own)
        dialer = await self.client.connect(self.server.local_address, alpn=alpn, policy=policy)
        while True:  # an earlier dial may have been given up after the server had accepted it
            acceptor = await self._accepted.receive()
            if acceptor.alpn == alpn and acceptor.close_reason is None:
                return dialer, acceptor


@dataclass
class FakePair:
    """Two running sessions over QUIC, and what lies under them.

    Attributes:
        client: The side that dialled.
        server: The side that accepted; it knows the client as ``peer:client``.
        endpoints: For more connections, or to look at these.
    """

    client: CallSession
    server: CallSession
    endpoints: FakeEndpoints


@asynccontextmanager
async def open_fake_endpoints(
    network: FakeNetwork, *, alpns: Sequence[str] = (ALPN,), limits: Limits | None = None
) -> AsyncGenerator[FakeEndpoints]:
    """Run two endpoints on *network* for as long as the block; the end of it closes both."""
    limits = limits or Limits()
    credentials = tuple(NodeCredentials(Ed25519PrivateKey.generate()) for _ in range(2))
    # Bounded by the connections that the test dials.
    send, receive = trio.open_memory_channel[QuicConnection](math.inf)
    acceptor = QuicAcceptor(
        policy=server_policy(credentials[1]),
        alpns=lambda: alpns,
        on_connection=send.send_nowait,
        admit=_admit_all,
    )
    socket = network.socket((CLIENT_HOST, 0))
    client = QuicEndpoint(socket, limits=limits)
    server = QuicEndpoint(network.socket((SERVER_HOST, 0)), limits=limits, acceptor=acceptor)
    async with trio.open_nursery() as nursery:
        await nursery.start(client.run)
        await nursery.start(server.run)
        yield FakeEndpoints(
            network, client, server, socket, (credentials[0], credentials[1]), receive
        )
        nursery.cancel_scope.cancel()


@asynccontextmanager
async def open_fake_pair(
    network: FakeNetwork,
    operations: Iterable[Operation[..., Any]] = (),
    *,
    back: Iterable[Operation[..., Any]] = (),
    scopes: Sequence[str] = ("*",),
    limits: Limits | None = None,
    alpns: Sequence[str] = (),
) -> AsyncGenerator[FakePair]:
    """Run a session on each of two endpoints on *network* for as long as the block.

    Args:
        network: The handshake has to get through it, too.
        operations: What the server serves.
        back: What the client serves to the server.
        scopes: What the client may do at the server, and the server at the client.
        limits: Of both ends.
        alpns: More protocols that the server accepts, see `FakeEndpoints.connect`.

    Raises:
        ConnectionEnded: The network was too bad for a handshake.
    """
    limits = limits or Limits()
    async with open_fake_endpoints(network, alpns=(ALPN, *alpns), limits=limits) as endpoints:
        dialer, acceptor = await endpoints.connect(ALPN)
        dialer.identity, acceptor.identity = peer("server", *scopes), peer("client", *scopes)
        client = CallSession(dialer, _dispatcher(back, limits), limits=limits)
        server = CallSession(acceptor, _dispatcher(operations, limits), limits=limits)
        async with trio.open_nursery() as nursery:
            await nursery.start(client.run)
            await nursery.start(server.run)
            yield FakePair(client, server, endpoints)
            nursery.cancel_scope.cancel()


def _admit_all(_address: str) -> AbstractContextManager[None]:
    return nullcontext()


def _dispatcher(operations: Iterable[Operation[..., Any]], limits: Limits) -> OperationDispatcher:
    return OperationDispatcher(
        Registry(operations),
        identities=FixedIdentities(),
        ownership=FixedOwnership(),
        limits=limits,
    )

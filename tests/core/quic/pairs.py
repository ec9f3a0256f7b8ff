"""Two QUIC endpoints on loopback for tests."""

from __future__ import annotations

import math
from collections.abc import AsyncGenerator, Sequence
from contextlib import AbstractContextManager, asynccontextmanager, nullcontext
from dataclasses import dataclass, field

import trio
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from alknet.core.datagram import Address, DatagramSocket, UdpSocket
from alknet.core.limits import Limits
from alknet.core.quic.connection import QuicConnection
from alknet.core.quic.endpoint import QuicAcceptor, QuicEndpoint
from alknet.core.quic.policy import client_policy, server_policy
from alknet.core.quic.reset import ResetKey
from alknet.core.tls.credentials import NodeCredentials
from alknet.core.tls.trust import PinnedKey, Trust

ALPN = "alknet/test"


def new_credentials() -> NodeCredentials:
    return NodeCredentials(Ed25519PrivateKey.generate())


def admit_all(address: str) -> AbstractContextManager[None]:
    return nullcontext()


@dataclass
class Server:
    endpoint: QuicEndpoint
    credentials: NodeCredentials
    accepted: trio.MemoryReceiveChannel[QuicConnection]
    trust: Trust = field(init=False)

    def __post_init__(self) -> None:
        self.trust = PinnedKey(self.credentials.node_id)

    @property
    def address(self) -> Address:
        return self.endpoint.local_address


@asynccontextmanager
async def quic_server(
    *,
    limits: Limits | None = None,
    alpns: Sequence[str] = (ALPN,),
    credentials: NodeCredentials | None = None,
    socket: DatagramSocket | None = None,
    admit: object = None,
    reset_key: ResetKey | None = None,
    shard: int = 0,
) -> AsyncGenerator[Server]:
    credentials = credentials or new_credentials()
    send, receive = trio.open_memory_channel[QuicConnection](math.inf)
    acceptor = QuicAcceptor(
        policy=server_policy(credentials),
        alpns=lambda: alpns,
        on_connection=send.send_nowait,
        admit=admit or admit_all,  # type: ignore[arg-type]
    )
    endpoint = QuicEndpoint(
        socket or UdpSocket.bind("127.0.0.1", 0),
        limits=limits or Limits(),
        acceptor=acceptor,
        reset_key=reset_key,
        shard=shard,
    )
    async with trio.open_nursery() as nursery:
        await nursery.start(endpoint.run)
        yield Server(endpoint, credentials, receive)
        nursery.cancel_scope.cancel()


@asynccontextmanager
async def quic_client(
    *, limits: Limits | None = None, socket: DatagramSocket | None = None
) -> AsyncGenerator[QuicEndpoint]:
    endpoint = QuicEndpoint(socket or UdpSocket.bind("127.0.0.1", 0), limits=limits or Limits())
    async with trio.open_nursery() as nursery:
        await nursery.start(endpoint.run)
        yield endpoint
        nursery.cancel_scope.cancel()


@asynccontextmanager
async def quic_connection_pair(
    *,
    limits: Limits | None = None,
    alpn: str = ALPN,
    dialer: NodeCredentials | None = None,
    acceptor: NodeCredentials | None = None,
) -> AsyncGenerator[tuple[QuicConnection, QuicConnection]]:
    """Yield ``(dialer, acceptor)``, mutually authenticated, over real UDP."""
    own = dialer or new_credentials()
    async with (
        quic_server(limits=limits, alpns=[alpn], credentials=acceptor) as server,
        quic_client(limits=limits) as client,
    ):
        near = await client.connect(
            server.address, alpn=alpn, policy=client_policy(server.trust, own)
        )
        far = await server.accepted.receive()
        assert far.peer_key == own.node_id
        assert near.peer_key == server.credentials.node_id
        yield near, far

"""Two engines without a network: datagrams arrive at once, time is a number."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TypeVar

from aioquic.quic import events
from aioquic.quic.connection import QuicConnection
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from alknet.core.limits import Limits
from alknet.core.quic import packets
from alknet.core.quic.engine import Engine, client_engine, server_engine
from alknet.core.quic.handshake import ClientPolicy, ServerPolicy
from alknet.core.quic.policy import client_policy, server_policy
from alknet.core.tls.credentials import NodeCredentials
from alknet.core.tls.trust import PinnedKey

CLIENT_ADDRESS = ("192.0.2.1", 1111)
SERVER_ADDRESS = ("192.0.2.2", 2222)
ALPN = "alknet/test"
Event = TypeVar("Event", bound="events.QuicEvent")


def new_credentials() -> NodeCredentials:
    return NodeCredentials(Ed25519PrivateKey.generate())


@dataclass
class Side:
    engine: QuicConnection
    address: tuple[str, int]
    seen: list[events.QuicEvent] = field(default_factory=list)
    sent: list[bytes] = field(default_factory=list)
    on_event: Callable[[events.QuicEvent], None] = lambda _: None

    def of(self, kind: type[Event]) -> list[Event]:
        return [event for event in self.seen if isinstance(event, kind)]

    def received(self, stream_id: int) -> bytes:
        return b"".join(
            event.data
            for event in self.of(events.StreamDataReceived)
            if event.stream_id == stream_id
        )

    def drain(self) -> None:
        while (event := self.engine.next_event()) is not None:
            self.seen.append(event)
            self.on_event(event)


class Link:
    """Carries datagrams between a dialling engine and the one that `make_server` makes.

    Attributes:
        filter: Called with each datagram and whether the client sent it; returns what arrives.
    """

    def __init__(
        self, client: QuicConnection, make_server: Callable[[bytes], QuicConnection]
    ) -> None:
        self.now = 1000.0
        self.client = Side(client, CLIENT_ADDRESS)
        self.filter: Callable[[bytes, bool], list[bytes]] = lambda data, _: [data]
        self._make_server = make_server
        self._server: Side | None = None

    @property
    def server(self) -> Side:
        assert self._server is not None
        return self._server

    def connect(self) -> None:
        self.client.engine.connect(SERVER_ADDRESS, self.now)
        self.run()

    def run(self, seconds: float = 1.0) -> None:
        """Carry and fire timers until nothing is left to do within *seconds*."""
        until = self.now + seconds
        while True:
            while self._carry():
                pass
            timers = [timer for side in self._sides() if (timer := side.engine.get_timer())]
            if not timers or min(timers) > until:
                return
            self.now = max(self.now, min(timers)) + 1e-6
            for side in self._sides():
                timer = side.engine.get_timer()
                if timer is not None and timer <= self.now:
                    side.engine.handle_timer(self.now)
                side.drain()

    def _sides(self) -> list[Side]:
        return [self.client] if self._server is None else [self.client, self._server]

    def _carry(self) -> bool:
        moved = False
        for side in self._sides():
            if not side.engine._network_paths:
                continue
            for data, _ in side.engine.datagrams_to_send(self.now):
                side.sent.append(data)
                moved = True
                for arriving in self.filter(data, side is self.client):
                    self.deliver(arriving, to_server=side is self.client)
            side.drain()
        return moved

    def deliver(self, data: bytes, *, to_server: bool) -> None:
        if to_server and self._server is None:
            cid = packets.read_header_untrusted(data).destination_cid
            self._server = Side(self._make_server(cid), SERVER_ADDRESS)
        side, sender = (self.server, self.client) if to_server else (self.client, self.server)
        side.engine.receive_datagram(data, sender.address, self.now)
        side.drain()


class EnginePair(Link):
    """Two engines of ours, with mutual raw keys unless told otherwise."""

    def __init__(
        self,
        *,
        limits: Limits | None = None,
        client: ClientPolicy | None = None,
        server: ServerPolicy | None = None,
        alpn: str = ALPN,
        alpns: tuple[str, ...] = (ALPN,),
        server_name: str | None = None,
    ) -> None:
        limits = limits or Limits()
        self.client_key, self.server_key = new_credentials(), new_credentials()
        client = client or client_policy(PinnedKey(self.server_key.node_id), self.client_key)
        policy = server or server_policy(self.server_key)
        super().__init__(
            client_engine(client, alpn=alpn, server_name=server_name, limits=limits),
            lambda cid: server_engine(
                policy, alpns=alpns, limits=limits, original_destination_cid=cid
            ),
        )

    @property
    def dialer(self) -> Engine:
        assert isinstance(self.client.engine, Engine)
        return self.client.engine

    @property
    def acceptor(self) -> Engine:
        assert isinstance(self.server.engine, Engine)
        return self.server.engine


def connected(limits: Limits | None = None) -> EnginePair:
    pair = EnginePair(limits=limits)
    pair.connect()
    assert pair.dialer.is_confirmed
    return pair


class Forger:
    """A private key that claims to be *shown* and signs with *signer*; see the fixture `forged`."""

    def __init__(self, shown: Ed25519PrivateKey, signer: Ed25519PrivateKey) -> None:
        self._shown = shown
        self._signer = signer

    def public_key(self) -> Ed25519PublicKey:
        return self._shown.public_key()

    def sign(self, data: bytes) -> bytes:
        return self._signer.sign(data)

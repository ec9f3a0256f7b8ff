"""A peer made by hand: an engine for the handshake, then any frames in any packets."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from dataclasses import dataclass

import trio
from aioquic._buffer import Buffer
from aioquic.tls import Epoch

from alknet.core.contracts import CloseReason
from alknet.core.limits import Limits
from alknet.core.quic.connection import QuicConnection
from alknet.core.quic.engine import Engine, client_engine
from alknet.core.quic.policy import client_policy
from tests.core.quic.fakenet import FakeNet
from tests.core.quic.pairs import ALPN
from tests.core.quic.worlds import Pair, World, exchange, world

ROUND_TRIP = 0.025


def varint(*numbers: int) -> bytes:
    buf = Buffer(capacity=8 * len(numbers))
    for number in numbers:
        buf.push_uint_var(number)
    return buf.data


class Attacker:
    """Says what it likes on a connection that a server has accepted.

    Attributes:
        far: The server's side of the connection.
        got: Datagrams that came back, not yet given to the engine.
    """

    far: QuicConnection

    def __init__(self, here: World, host: str = "198.51.100.66") -> None:
        policy = client_policy(here.server.trust, None)
        self.engine: Engine = client_engine(policy, alpn=ALPN, server_name=None, limits=Limits())
        self.socket = here.net.host(host)
        self.target = here.server.address
        self.got: list[bytes] = []
        self._here = here

    async def connect(self) -> None:
        self.engine.connect(self.target, trio.current_time())
        while not self.engine.is_confirmed:
            self.answer()
            await trio.sleep(ROUND_TRIP)
        self.answer()
        await trio.sleep(ROUND_TRIP)
        self.far = await self._here.server.accepted.receive()
        self.take()
        self.got.clear()

    def take(self) -> list[bytes]:
        """Take what has arrived, without a word back."""
        while batch := self.socket._take_due():
            self.got += [data for data, _ in batch]
        return self.got

    def answer(self) -> None:
        """Be honest for once: give the engine what came, and send what it wants."""
        now = trio.current_time()
        for data in self.take():
            self.engine.receive_datagram(data, self.target, now)
        self.got.clear()
        for data, _ in self.engine.datagrams_to_send(now):
            self.socket.send(data, self.target)

    def packet(self, frames: bytes, number: int | None = None) -> bytes:
        """A 1-RTT packet with these frames."""
        if number is None:
            number = self.engine._packet_number
            self.engine._packet_number += 1
        header = b"\x41" + self.engine._peer_cid.cid + (number & 0xFFFF).to_bytes(2)
        padding = bytes(max(0, 20 - len(frames)))
        crypto = self.engine._cryptos[Epoch.ONE_RTT]
        sealed = crypto.encrypt_packet(header, frames + padding, number)
        assert isinstance(sealed, bytes)
        return sealed

    def say(self, frames: bytes) -> int:
        """Send a packet with these frames; return its size."""
        data = self.packet(frames)
        self.socket.send(data, self.target)
        return len(data)

    @property
    def end(self) -> CloseReason | None:
        return self.far.close_reason


@dataclass
class Scene:
    here: World
    attacker: Attacker
    honest: Pair

    @property
    def far(self) -> QuicConnection:
        return self.attacker.far


@asynccontextmanager
async def attack(limits: Limits | None = None) -> AsyncGenerator[Scene]:
    """Yield an attacker that is connected; an honest client of the same server must not notice."""
    async with world(limits=limits, net=FakeNet()) as here:
        honest = await here.connect()
        attacker = Attacker(here)
        await attacker.connect()
        tasks = trio.lowlevel.current_statistics().tasks_living
        yield Scene(here, attacker, honest)
        assert trio.lowlevel.current_statistics().tasks_living == tasks
        assert here.server.endpoint.counters["engine_error"] == 0
        await exchange(*honest, b"unharmed" * 1000)
        await exchange(*honest[::-1], b"unharmed")
        await here.connect()

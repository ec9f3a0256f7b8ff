"""First packets with forged addresses, stolen tokens, nothing in them: what they begin, counted."""

from __future__ import annotations

import pytest
import trio
from aioquic.quic.packet import QuicFrameType
from aioquic.quic.retry import TOKEN_LIFETIME
from trio.testing import MockClock

from alknet.core.datagram import Address
from alknet.core.limits import Limits
from alknet.core.quic.engine import Engine, client_engine
from alknet.core.quic.policy import client_policy
from alknet.testing.network import FakeUdpSocket
from tests.core.quic.hostile import ROUND_TRIP, attack, varint
from tests.core.quic.pairs import ALPN
from tests.core.quic.worlds import World, exchange, half_open, world

HALF_OPEN = 20
VICTIM = ("203.0.113.5", 5_000)


def initial(engine: Engine, here: World) -> bytes:
    """The datagram that *engine* sends now, alone."""
    return engine.datagrams_to_send(trio.current_time())[0][0]


def begin(here: World) -> tuple[Engine, bytes]:
    """A client that has said its first word to nobody yet."""
    policy = client_policy(here.server.trust, None)
    engine = client_engine(policy, alpn=ALPN, server_name=None, limits=Limits())
    engine.connect(here.server.address, trio.current_time())
    return engine, initial(engine, here)


def sent_to(here: World, address: Address) -> int:
    return sum(passage.size for passage in here.net.trace if passage.target == address)


async def token_for(here: World, sock: FakeUdpSocket) -> bytes:
    """Ask from *sock* while a Retry is due, and return the first packet that shows its token."""
    engine, data = begin(here)
    sock.send(data, here.server.address)
    ((retry, source),) = await sock.receive()
    assert retry[0] & 0xF0 == 0xF0
    engine.receive_datagram(retry, source[:2], trio.current_time())
    return initial(engine, here)


async def test_retry_begins_exactly_at_the_limit_and_ends_below_it(
    autojump_clock: MockClock,
) -> None:
    async with world(limits=Limits(half_open_before_retry=HALF_OPEN)) as here:
        endpoint = here.server.endpoint
        for number in range(HALF_OPEN):
            here.net.carry(begin(here)[1], (f"203.0.113.{number}", 5_000), here.server.address)
        await trio.sleep(ROUND_TRIP)
        assert (half_open(endpoint), endpoint.counters["retry"]) == (HALF_OPEN, 0)
        for number in range(100, 150):
            here.net.carry(begin(here)[1], (f"203.0.113.{number}", 5_000), here.server.address)
        await trio.sleep(ROUND_TRIP)
        assert (half_open(endpoint), endpoint.counters["retry"]) == (HALF_OPEN, 50)
        assert len(endpoint.connections) == HALF_OPEN
        await exchange(*await here.connect(), b"let in, after a Retry")
        assert endpoint.counters["retry"] == 51
        await trio.sleep(10)  # the handshakes time out
        assert half_open(endpoint) == 0
        await here.connect()
        assert endpoint.counters["retry"] == 51


async def test_a_token_is_worth_nothing_from_another_address(autojump_clock: MockClock) -> None:
    async with world(limits=Limits(half_open_before_retry=1)) as here:
        endpoint = here.server.endpoint
        here.net.carry(begin(here)[1], ("198.51.100.9", 9), here.server.address)
        await trio.sleep(ROUND_TRIP)
        stolen = await token_for(here, here.net.host("198.51.100.1"))
        for _ in range(50):
            here.net.carry(stolen, VICTIM, here.server.address)
        await trio.sleep(1)
        assert len(endpoint.connections) == 1
        assert endpoint.counters["retry"] == 51
        assert 0 < sent_to(here, VICTIM) < 50 * len(stolen) / 4


async def test_a_token_shown_again_and_again_makes_one_connection(
    autojump_clock: MockClock,
) -> None:
    async with world(limits=Limits(half_open_before_retry=1)) as here:
        endpoint = here.server.endpoint
        here.net.carry(begin(here)[1], ("198.51.100.9", 9), here.server.address)
        await trio.sleep(ROUND_TRIP)
        sock = here.net.host("198.51.100.1")
        shown = await token_for(here, sock)
        for _ in range(50):
            sock.send(shown, here.server.address)
        await trio.sleep(ROUND_TRIP)
        assert len(endpoint.connections) == 2
        assert half_open(endpoint) == 2
        # What repeats it is at most what a handshake lost sends again.
        assert sent_to(here, sock.public_address) < 50 * len(shown) / 2


@pytest.mark.parametrize("at", [0, 20, 50])
async def test_a_token_with_a_changed_byte_is_none(at: int, autojump_clock: MockClock) -> None:
    async with world(limits=Limits(half_open_before_retry=1)) as here:
        endpoint = here.server.endpoint
        here.net.carry(begin(here)[1], ("198.51.100.9", 9), here.server.address)
        await trio.sleep(ROUND_TRIP)
        sock = here.net.host("198.51.100.1")
        changed = bytearray(await token_for(here, sock))
        changed[1 + 4 + 1 + 8 + 1 + 8 + 2 + at] ^= 1
        sock.send(bytes(changed), here.server.address)
        await trio.sleep(ROUND_TRIP)
        assert (half_open(endpoint), endpoint.counters["retry"]) == (1, 2)


async def test_an_old_token_is_none(autojump_clock: MockClock) -> None:
    async with world(limits=Limits(half_open_before_retry=1)) as here:
        endpoint = here.server.endpoint
        here.net.carry(begin(here)[1], ("198.51.100.9", 9), here.server.address)
        await trio.sleep(ROUND_TRIP)
        sock = here.net.host("198.51.100.1")
        shown = await token_for(here, sock)
        await trio.sleep(TOKEN_LIFETIME)
        here.net.carry(begin(here)[1], ("198.51.100.9", 9), here.server.address)
        sock.send(shown, here.server.address)
        await trio.sleep(ROUND_TRIP)
        assert (half_open(endpoint), endpoint.counters["retry"]) == (1, 2)


async def test_empty_datagrams_are_counted_and_nothing_else(autojump_clock: MockClock) -> None:
    async with world() as here:
        honest = await here.connect()
        for number in range(3_000):
            here.net.carry(b"", (VICTIM[0], 1 + number), here.server.address)
        await trio.sleep(1)
        assert here.server.endpoint.counters["empty"] == 3_000
        assert not [p for p in here.net.trace if p.target[0] == VICTIM[0]]
        assert len(here.server.endpoint.connections) == 1
        await exchange(*honest, b"unharmed")


EMPTY = {
    "stream": varint(0x0E, 0, 0, 0),
    "datagram": varint(QuicFrameType.DATAGRAM_WITH_LENGTH, 0),
    "crypto": varint(QuicFrameType.CRYPTO, 0, 0),
}


@pytest.mark.parametrize("kind", EMPTY)
async def test_frames_without_a_byte_a_packet_each_are_answered_by_the_batch(
    kind: str, autojump_clock: MockClock
) -> None:
    limits = Limits(datagrams_queued=32)
    async with attack(limits) as scene:
        size = sum(scene.attacker.say(EMPTY[kind]) for _ in range(1_000))
        await trio.sleep(1)
        answers = scene.attacker.take()
        assert len(answers) <= 1_000 / 32
        assert sum(map(len, answers)) < size / 10
        assert len(scene.far._streams) <= 1
        assert len(scene.far._datagrams) <= limits.datagrams_queued
        assert scene.attacker.end is None

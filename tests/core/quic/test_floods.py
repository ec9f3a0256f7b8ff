"""Floods: each bounded in bytes, packets and memory, and nobody else notices (RFC 9000 sec. 21)."""

from __future__ import annotations

import pytest
import trio
from aioquic.quic.packet import QuicErrorCode, QuicFrameType
from aioquic.tls import Epoch
from trio.testing import MockClock

from alknet.core.limits import Limits
from alknet.core.quic import bounds
from alknet.core.quic.bounds import FIRST_SKIP, MAX_CRYPTO_GAPS, MAX_GAPS, MAX_IDLE_FRAMES
from alknet.core.quic.engine import MAX_CRYPTO_BYTES, client_engine
from alknet.core.quic.policy import client_policy
from tests.core.quic.fakenet import FakeNet
from tests.core.quic.hostile import ROUND_TRIP, Scene, attack, varint
from tests.core.quic.pairs import ALPN
from tests.core.quic.worlds import World, exchange, half_open, world

PING = b"\x01"
FEW = Limits(streams_per_connection=16, datagrams_queued=32)


def ack(largest: int, count: int) -> bytes:
    return varint(QuicFrameType.ACK, largest, 0, 0, count - 1)


def stream_frame(stream_id: int, offset: int, data: bytes) -> bytes:
    return varint(0x0E, stream_id, offset, len(data)) + data


def assert_closed(scene: Scene, code: int) -> None:
    end = scene.attacker.end
    assert end is not None
    assert (end.code, end.by_peer, end.is_transport) == (code, False, True)


# frames that carry nothing

IDLE = {
    "ping": PING,
    "ack": ack(0, 1),
    "data blocked": varint(QuicFrameType.DATA_BLOCKED, 0),
    "max data": varint(QuicFrameType.MAX_DATA, 0),
    "max streams": varint(QuicFrameType.MAX_STREAMS_BIDI, 0),
    "max streams, one way": varint(QuicFrameType.MAX_STREAMS_UNI, 0),
    "streams blocked": varint(QuicFrameType.STREAMS_BLOCKED_BIDI, 0),
    "path challenge": varint(QuicFrameType.PATH_CHALLENGE) + bytes(8),
    "path response": varint(QuicFrameType.PATH_RESPONSE) + bytes(8),
    "stream, empty": stream_frame(0, 0, b""),
    "datagram, empty": varint(QuicFrameType.DATAGRAM_WITH_LENGTH, 0),
    "crypto, empty": varint(QuicFrameType.CRYPTO, 0, 0),
    "retire": varint(QuicFrameType.RETIRE_CONNECTION_ID, 1),
}


@pytest.mark.parametrize("kind", IDLE)
async def test_packets_stuffed_with_frames_that_carry_nothing_close(
    kind: str, autojump_clock: MockClock
) -> None:
    async with attack() as scene:
        scene.attacker.say(IDLE[kind] * MAX_IDLE_FRAMES)
        await trio.sleep(ROUND_TRIP)
        assert scene.attacker.end is None
        scene.attacker.say(IDLE[kind] * (MAX_IDLE_FRAMES + 1))
        await trio.sleep(ROUND_TRIP)
        assert_closed(scene, QuicErrorCode.PROTOCOL_VIOLATION)


async def test_a_ping_flood_is_answered_by_the_batch(autojump_clock: MockClock) -> None:
    async with attack() as scene:
        size = sum(scene.attacker.say(PING) for _ in range(1_000))
        await trio.sleep(1)
        answers = scene.attacker.take()
        assert len(answers) <= 1_000 / 64 + 8  # the gaps that we leave in numbers do not wait
        assert sum(map(len, answers)) < size / 10
        assert scene.attacker.end is None


# acknowledgements


async def test_a_peer_that_never_acknowledges_bounds_what_is_remembered(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bounds, "MAX_TRACKED_PACKETS", 100)
    async with attack() as scene:
        stream = await scene.far.open_stream()
        await stream.send_all(bytes(60_000))
        most = 0
        for _ in range(500):
            scene.attacker.say(PING)
            await trio.sleep(0.05)
            most = max(most, len(scene.far.engine._spaces[Epoch.ONE_RTT].sent_packets))
        assert 50 < most <= 102
        # An acknowledgement for each ping, and probes ever more seldom.
        assert len(scene.attacker.take()) < 600
        assert scene.attacker.end is None
        stream.reset(0)


async def test_a_peer_that_reads_and_acknowledges_nothing_bounds_what_is_sent(
    autojump_clock: MockClock,
) -> None:
    async with attack() as scene:
        stream = await scene.far.open_stream()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(stream.send_all, bytes(10_000_000))
            for _ in range(60):
                scene.attacker.say(PING)
                await trio.sleep(10)
                assert scene.far.engine.unacknowledged_in_all() <= 256 * 1024
            assert sum(map(len, scene.attacker.take())) < 100_000  # in ten minutes
            nursery.cancel_scope.cancel()
        stream.reset(0)


async def test_acknowledging_what_was_never_sent_closes(autojump_clock: MockClock) -> None:
    async with attack() as scene:
        scene.attacker.say(ack(scene.far.engine.packets_sent, 1))
        await trio.sleep(ROUND_TRIP)
        assert_closed(scene, QuicErrorCode.PROTOCOL_VIOLATION)


async def test_acknowledging_ahead_of_arrival_closes(autojump_clock: MockClock) -> None:
    """It acknowledges all that may have been sent, as fast as it can, to be sent more."""
    async with attack() as scene:
        scene.attacker.say(varint(QuicFrameType.MAX_DATA, 2**40))
        stream = await scene.far.open_stream()
        scene.attacker.say(varint(QuicFrameType.MAX_STREAM_DATA, stream.stream_id, 2**40))
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_send_until_closed, stream)
            while scene.attacker.end is None:
                sent = scene.far.engine.packets_sent
                assert sent < 2 * FIRST_SKIP + 200
                scene.attacker.say(ack(sent - 1, sent))
                await trio.sleep(0.002)
        assert_closed(scene, QuicErrorCode.PROTOCOL_VIOLATION)


async def _send_until_closed(stream: trio.abc.SendStream) -> None:
    with pytest.raises(trio.BrokenResourceError):
        await stream.send_all(bytes(50_000_000))


async def test_an_ack_flood_costs_no_packet(autojump_clock: MockClock) -> None:
    async with attack() as scene:
        await trio.sleep(1)
        scene.attacker.take().clear()
        before = scene.far.engine.packets_sent
        for _ in range(1_000):
            scene.attacker.say(ack(0, 1))
        await trio.sleep(1)
        assert scene.far.engine.packets_sent == before
        assert not scene.attacker.take()


# connection IDs and paths


def new_cid(number: int, retire_prior_to: int) -> bytes:
    """A connection ID of 8 bytes, with a token of 16."""
    head = varint(QuicFrameType.NEW_CONNECTION_ID, number, retire_prior_to)
    return head + b"\x08" + number.to_bytes(8) * 3


async def test_connection_ids_without_end_close(autojump_clock: MockClock) -> None:
    async with attack() as scene:
        before = scene.far.engine.packets_sent
        for number in range(8, 500):
            scene.attacker.say(new_cid(number, number))
        await trio.sleep(1)
        assert_closed(scene, QuicErrorCode.CONNECTION_ID_LIMIT_ERROR)
        assert len(scene.far.engine._retire_connection_ids) <= 33
        assert scene.far.engine.packets_sent - before < 10


async def test_retiring_what_was_never_given_closes(autojump_clock: MockClock) -> None:
    async with attack() as scene:
        # The first seven are known; each makes the server choose another, not yet sent.
        frames = b"".join(varint(QuicFrameType.RETIRE_CONNECTION_ID, n) for n in range(1, 9))
        scene.attacker.say(frames)
        await trio.sleep(ROUND_TRIP)
        assert_closed(scene, QuicErrorCode.PROTOCOL_VIOLATION)


async def test_retiring_on_and_on_keeps_four_routes(autojump_clock: MockClock) -> None:
    async with attack() as scene:
        endpoint = scene.here.server.endpoint
        before = len(endpoint._table.routes)
        scene.attacker.engine._local_active_connection_id_limit = 1_000
        for number in range(1, 200):
            scene.attacker.say(varint(QuicFrameType.RETIRE_CONNECTION_ID, number))
            await trio.sleep(ROUND_TRIP)
            scene.attacker.answer()
        assert scene.attacker.end is None
        assert len(endpoint._table.routes) <= before
        assert len(scene.far.engine._host_cids) == 4


async def test_path_challenges_are_answered_with_no_more_than_they_bring(
    autojump_clock: MockClock,
) -> None:
    async with attack() as scene:
        challenge = varint(QuicFrameType.PATH_CHALLENGE) + bytes(8)
        size = sum(scene.attacker.say(challenge) for _ in range(1_000))
        await trio.sleep(1)
        assert sum(map(len, scene.attacker.take())) < size
        assert len(scene.far.engine._network_paths[0].remote_challenges) <= 32
        assert scene.attacker.end is None


async def test_paths_without_end_are_bounded(autojump_clock: MockClock) -> None:
    """Packets of one connection, as if from a thousand addresses."""
    async with attack() as scene:
        net, attacker = scene.here.net, scene.attacker
        size = 0
        for number in range(1_000):
            data = attacker.packet(varint(QuicFrameType.PATH_CHALLENGE) + bytes(8))
            size = len(data)
            net.carry(data, ("203.0.113.7", 1_000 + number), attacker.target)
        await trio.sleep(1)
        assert len(scene.far.engine._network_paths) <= 8
        targets = [p for p in net.trace if p.target[0] == "203.0.113.7"]
        for port in range(1_000, 2_000):
            assert sum(p.size for p in targets if p.target[1] == port) <= 3 * size


# streams, handshake bytes, datagrams


async def test_streams_opened_and_reset_meet_the_limit(autojump_clock: MockClock) -> None:
    async with attack(FEW) as scene:
        for number in range(FEW.streams_per_connection):
            scene.attacker.say(varint(QuicFrameType.RESET_STREAM, 4 * number, 7, 0))
        await trio.sleep(ROUND_TRIP)
        assert scene.attacker.end is None
        assert len(scene.far._streams) == FEW.streams_per_connection
        scene.attacker.say(varint(QuicFrameType.RESET_STREAM, 4 * number + 4, 7, 0))
        await trio.sleep(ROUND_TRIP)
        assert_closed(scene, QuicErrorCode.STREAM_LIMIT_ERROR)


async def test_a_stream_in_crumbs_closes(autojump_clock: MockClock) -> None:
    async with attack() as scene:
        for start in range(1, 2 * MAX_GAPS + 1, 100):
            offsets = range(start, min(start + 100, 2 * MAX_GAPS + 1), 2)
            scene.attacker.say(b"".join(stream_frame(0, offset, b"x") for offset in offsets))
        await trio.sleep(ROUND_TRIP)
        assert scene.attacker.end is None
        assert len(scene.far.engine._streams[0].receiver._ranges) == MAX_GAPS
        scene.attacker.say(stream_frame(0, 2 * MAX_GAPS + 2, b"x"))
        await trio.sleep(ROUND_TRIP)
        assert_closed(scene, QuicErrorCode.PROTOCOL_VIOLATION)


async def test_a_handshake_in_crumbs_closes(autojump_clock: MockClock) -> None:
    async with attack() as scene:
        for number in range(MAX_CRYPTO_GAPS + 1):
            assert scene.attacker.end is None
            scene.attacker.say(varint(QuicFrameType.CRYPTO, 2 * number + 1, 1) + b"x")
            await trio.sleep(ROUND_TRIP)
        assert_closed(scene, QuicErrorCode.CRYPTO_BUFFER_EXCEEDED)


async def test_handshake_bytes_after_the_handshake_are_bounded(autojump_clock: MockClock) -> None:
    async with attack() as scene:
        scene.attacker.say(varint(QuicFrameType.CRYPTO, MAX_CRYPTO_BYTES - 1, 1) + b"x")
        await trio.sleep(ROUND_TRIP)
        assert scene.attacker.end is None
        scene.attacker.say(varint(QuicFrameType.CRYPTO, MAX_CRYPTO_BYTES, 1) + b"x")
        await trio.sleep(ROUND_TRIP)
        assert_closed(scene, QuicErrorCode.CRYPTO_BUFFER_EXCEEDED)


async def test_a_datagram_flood_keeps_the_newest(autojump_clock: MockClock) -> None:
    async with attack(FEW) as scene:
        frame = varint(QuicFrameType.DATAGRAM_WITH_LENGTH, 2)
        for start in range(0, 5_000, 50):
            data = (frame + number.to_bytes(2) for number in range(start, start + 50))
            scene.attacker.say(b"".join(data))
        await trio.sleep(ROUND_TRIP)
        assert len(scene.far._datagrams) == FEW.datagrams_queued
        assert await scene.far.receive_datagram() == (5_000 - FEW.datagrams_queued).to_bytes(2)
        assert scene.attacker.end is None


# addresses that are not proven

VICTIM = ("203.0.113.5", 5_000)
TIGHT = Limits(half_open_before_retry=1)


def initial(here: World, alpn: str = ALPN) -> bytes:
    """The first datagram of a client that never says another word."""
    policy = client_policy(here.server.trust, None)
    engine = client_engine(policy, alpn=alpn, server_name=None, limits=Limits())
    engine.connect(here.server.address, 0.0)
    return engine.datagrams_to_send(0.0)[0][0]


def sent_to(here: World, host: str) -> int:
    return sum(passage.size for passage in here.net.trace if passage.target[0] == host)


@pytest.mark.parametrize("alpn", [ALPN, "nobody/serves"])
async def test_a_forged_address_is_sent_three_times_what_it_sent(
    alpn: str, autojump_clock: MockClock
) -> None:
    """Also by lost packets sent again, by a time-out that closes, and by that close repeated."""
    async with world() as here:
        honest = await here.connect()
        data = initial(here, alpn)
        here.net.carry(data, VICTIM, here.server.address)
        size = len(data)
        await trio.sleep(0.1)
        assert 0 < sent_to(here, VICTIM[0]) <= 3 * size
        assert len(here.server.endpoint.connections) == 2
        # Crumbs to the same connection, from the victim too.
        crumb = data[:40]
        for number in range(600):
            source = VICTIM if number % 2 else ("198.51.100.9", 9)
            size += len(crumb) if source is VICTIM else 0
            here.net.carry(crumb, source, here.server.address)
            await trio.sleep(0.001 if number < 200 else 0.05)
            assert sent_to(here, VICTIM[0]) <= 3 * size
        await trio.sleep(60)
        assert sent_to(here, VICTIM[0]) <= 3 * size
        assert sent_to(here, "198.51.100.9") == 0
        assert honest[1].close_reason is None
        await exchange(*honest, b"unharmed")


async def test_a_close_to_an_address_that_is_not_proven_is_not_repeated_beyond_its_share(
    autojump_clock: MockClock,
) -> None:
    async with world() as here:
        data = initial(here, "nobody/serves")
        here.net.carry(data, VICTIM, here.server.address)
        await trio.sleep(0.1)
        (closing,) = here.server.endpoint.connections
        path = closing.engine._network_paths[0]
        path.bytes_sent = 3 * path.bytes_received
        before = sent_to(here, VICTIM[0])
        for _ in range(64):
            here.net.carry(data[:40], ("198.51.100.9", 9), here.server.address)
        await trio.sleep(0.1)
        assert sent_to(here, VICTIM[0]) == before
        for _ in range(64):  # one of them is the 128th, and repeats
            here.net.carry(data, VICTIM, here.server.address)
        await trio.sleep(0.1)
        assert before < sent_to(here, VICTIM[0]) <= before + 3 * 1200


async def test_a_first_close_to_an_address_that_is_not_proven_keeps_to_its_share(
    autojump_clock: MockClock,
) -> None:
    async with world() as here:
        here.net.carry(initial(here), VICTIM, here.server.address)
        await trio.sleep(0.1)
        (accepted,) = here.server.endpoint.connections
        path = accepted.engine._network_paths[0]
        path.bytes_sent = 3 * path.bytes_received
        before = sent_to(here, VICTIM[0])
        await trio.sleep(60)  # the handshake's time-out closes
        assert not here.server.endpoint.connections
        assert sent_to(here, VICTIM[0]) == before


async def test_a_forged_address_gets_less_than_it_sent_once_many_are_half_open(
    autojump_clock: MockClock,
) -> None:
    async with world(limits=TIGHT) as here:
        here.net.carry(initial(here), ("198.51.100.9", 9), here.server.address)
        await trio.sleep(0.1)
        size = 0
        for port in range(100):
            data = initial(here)
            size += len(data)
            here.net.carry(data, (VICTIM[0], port), here.server.address)
        await trio.sleep(20)
        assert 0 < sent_to(here, VICTIM[0]) < size / 4
        assert here.server.endpoint.counters["retry"] == 100
        await exchange(*await here.connect(), b"unharmed")


async def test_an_initial_replayed_makes_one_connection(autojump_clock: MockClock) -> None:
    async with world() as here:
        honest = await here.connect()
        data = initial(here)
        for number in range(100):
            here.net.carry(data, (VICTIM[0], 5_000 + number % 10), here.server.address)
        await trio.sleep(0.5)
        assert len(here.server.endpoint.connections) == 2
        assert half_open(here.server.endpoint) == 1
        # The first address alone is answered.
        assert {p.target for p in here.net.trace if p.target[0] == VICTIM[0]} == {VICTIM}
        assert sent_to(here, VICTIM[0]) < 10 * len(data)
        await exchange(*honest, b"unharmed")
        await trio.sleep(10)
        assert half_open(here.server.endpoint) == 0


async def test_an_initial_replayed_after_the_handshake_does_nothing(
    autojump_clock: MockClock,
) -> None:
    net = FakeNet()
    initials: list[bytes] = []

    def keep(data: bytes, _source: object, target: object) -> bool:
        if data[0] & 0xF0 == 0xC0 and target == here.server.address:
            initials.append(data)
        return True

    async with world(net=net) as here:
        net.filter = keep
        dialer, acceptor = await here.connect()
        await exchange(dialer, acceptor, b"established")
        await trio.sleep(1)
        before = acceptor.engine.packets_sent
        for data in initials * 50:
            net.carry(data, VICTIM, here.server.address)
        await trio.sleep(1)
        assert initials
        assert len(here.server.endpoint.connections) == 1
        assert sent_to(here, VICTIM[0]) == 0
        assert acceptor.engine.packets_sent == before
        await exchange(dialer, acceptor, b"unharmed")

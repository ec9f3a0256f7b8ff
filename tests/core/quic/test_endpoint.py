"""Strays, admission and handshakes of endpoints on a fake network under a virtual clock."""

from __future__ import annotations

import gc
import random  # noqa: TID251  seeded
import weakref
from collections.abc import AsyncGenerator, Iterator
from contextlib import AbstractContextManager, asynccontextmanager, contextmanager

import pytest
import trio
from aioquic.quic.configuration import QuicConfiguration
from aioquic.quic.connection import QuicConnection as StockConnection
from aioquic.quic.packet import QuicErrorCode
from aioquic.quic.rangeset import RangeSet
from aioquic.tls import Epoch
from trio.testing import MockClock

from alknet.core.contracts import CloseCode, ConnectionEnded
from alknet.core.datagram import format_address
from alknet.core.limits import Limits
from alknet.core.quic.engine import client_engine
from alknet.core.quic.handshake import ClientPolicy
from alknet.core.quic.policy import client_policy
from alknet.errors import Denied
from alknet.testing.contract import cancel_at_every_checkpoint
from alknet.testing.network import FakeUdpSocket
from tests.core.quic.fakenet import FakeNet
from tests.core.quic.pairs import ALPN, Server, quic_client, quic_server
from tests.core.quic.sansio import Forger
from tests.core.quic.worlds import exchange, half_open, world


def first_flight(server: Server, *, bytes_of_hello: int | None = None) -> bytes:
    """The datagram with which a client begins, with the whole ClientHello or its beginning."""
    policy = client_policy(server.trust, None)
    engine = client_engine(policy, alpn=ALPN, server_name=None, limits=Limits())
    engine.connect(server.address, 0.0)
    if bytes_of_hello is not None:
        sender = engine._crypto_streams[Epoch.INITIAL].sender
        sender._pending = RangeSet([range(bytes_of_hello)])
    return engine.datagrams_to_send(0.0)[0][0]


# strays


STRAYS = {
    "nothing": (b"", "empty"),
    "one byte": (b"\xff", "malformed"),
    "short header": (b"\x40" + bytes(40), "stateless_reset_sent"),
    "short header, too short to answer": (b"\x40" + bytes(20), "unknown_connection_id"),
    "no header of ours": (bytes(60), "unknown_connection_id"),
    "short header, cut": (b"\x40ab", "unknown_connection_id"),
    "disco of old iroh": (b"TS\xf0\x9f\x92\xac" + bytes(60), "stateless_reset_sent"),
    "version negotiation": (
        b"\x80\0\0\0\0\x08" + bytes(8) + b"\0" + b"\0\0\0\x01" * 4,
        "malformed",
    ),
    "version negotiation, long": (b"\xc0\0\0\0\0\x08" + bytes(9) + b"\0\0\0\x01" * 300, "stray"),
    "small initial": (b"\xc0\0\0\0\x01\x08" + bytes(9) + b"\0\x14" + bytes(20), "stray"),
    "initial, short id": (b"\xc0\0\0\0\x01\x01" + bytes(2) + b"\0\x44\x00" + bytes(1300), "stray"),
    "handshake": (b"\xe0\0\0\0\x01\x08" + bytes(9) + b"\x14" + bytes(1300), "stray"),
    "retry": (b"\xf0\0\0\0\x01\x08" + bytes(9) + bytes(40), "stray"),
    "garbage initial": (
        b"\xc0\0\0\0\x01\x08" + bytes(9) + b"\0\x44\xb0" + bytes(1200),
        "undecryptable",
    ),
    "unknown version, short": (b"\xc0\x1a\x2a\x3a\x4a\x08" + bytes(30), "malformed"),
}


@pytest.mark.parametrize("kind", STRAYS)
async def test_strays_are_counted_and_leave_nothing(kind: str, autojump_clock: MockClock) -> None:
    data, counter = STRAYS[kind]
    async with world() as here:
        stranger = here.net.host("198.51.100.1")
        stranger.send(data, here.server.address)
        stranger.send(data, here.client.local_address)
        await trio.sleep(0.1)
        counters = here.server.endpoint.counters
        assert sum(counters.values()) == 1
        if counter in counters:
            assert counters[counter] == 1
        else:  # the layout decides which check is first to refuse it
            assert counters.keys() <= {"stray", "malformed"}
        assert sum(here.client.counters.values()) == 1
        assert here.is_empty()
        assert len(stranger._under_way) == counters["stateless_reset_sent"]  # the only answer
        await here.connect()


@pytest.mark.parametrize("seed", range(5))
async def test_random_datagrams_never_raise(seed: int, autojump_clock: MockClock) -> None:
    rng = random.Random(seed)
    async with world() as here:
        dialer, acceptor = await here.connect()
        stranger = here.net.host("198.51.100.1")
        cids = [*here.server.endpoint._table.routes]
        for _ in range(200):
            data = bytearray(rng.randbytes(rng.choice((1, 6, 20, 50, 1200, 1300))))
            if len(data) > 8 and rng.random() < 0.5:
                data[0] |= 0xC0
                data[1:5] = rng.choice((b"\0\0\0\x01", b"\0\0\0\0", b"\x6b\x33\x43\xcf"))
                data[5] = rng.choice((0, 8, 8, 20))
            if len(data) > 20 and rng.random() < 0.3:  # as if on the path
                data[0] = 0x40
                data[1:9] = rng.choice(cids)[:8]
            stranger.send(bytes(data), here.server.address)
        await trio.sleep(0.1)
        assert here.server.endpoint.counters["engine_error"] == 0
        await exchange(dialer, acceptor, b"still here")
        await here.connect()


async def test_an_engine_that_raises_ends_its_connection_only(
    caplog: pytest.LogCaptureFixture, autojump_clock: MockClock
) -> None:
    async with world() as here:
        broken, other = await here.connect(), await here.connect()

        def fail(*_: object) -> None:
            raise AssertionError("planted")

        broken[1].engine.receive_datagram = fail  # type: ignore[assignment,method-assign]
        await (await broken[0].open_stream()).send_all(b"x")
        with pytest.raises(ConnectionEnded) as at_peer:
            await broken[0].accept_stream()
        assert at_peer.value.close.code == CloseCode.INTERNAL
        with pytest.raises(ConnectionEnded):
            await broken[1].accept_stream()
        assert here.server.endpoint.counters["engine_error"] == 1
        assert "planted" in caplog.text
        await exchange(*other, b"unharmed")


@pytest.mark.parametrize("method", ["datagrams_to_send", "handle_timer"])
async def test_an_engine_that_cannot_even_close_is_forgotten(
    method: str, autojump_clock: MockClock
) -> None:
    async with world() as here:
        broken, other = await here.connect(), await here.connect()

        def fail(*_: object) -> None:
            raise AssertionError("planted")

        setattr(broken[1].engine, method, fail)
        await (await broken[0].open_stream()).send_all(b"x")
        reason = await broken[1].wait_closed()
        assert reason.is_transport
        assert broken[1] not in here.server.endpoint.connections
        await exchange(*other, b"unharmed")


async def test_connections_that_have_ended_are_freed_without_a_collection(
    autojump_clock: MockClock,
) -> None:
    """Collections are rare in a node, and must not be what frees 30 KiB for each."""
    async with world() as here:
        gc.collect()
        gc.disable()
        try:
            gone = []
            for ending in ("close", "abandon", "silence"):
                dialer, acceptor = await here.connect()
                await exchange(dialer, acceptor, b"something" * 1_000)
                gone += [weakref.ref(end.engine) for end in (dialer, acceptor)]
                if ending == "silence":
                    here.net.filter = lambda *_: False
                elif ending == "close":
                    dialer.close()
                else:
                    acceptor.close(7, "enough")
                del dialer, acceptor
                await trio.sleep(60)
            assert here.is_empty()
            assert [ref() for ref in gone] == [None] * 6
        finally:
            gc.enable()


# before there is a connection


@asynccontextmanager
async def stock_client(
    socket: FakeUdpSocket, server: Server, configuration: QuicConfiguration
) -> AsyncGenerator[StockConnection]:
    """Drive an unchanged aioquic over a fake socket."""
    client = StockConnection(configuration=configuration)
    client.connect(server.address, trio.current_time())

    async def run() -> None:
        while True:
            for data, address in client.datagrams_to_send(trio.current_time()):
                socket.send(data, address)
            with trio.move_on_at(client.get_timer() or float("inf")):
                for data, address in await socket.receive():
                    client.receive_datagram(data, address, trio.current_time())
            timer = client.get_timer()
            if timer is not None and timer <= trio.current_time():
                client.handle_timer(trio.current_time())

    async with trio.open_nursery() as nursery:
        nursery.start_soon(run)
        yield client
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize("version", [0x1A2A3A4A, 0xFF00001D])
async def test_client_of_an_unknown_version_is_told_ours(
    version: int, autojump_clock: MockClock
) -> None:
    async with world() as here:
        configuration = QuicConfiguration(alpn_protocols=[ALPN], verify_mode=0)
        configuration.supported_versions = [version, 0x00000001]
        configuration.original_version = version
        async with stock_client(here.net.host(), here.server, configuration) as client:
            connection = await here.server.accepted.receive()
            assert connection.alpn == ALPN
            assert client._version == 1
        assert here.server.endpoint.counters["version_negotiation"] == 1


async def test_unknown_version_with_an_unknown_layout_is_told_ours(
    autojump_clock: MockClock,
) -> None:
    async with world() as here:
        stranger = here.net.host("198.51.100.1")
        cids = b"\x15" + bytes(21) + b"\x02ab"  # longer than version 1 allows
        stranger.send(b"\x80\x1a\x2a\x3a\x4a" + cids + bytes(1200), here.server.address)
        ((answer, _),) = await stranger.receive()
        assert answer[1:5] == bytes(4)
        assert answer[5:8] == b"\x02ab"
        assert b"\0\0\0\x01" in answer


async def test_retry_above_the_half_open_limit(autojump_clock: MockClock) -> None:
    async with world(limits=Limits(half_open_before_retry=1)) as here:
        stranger = here.net.host("198.51.100.1")
        stranger.send(first_flight(here.server), here.server.address)
        await trio.sleep(0.02)
        assert half_open(here.server.endpoint) == 1
        dialer, acceptor = await here.connect()
        assert here.server.endpoint.counters["retry"] == 1
        assert acceptor.peer_key == here.key.node_id
        await exchange(dialer, acceptor, b"hello")
        forged = first_flight(here.server)
        stranger.send(forged, here.server.address)
        await trio.sleep(0.1)
        assert half_open(here.server.endpoint) == 1  # a Retry leaves no state
        assert len([1 for data, _ in await stranger.receive() if data[0] & 0xF0 == 0xF0]) == 1


async def test_refused_admission_is_told_at_once(autojump_clock: MockClock) -> None:
    seen = []

    def admit(address: str) -> AbstractContextManager[None]:
        seen.append(address)
        raise Denied("too many from this address")

    async with world(admit=admit) as here:
        began = trio.current_time()
        with pytest.raises(ConnectionEnded) as refused:
            await here.connect()
        assert refused.value.close.code == QuicErrorCode.CONNECTION_REFUSED
        assert refused.value.close.by_peer
        assert trio.current_time() - began < 0.1
        assert seen == [format_address(here.client.local_address)]
        assert not here.server.endpoint.connections


async def test_new_connections_are_refused_at_once_while_old_ones_go_on(
    autojump_clock: MockClock,
) -> None:
    async with world() as here:
        dialer, acceptor = await here.connect()
        here.server.endpoint.stop_accepting()
        began = trio.current_time()
        with pytest.raises(ConnectionEnded) as refused:
            await here.connect()
        assert refused.value.close.code == QuicErrorCode.CONNECTION_REFUSED
        assert trio.current_time() - began < 0.1
        await exchange(dialer, acceptor, b"goes on")


@pytest.mark.parametrize("bytes_of_hello", [None, 50])
async def test_silent_handshake_frees_its_slot(
    bytes_of_hello: int | None, autojump_clock: MockClock
) -> None:
    admitted = 0

    @contextmanager
    def admit(_: str) -> Iterator[None]:
        nonlocal admitted
        admitted += 1
        try:
            yield
        finally:
            admitted -= 1

    async with world(admit=admit) as here:
        stranger = here.net.host("198.51.100.1")
        stranger.send(first_flight(here.server, bytes_of_hello=bytes_of_hello), here.server.address)
        await trio.sleep(4.9)
        assert (half_open(here.server.endpoint), admitted) == (1, 1)
        await trio.sleep(0.2)
        assert (half_open(here.server.endpoint), admitted) == (0, 0)
        await trio.sleep(5)
        assert here.is_empty()


async def test_nobody_answers(autojump_clock: MockClock) -> None:
    async with world() as here:
        here.net.filter = lambda *_: False
        began = trio.current_time()
        with pytest.raises(ConnectionEnded, match="no complete handshake within 5 s"):
            await here.connect()
        assert trio.current_time() - began == pytest.approx(5, abs=0.1)
        await trio.sleep(5)
        assert here.is_empty()


async def test_a_refusal_after_the_clients_own_finish_surfaces_in_connect(
    forged: Forger, autojump_clock: MockClock
) -> None:
    """TLS gives the client all that it needs before the server has judged its key."""
    async with world() as here:
        policy = ClientPolicy(here.server.trust, forged)  # type: ignore[arg-type]
        with pytest.raises(ConnectionEnded) as refused:
            await here.client.connect(here.server.address, alpn=ALPN, policy=policy)
        assert refused.value.close.code == 0x100 + 51  # decrypt_error
        assert refused.value.close.by_peer
        with pytest.raises(trio.WouldBlock):
            here.server.accepted.receive_nowait()


async def test_dial_waits_for_the_confirmation(autojump_clock: MockClock) -> None:
    async with world() as here:
        here.net.filter = lambda data, source, _: source[0] == "192.0.2.1" or data[0] & 0x80 != 0
        with trio.move_on_after(1) as scope:  # all but HANDSHAKE_DONE arrives
            await here.connect()
        assert scope.cancelled_caught
        assert here.server.accepted.receive_nowait().peer_key == here.key.node_id


async def test_cancelled_dials_leave_nothing(autojump_clock: MockClock) -> None:
    async with world() as here:

        async def dial() -> None:
            dialer, acceptor = await here.connect()
            dialer.close()
            acceptor.close()

        async def nothing_is_left() -> None:
            await trio.sleep(10)
            while True:
                try:  # the server may have accepted what the client no longer wants
                    reason = here.server.accepted.receive_nowait().close_reason
                except trio.WouldBlock:
                    break
                assert reason is not None
            assert here.is_empty()

        assert await cancel_at_every_checkpoint(dial, nothing_is_left) >= 2


async def test_dialling_from_a_closed_endpoint_raises(autojump_clock: MockClock) -> None:
    net = FakeNet()
    async with quic_server(socket=net.host("192.0.2.9")) as server:
        async with quic_client(socket=net.host()) as client:
            pass
        with pytest.raises(trio.ClosedResourceError):
            await client.connect(
                server.address, alpn=ALPN, policy=client_policy(server.trust, None)
            )

"""Streams at their limits, and the end of connections: who is told what."""

from __future__ import annotations

import pytest
import trio
from trio.testing import MockClock

from alknet.core.contracts import CloseCode, ConnectionEnded, Stream, StreamReset
from alknet.core.datagram import Address
from alknet.core.limits import Limits
from alknet.core.quic.endpoint import QuicEndpoint
from alknet.core.quic.policy import client_policy
from alknet.errors import LocalError
from tests.core.quic.fakenet import FakeNet
from tests.core.quic.pairs import ALPN, quic_client, quic_connection_pair, quic_server
from tests.core.quic.worlds import read_exactly, world

# streams that nobody accepted


@pytest.mark.parametrize("kind", ["reset", "finished"])
async def test_streams_that_nobody_accepts_are_bounded(
    kind: str, autojump_clock: MockClock
) -> None:
    limits = Limits(streams_per_connection=8)
    async with world(limits=limits) as here:
        dialer, acceptor = await here.connect()

        async def flood() -> None:
            while True:
                stream = await dialer.open_stream(unidirectional=True)
                if kind == "reset":
                    stream.reset(1)
                await stream.aclose()
                await trio.sleep(0.05)

        with trio.move_on_after(20):
            await flood()
        assert len(acceptor._arrivals[True]) == 8
        assert len(acceptor.engine._streams) <= 8
        for _ in range(8):
            stream = await acceptor.accept_uni_stream()
            if kind == "reset":
                with pytest.raises(StreamReset):
                    await stream.receive_some()
            else:
                assert await stream.receive_some() == b""
        with trio.move_on_after(0.5):
            await flood()
        assert len(acceptor._arrivals[True]) > 1  # room again


async def test_stream_read_to_its_known_length_is_forgotten_without_reading_the_end(
    autojump_clock: MockClock,
) -> None:
    async with world() as here:
        dialer, acceptor = await here.connect()
        stream = await dialer.open_stream()
        await stream.send_all(b"12345")
        theirs = await acceptor.accept_stream()
        assert await read_exactly(theirs, 5) == b"12345"
        await theirs.send_eof()
        await trio.sleep(0.1)
        await stream.send_eof()
        await trio.sleep(0.1)
        assert not acceptor._streams
        assert await theirs.receive_some() == b""
        assert await stream.receive_some() == b""
        assert not dialer._streams


# datagrams that nobody takes


@pytest.mark.parametrize("size", [10, 1100])
async def test_datagrams_that_nobody_takes_are_bounded(
    size: int, autojump_clock: MockClock
) -> None:
    async with world(limits=Limits(datagrams_queued=8)) as here:
        dialer, acceptor = await here.connect()
        for number in range(40):
            dialer.send_datagram(bytes([number]) * size)
            await trio.sleep(0.05)
        got = [await acceptor.receive_datagram() for _ in range(8)]
        assert got == [bytes([number]) * size for number in range(32, 40)]
        assert acceptor._datagram_bytes == 0


async def test_huge_datagrams_push_out_older_ones(autojump_clock: MockClock) -> None:
    async with world(limits=Limits(datagrams_queued=8)) as here:
        _, acceptor = await here.connect()
        for number in range(8):
            acceptor._on_datagram(bytes([number]) * 5_000)
        assert [data[0] for data in acceptor._datagrams] == [6, 7]
        acceptor._on_datagram(bytes(60_000))  # longer than the whole queue may be
        assert await acceptor.receive_datagram() == bytes(60_000)


# the end


@pytest.mark.parametrize("closer", [0, 1])
async def test_close_code_and_reason_reach_the_peer(closer: int, autojump_clock: MockClock) -> None:
    async with world() as here:
        ends = await here.connect()
        stream = await ends[1 - closer].open_stream()
        ends[closer].close(77, "grüße")
        reason = await ends[1 - closer].wait_closed()
        assert (reason.code, reason.reason, reason.by_peer) == (77, "grüße", True)
        assert not reason.is_transport
        with pytest.raises(ConnectionEnded):
            await stream.send_all(b"x")
        with pytest.raises(trio.ClosedResourceError):
            await ends[closer].open_stream()
        await trio.sleep(3)
        assert here.is_empty()


async def test_close_codes_are_checked(autojump_clock: MockClock) -> None:
    async with world() as here:
        dialer, _ = await here.connect()
        stream = await dialer.open_stream()
        for code in (-1, 2**62):
            with pytest.raises(LocalError):
                dialer.close(code)
            with pytest.raises(LocalError):
                stream.reset(code)
            with pytest.raises(LocalError):
                stream.stop_sending(code)
        stream.reset(2**62 - 1)
        dialer.close(2**62 - 1)


async def test_lost_close_is_repeated_while_the_peer_goes_on_sending(
    autojump_clock: MockClock,
) -> None:
    async with world() as here:
        dialer, acceptor = await here.connect()
        here.net.filter = lambda _, source, __: source != here.server.address
        acceptor.close(9, "go away")
        await trio.sleep(0.02)
        here.net.filter = lambda *_: True
        assert dialer.close_reason is None
        dialer.send_datagram(b"anybody?")
        reason = await dialer.wait_closed()
        assert (reason.code, reason.reason) == (9, "go away")


async def test_repeated_closes_are_few(autojump_clock: MockClock) -> None:
    async with world() as here:
        dialer, acceptor = await here.connect()
        here.net.filter = lambda _, source, __: source != here.server.address
        acceptor.close(9, "go away")
        await trio.sleep(0.001)
        sent = 0

        def count(_: bytes, source: Address, __: Address) -> bool:
            nonlocal sent
            sent += source == here.server.address
            return source != here.server.address

        here.net.filter = count
        for _ in range(64):
            dialer.send_datagram(b"x" * 1000)
        await trio.sleep(0.1)
        assert 1 <= sent <= 8


async def test_cancelled_endpoint_tells_its_peers(autojump_clock: MockClock) -> None:
    net = FakeNet()
    async with quic_client(socket=net.host()) as client:
        async with quic_server(socket=net.host("192.0.2.9")) as server:
            policy = client_policy(server.trust, None)
            dialer = await client.connect(server.address, alpn=ALPN, policy=policy)
            acceptor = await server.accepted.receive()
        reason = await dialer.wait_closed()
        assert (reason.code, reason.by_peer) == (CloseCode.SHUTDOWN, True)
        assert (await acceptor.wait_closed()).code == CloseCode.SHUTDOWN
        with pytest.raises(trio.ClosedResourceError):
            await acceptor.accept_stream()
        assert not server.endpoint._table.routes


async def test_aclose_waits_until_sent_bytes_arrived(autojump_clock: MockClock) -> None:
    net = FakeNet(seed=5)
    async with world(net=net) as here:
        dialer, acceptor = await here.connect()
        net.loss = 0.2
        stream = await dialer.open_stream()
        await stream.send_all(bytes(100_000))
        await stream.send_eof()
        got = 0

        async def read() -> None:
            nonlocal got
            theirs = await acceptor.accept_stream()
            while part := await theirs.receive_some():
                got += len(part)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(read)
            await dialer.aclose()
        assert got == 100_000


async def test_aclose_gives_up_on_a_peer_that_is_gone(autojump_clock: MockClock) -> None:
    async with world() as here:
        dialer, _ = await here.connect()
        here.net.filter = lambda *_: False
        stream = await dialer.open_stream()
        await stream.send_all(b"into the void")
        began = trio.current_time()
        await dialer.aclose()
        assert trio.current_time() - began == pytest.approx(3, abs=0.1)


async def test_socket_closed_by_another_hand_ends_the_endpoint(autojump_clock: MockClock) -> None:
    net = FakeNet()
    socket = net.host()
    endpoint = QuicEndpoint(socket, limits=Limits())
    with pytest.RaisesGroup(trio.ClosedResourceError, flatten_subgroups=True):
        async with trio.open_nursery() as nursery:
            await nursery.start(endpoint.run)
            socket.close()
    assert endpoint.counters["engine_error"] == 0


async def test_all_streams_together_hold_no_more_than_the_connection_may() -> None:
    """64 streams whose peer reads nothing: senders wait at the connection's bound, and go on."""
    kib = 1024
    limits = Limits(
        stream_send_buffer_bytes=16 * kib,
        buffered_bytes_per_connection=64 * kib,
        stream_receive_window_bytes=8 * kib,
        connection_receive_window_bytes=8 * kib,
        streams_per_connection=64,
    )
    sent = 0
    async with quic_connection_pair(limits=limits) as (dialer, acceptor):

        async def send(stream: Stream) -> None:
            nonlocal sent
            await stream.send_all(bytes(16 * kib))
            await stream.send_eof()
            sent += 1

        async def read(stream: Stream) -> None:
            while await stream.receive_some():
                pass

        async with trio.open_nursery() as nursery:
            for _ in range(64):
                nursery.start_soon(send, await dialer.open_stream())
            with trio.move_on_after(0.1):
                await trio.sleep_forever()
            assert dialer.engine.unacknowledged_in_all() <= 64 * kib
            assert sent < 8
            for _ in range(64):
                nursery.start_soon(read, await acceptor.accept_stream())
    assert sent == 64

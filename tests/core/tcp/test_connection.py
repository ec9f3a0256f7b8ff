"""What connections of one stream promise beyond the contract suite: how the end is noticed."""

from __future__ import annotations

import os
import signal
import socket
import struct
import subprocess
import sys
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

import pytest
import trio
from trio.testing import memory_stream_pair, wait_all_tasks_blocked

from alknet.core.contracts import CARRIER_UNIX, CloseReason, ConnectionEnded, Stream
from alknet.core.tcp.connection import StreamConnection
from alknet.core.tcp.handshake import accept_tls, dial_tls
from alknet.core.tcp.only_stream import UNATTENDED_S
from alknet.core.tcp.tls import TlsStream
from alknet.core.tls.trust import PinnedKey
from alknet.testing.contract import cancel_at_every_checkpoint
from tests.core.tcp.rig import ALPN, CLIENT, SERVER, TcpServer, shake_hands, tcp_server

CHILD = """
import sys, trio
from tests.core.tcp.rig import *

async def main():
    stream = await connect_tcp("127.0.0.1", int(sys.argv[1]), Limits())
    connection = await dial_tls(
        stream, alpn=ALPN, credentials=CLIENT, trust=PinnedKey(SERVER.node_id)
    )
    await (await connection.open_stream()).send_all(b"ready")
    await trio.sleep_forever()

trio.run(main)
"""


async def dial(server: TcpServer) -> tuple[StreamConnection, trio.SocketStream, Stream]:
    stream = await server.connect()
    connection = await dial_tls(
        stream, alpn=ALPN, credentials=CLIENT, trust=PinnedKey(SERVER.node_id)
    )
    return connection, stream, await connection.open_stream()


@asynccontextmanager
async def accepting() -> AsyncGenerator[
    tuple[TcpServer, trio.MemoryReceiveChannel[tuple[StreamConnection, Stream]]]
]:
    """A server whose connections come out of a channel, after their first byte."""
    send, receive = trio.open_memory_channel[tuple[StreamConnection, Stream]](10)

    async def hand_over(connection: StreamConnection) -> None:
        stream = await connection.accept_stream()
        assert await stream.receive_some()
        await send.send((connection, stream))
        await connection.wait_closed()

    async with tcp_server(handle=hand_over) as server:
        yield server, receive


async def test_a_reset_is_noticed_at_once_though_nobody_reads() -> None:
    async with accepting() as (server, arrivals):
        _, raw, stream = await dial(server)
        await stream.send_all(b"!")
        connection, far = await arrivals.receive()
        # Close with RST.
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        await trio.aclose_forcefully(raw)
        reason = await connection.wait_closed()
        assert reason.is_transport
        assert reason.by_peer
        with pytest.raises(ConnectionEnded):
            await far.receive_some()
        with pytest.raises(ConnectionEnded):
            await far.send_all(b"x")


@pytest.mark.slow
async def test_a_killed_peer_is_noticed_at_once() -> None:
    async with accepting() as (server, arrivals):
        child = subprocess.Popen([sys.executable, "-c", CHILD, str(server.port)])
        try:
            connection, far = await arrivals.receive()
            os.kill(child.pid, signal.SIGKILL)
            with trio.fail_after(20):  # the idle time-out, which would notice it too, is 30 s
                assert (await connection.wait_closed()).is_transport
                with pytest.raises(ConnectionEnded, match=r"without close_notify|reset"):
                    await far.receive_some()
        finally:
            child.kill()
            child.wait()


async def test_a_truncated_stream_is_no_clean_end() -> None:
    async with accepting() as (server, arrivals):
        _, raw, stream = await dial(server)
        await stream.send_all(b"!")
        connection, far = await arrivals.receive()
        await raw.send_eof()
        reason = await connection.wait_closed()
        assert reason == CloseReason(0, "the link ended without close_notify", True, True)
        with pytest.raises(ConnectionEnded):
            await far.receive_some()
        await trio.aclose_forcefully(raw)


async def test_a_stream_reset_here_is_broken_for_the_peer() -> None:
    async with accepting() as (server, arrivals):
        near, _, stream = await dial(server)
        await stream.send_all(b"!")
        connection, far = await arrivals.receive()
        stream.reset(7)
        assert (await near.wait_closed()).code == 7
        with pytest.raises(ConnectionEnded) as caught:
            await far.receive_some()
        assert caught.value.close.is_transport
        with pytest.raises(trio.ClosedResourceError):
            await stream.send_all(b"x")
        assert (await connection.wait_closed()).is_transport


async def test_a_refusal_after_the_handshake_reaches_the_reader_with_its_alert() -> None:
    # What a TLS 1.3 server does that judges the client's key after our Finished.
    client, server = (await shake_hands()).connections
    stream = await client.open_stream()
    tls = server._stream._transport
    assert isinstance(tls, TlsStream)
    # A record that cannot be decrypted makes OpenSSL answer with an alert.
    tls._connection.bio_write(b"\x17\x03\x03\x00\x20" + b"x" * 32)
    with pytest.raises(ConnectionEnded):
        await (await server.accept_stream()).receive_some()
    await tls._flush()
    with pytest.raises(ConnectionEnded) as caught:
        await stream.receive_some()
    assert caught.value.close.code == 20
    assert caught.value.close.by_peer
    assert "bad_record_mac" in caught.value.close.reason
    await client.wait_closed()
    await server.wait_closed()


async def test_a_half_closed_peer_that_goes_away_ends_the_connection() -> None:
    async with accepting() as (server, arrivals):
        near, _, stream = await dial(server)
        await stream.send_all(b"!")
        connection, far = await arrivals.receive()
        await stream.send_eof()
        assert await far.receive_some() == b""
        await wait_all_tasks_blocked()
        assert connection.close_reason is None
        await near.aclose()
        assert await connection.wait_closed() == CloseReason(0, "", by_peer=True)


async def test_a_driver_cancelled_in_its_goodbye_is_relieved_by_the_next() -> None:
    async with accepting() as (server, arrivals):
        near, _, stream = await dial(server)
        await stream.send_all(b"!")
        _, far = await arrivals.receive()
        await stream.aclose()

        async def drive() -> None:
            await near.wait_closed()

        assert await cancel_at_every_checkpoint(drive) > 1
        assert await far.receive_some() == b""


async def test_read_ahead_is_bounded_and_lost_to_nobody() -> None:
    async with accepting() as (server, arrivals):
        near, _, stream = await dial(server)
        await stream.send_all(b"!")
        connection, far = await arrivals.receive()

        async def send() -> None:
            await stream.send_all(b"x" * 400_000)
            await near.aclose()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(send)
            await wait_all_tasks_blocked(2 * UNATTENDED_S)
            assert 0 < len(connection._stream._ahead) <= 65_536
            received = 0
            while data := await far.receive_some(10_000):
                received += len(data)
        assert received == 400_000


async def test_input_is_dropped_after_stop_sending() -> None:
    async with accepting() as (server, arrivals):
        near, _, stream = await dial(server)
        await stream.send_all(b"!")
        connection, far = await arrivals.receive()
        far.stop_sending(1)
        # Far more than all buffers on the way hold: it only ends because it is dropped.
        await stream.send_all(bytes(20 << 20))
        with pytest.raises(trio.ClosedResourceError):
            await far.receive_some()
        await far.send_all(b"the other direction")
        assert await stream.receive_some(3) == b"the"
        await near.aclose()
        assert (await connection.wait_closed()).by_peer


async def test_the_plain_carrier_notices_a_hang_up_after_a_half_close() -> None:
    one, other = (
        trio.SocketStream(trio.socket.from_stdlib_socket(sock)) for sock in socket.socketpair()
    )
    connection = StreamConnection(
        one, alpn=ALPN, carrier=CARRIER_UNIX, is_dialer=False, peer_key=None, remote_address="unix"
    )
    with trio.fail_after(60):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(connection.wait_closed)
            stream = await connection.accept_stream()
            await other.send_eof()
            assert await stream.receive_some() == b""
            await stream.send_all(b"answer")
            assert await other.receive_some() == b"answer"
            assert connection.close_reason is None
            await other.aclose()
        assert connection.close_reason == CloseReason(0, "", by_peer=True)


async def test_it_runs_over_a_stream_of_another_connection() -> None:
    """What a relay does: TLS end to end inside a stream that someone else carries."""
    async with accepting() as (server, arrivals):
        outer, _, near_outer = await dial(server)
        await near_outer.send_all(b"!")
        _, far_outer = await arrivals.receive()
        made: dict[str, StreamConnection] = {}

        async def accept() -> None:
            made["inner"] = await accept_tls(far_outer, CLIENT, ["inner/1"], remote_address="relay")

        async with trio.open_nursery() as nursery:
            nursery.start_soon(accept)
            inner = await dial_tls(
                near_outer, alpn="inner/1", credentials=SERVER, trust=PinnedKey(CLIENT.node_id)
            )
        assert made["inner"].peer_key == SERVER.node_id
        assert made["inner"].remote_address == "relay"
        stream = await inner.open_stream()
        await stream.send_all(b"inside")
        assert await (await made["inner"].accept_stream()).receive_some() == b"inside"
        await inner.aclose()
        await made["inner"].aclose()
        await outer.aclose()


async def test_in_memory_a_vanished_peer_is_noticed_too() -> None:
    near, far = memory_stream_pair()
    connection = StreamConnection(
        near, alpn=ALPN, carrier=CARRIER_UNIX, is_dialer=True, peer_key=None, remote_address="test"
    )
    stream = await connection.open_stream()
    await trio.aclose_forcefully(far)
    with pytest.raises(ConnectionEnded):
        await stream.send_all(b"x")
    assert (await connection.wait_closed()).is_transport

"""What stock iroh and we do together; `test_iroh` runs each scenario in a process of its own."""

from __future__ import annotations

import json
import sys
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager

import pytest
import trio

from alknet.call.proto import encode_frame
from alknet.core.address import Address
from alknet.core.contracts import Connection, ConnectionEnded, Stream, StreamReset
from alknet.core.identity import NodeId
from alknet.core.limits import Limits
from alknet.core.quic.connection import QuicConnection
from alknet.core.quic.endpoint import QuicEndpoint
from alknet.core.quic.policy import client_policy
from alknet.core.tls.trust import PinnedKey
from alknet.testing.nodes import open_node
from tests.core.quic.pairs import ALPN, Server, new_credentials, quic_client, quic_server
from tests.interop.iroh_driver import IrohError, IrohPeer, iroh_peer, raise_loopback

MIB = 1024 * 1024


# iroh dials us


@asynccontextmanager
async def iroh_connected() -> AsyncGenerator[tuple[IrohPeer, QuicConnection]]:
    async with quic_server() as server, iroh_peer(ALPN) as peer:
        said = await peer.ask("connect", **_target(server), alpn=ALPN)
        connection = await server.accepted.receive()
        assert said["remote_id"] == bytes(server.credentials.node_id).hex()
        assert said["max_datagram"] > 1000
        assert connection.peer_key == NodeId(bytes.fromhex(peer.id))
        yield peer, connection


def _target(server: Server) -> dict[str, str]:
    host, port = server.address
    return {"id": bytes(server.credentials.node_id).hex(), "address": f"{host}:{port}"}


async def echo(connection: Connection) -> None:
    """Send back what comes, on every stream, until the connection ends."""
    async with trio.open_nursery() as nursery:
        try:
            while True:
                nursery.start_soon(echo_stream, await connection.accept_stream())
        except (ConnectionEnded, trio.ClosedResourceError):
            return


async def echo_stream(stream: Stream) -> None:
    async with stream:
        while data := await stream.receive_some():
            await stream.send_all(data)
        await stream.send_eof()


async def _read_to_end(stream: Stream) -> bytes:
    data = bytearray()
    while part := await stream.receive_some():
        data += part
    return bytes(data)


async def iroh_opens_streams() -> None:
    async with iroh_connected() as (peer, connection), trio.open_nursery() as nursery:
        nursery.start_soon(echo, connection)
        assert await peer.exchange([b"hello"]) == [b"hello"]
        assert await peer.exchange([b""]) == [b""]
        await peer.ask("close", code=0, reason="")


async def iroh_opens_200_streams_at_once() -> None:
    async with iroh_connected() as (peer, connection), trio.open_nursery() as nursery:
        nursery.start_soon(echo, connection)
        messages = [bytes([number % 256]) * (number * 10) for number in range(200)]
        for _ in range(3):
            assert await peer.exchange(messages) == messages
        assert not connection._streams
        await peer.ask("close", code=0, reason="")


async def iroh_sends_more_than_all_windows() -> None:
    async with iroh_connected() as (peer, connection), trio.open_nursery() as nursery:
        nursery.start_soon(echo, connection)
        messages = [bytes([number]) * (3 * MIB) for number in range(4)]
        assert await peer.exchange(messages) == messages
        await peer.ask("close", code=0, reason="")


async def iroh_sends_datagrams() -> None:
    async with iroh_connected() as (peer, connection):

        async def echo_one() -> None:
            connection.send_datagram(await connection.receive_datagram())

        longest = await peer.ask("longest_datagram")
        for size in (0, 1, 1000, min(longest, connection.max_datagram_size)):
            data = b"x" * size
            async with trio.open_nursery() as nursery:
                nursery.start_soon(echo_one)
                assert await peer.ask("exchange_datagram", data=data.hex()) == data.hex()


async def iroh_uses_unidirectional_streams() -> None:
    async with iroh_connected() as (peer, connection):
        await peer.ask("send_uni", data=b"one way".hex())
        stream = await connection.accept_uni_stream()
        assert await stream.receive_some() == b"one way"
        back = await connection.open_stream(unidirectional=True)
        await back.send_all(b"the other")
        await back.send_eof()
        assert await peer.ask("accept_uni") == b"the other".hex()


async def iroh_resets_and_is_reset() -> None:
    async with iroh_connected() as (peer, connection):
        await peer.ask("open_and_reset", code=17)
        stream = await connection.accept_stream()
        with pytest.raises(StreamReset) as reset:
            await _read_to_end(stream)
        assert reset.value.code == 17
        await stream.aclose()

        async def reset_next() -> None:
            (await connection.accept_stream()).reset(23)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(reset_next)
            assert await peer.ask("open_and_read_reset", data="00") == 23


async def keys_are_updated_in_mid_transfer() -> None:
    async with iroh_connected() as (peer, connection), trio.open_nursery() as nursery:
        nursery.start_soon(echo, connection)

        async def update() -> None:
            for _ in range(5):
                await trio.sleep(0.05)
                while not connection.engine.update_keys():  # iroh checks that it was time
                    await trio.sleep(0.01)

        nursery.start_soon(update)
        messages = [bytes([number]) * MIB for number in range(4)]
        assert await peer.exchange(messages) == messages
        await trio.sleep(0.3)
        assert await peer.exchange(messages) == messages
        await peer.ask("close", code=0, reason="")


async def iroh_closes() -> None:
    async with iroh_connected() as (peer, connection):
        await peer.ask("close", code=7, reason="bye from iroh")
        reason = await connection.wait_closed()
        assert (reason.code, reason.reason, reason.by_peer) == (7, "bye from iroh", True)
        assert not reason.is_transport


async def we_close() -> None:
    async with iroh_connected() as (peer, connection):
        await connection.aclose(5, "bye from alknet")
        said = await peer.ask("closed")
        assert "5" in said, said
        assert "bye from alknet" in said, said


async def iroh_dials_the_wrong_key() -> None:
    async with quic_server() as server, iroh_peer(ALPN) as peer:
        target = {**_target(server), "id": bytes(new_credentials().node_id).hex()}
        with pytest.raises(IrohError, match="invalid peer certificate"):
            await peer.ask("connect", **target, alpn=ALPN)
        with pytest.raises(IrohError, match="error 120"):
            await peer.ask("connect", **_target(server), alpn="alknet/other")
        await peer.ask("connect", **_target(server), alpn=ALPN)


# we dial iroh


@asynccontextmanager
async def connected_to_iroh(
    limits: Limits | None = None,
) -> AsyncGenerator[tuple[IrohPeer, QuicConnection]]:
    limits = limits or Limits(handshake_timeout_s=60)  # it takes part only once it was asked
    async with iroh_peer(ALPN) as peer, quic_client(limits=limits) as client:
        own = new_credentials()
        made: list[QuicConnection] = []

        async def dial() -> None:
            policy = client_policy(PinnedKey(NodeId(bytes.fromhex(peer.id))), own)
            made.append(await client.connect(_address(peer), alpn=ALPN, policy=policy))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(dial)
            said = await peer.ask("accept_and_echo")
        assert said["remote_id"] == bytes(own.node_id).hex()
        assert made[0].peer_key == NodeId(bytes.fromhex(peer.id))
        yield peer, made[0]


def _address(peer: IrohPeer) -> tuple[str, int]:
    address = Address.parse(peer.address)
    return address.host, address.port


async def we_open_streams() -> None:
    async with connected_to_iroh() as (_, connection):

        async def one(number: int) -> None:
            async with await connection.open_stream() as stream:
                data = bytes([number % 256]) * (number * 100)
                await stream.send_all(data)
                await stream.send_eof()
                assert await _read_to_end(stream) == data

        async with trio.open_nursery() as nursery:
            for number in range(300):  # more than iroh allows at once
                nursery.start_soon(one, number)
        assert not connection._streams


async def we_send_datagrams() -> None:
    async with connected_to_iroh() as (_, connection):
        for size in (1, 500, connection.max_datagram_size):
            assert await _echoed(connection, b"y" * size) == b"y" * size


async def _echoed(connection: Connection, data: bytes) -> bytes:
    """Send until there is an answer: both may lose it, or find out first how long one may be."""
    while True:
        connection.send_datagram(data)
        with trio.move_on_after(1):
            while (got := await connection.receive_datagram()) != data:
                pass  # an answer to one before, which was sent twice
            return got


async def we_close_iroh_learns_why() -> None:
    async with connected_to_iroh() as (peer, connection):
        await connection.aclose(6, "that was all")
        said = await peer.ask("closed")
        assert "6" in said, said
        assert "that was all" in said, said


async def we_refuse_the_wrong_key() -> None:
    async with iroh_peer(ALPN) as peer, quic_client() as client:
        said: list[str] = []

        async def accept() -> None:
            said.append(await peer.ask("accept_fails"))

        wanted = new_credentials().node_id
        async with trio.open_nursery() as nursery:
            nursery.start_soon(accept)
            await _dial_in_vain(client, peer, wanted)
        assert wanted.short in said[0] or "42" in said[0] or "certificate" in said[0], said


async def _dial_in_vain(client: QuicEndpoint, peer: IrohPeer, wanted: NodeId) -> None:
    policy = client_policy(PinnedKey(wanted), new_credentials())
    with pytest.raises(ConnectionEnded) as ended:
        await client.connect(_address(peer), alpn=ALPN, policy=policy)
    assert ended.value.close.code == 0x12A
    assert wanted.short in ended.value.close.reason
    assert NodeId(bytes.fromhex(peer.id)).short in ended.value.close.reason


async def idle_connection_lives() -> None:
    """Our keep-alive spares iroh its idle time-out, as short as we make it for both."""
    async with connected_to_iroh(Limits(idle_timeout_s=5, keep_alive_s=1)) as (_, connection):
        await trio.sleep(7)
        assert await _echoed(connection, b"still there?") == b"still there?"


# a whole node


async def iroh_calls_a_node() -> None:
    """One stream per call, 200 at once: request, end, answer, end."""
    async with open_node() as node, iroh_peer("alknet/call") as peer:
        quic = next(one for one in node.listening if one.transport == "quic")
        target = {"id": bytes(node.id).hex(), "address": quic.address}
        await peer.ask("connect", **target, alpn="alknet/call")
        requests = [_request(f"d{number}") for number in range(200)]
        for number, answer in enumerate(await peer.exchange(requests)):
            length = int.from_bytes(answer[:4], "big")
            assert length == len(answer) - 4
            envelope = json.loads(answer[4:])
            assert envelope["type"] == "call.responded", envelope
            assert envelope["id"] == f"d{number}"
            assert envelope["payload"]["output"]["id"] == str(node.id)


def _request(request_id: str) -> bytes:
    payload = {"operationId": "/node/ping", "input": {}}
    envelope = {"type": "call.requested", "id": request_id, "payload": payload}
    return encode_frame(json.dumps(envelope).encode())


SCENARIOS: dict[str, Callable[[], Awaitable[None]]] = {
    scenario.__name__: scenario
    for scenario in (
        iroh_opens_streams,
        iroh_opens_200_streams_at_once,
        iroh_sends_more_than_all_windows,
        iroh_sends_datagrams,
        iroh_uses_unidirectional_streams,
        iroh_resets_and_is_reset,
        keys_are_updated_in_mid_transfer,
        iroh_closes,
        we_close,
        iroh_dials_the_wrong_key,
        we_open_streams,
        we_send_datagrams,
        we_close_iroh_learns_why,
        we_refuse_the_wrong_key,
        idle_connection_lives,
        iroh_calls_a_node,
    )
}


async def main(name: str) -> None:
    raise_loopback()
    with trio.fail_after(240):
        await SCENARIOS[name]()


if __name__ == "__main__":
    trio.run(main, sys.argv[1])

"""Stock iroh and whole nodes; `test_iroh_node` runs each scenario in a process of its own."""

from __future__ import annotations

import json
import sys
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
import trio
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from alknet.call.proto import FrameDecoder, encode_frame
from alknet.client import connect, open_session
from alknet.core.contracts import CloseCode
from alknet.core.endpoint.dial import DialError
from alknet.core.identity import NodeId, Peer
from alknet.node import Node
from alknet.testing.nodes import open_node
from tests.interop.iroh_driver import IrohError, IrohPeer, iroh_peer, raise_loopback
from tests.scenarios.rig import bystander, eventually

CALL = "alknet/call"


def key_of(peer: IrohPeer) -> NodeId:
    return NodeId(bytes.fromhex(peer.id))


async def know(node: Node, peer: IrohPeer) -> None:
    """Make *peer* a peer of *node* that may echo."""
    record = Peer(name="iroh", fingerprints=(key_of(peer).fingerprint,), scopes=("echo",))
    await node.identities.put_peer(record)


async def dial(peer: IrohPeer, node: Node) -> None:
    quic = next(one for one in node.listening if one.transport == "quic")
    said = await peer.ask("connect", id=bytes(node.id).hex(), address=quic.address, alpn=CALL)
    assert said["remote_id"] == bytes(node.id).hex()


def request(operation: str, value: Any = None, call_id: str = "d1") -> bytes:
    payload = {"operationId": f"/{operation}", "input": value or {}}
    envelope = {"type": "call.requested", "id": call_id, "payload": payload}
    return encode_frame(json.dumps(envelope).encode())


def answers(data: bytes) -> list[dict[str, Any]]:
    decoder = FrameDecoder(1 << 20)
    decoder.receive_data_untrusted(data)
    found = []
    while (frame := decoder.next_frame()) is not None:
        found.append(json.loads(frame))
    assert not decoder.buffered_bytes
    return found


async def iroh_is_a_peer_by_its_key() -> None:
    async with open_node() as node, bystander(node, "quic"), iroh_peer(CALL) as peer:
        await know(node, peer)
        await dial(peer, node)
        (who,) = answers((await peer.exchange([request("node/whoami")]))[0])
        assert who["payload"]["output"]["id"] == "peer:iroh"
        assert who["payload"]["output"]["key"] == str(key_of(peer))


async def iroh_makes_all_kinds_of_calls_200_at_once() -> None:
    async with open_node() as node, bystander(node, "quic"), iroh_peer(CALL) as peer:
        await know(node, peer)
        await dial(peer, node)
        messages = []
        for n in range(50):
            messages += [
                request("node/ping", call_id=f"p{n}"),
                request("echo/unary", {"message": n}, f"u{n}"),
                request("echo/stream", {"count": 3}, f"s{n}"),
                request("node/status", call_id=f"f{n}"),
            ]
        replies = [answers(data) for data in await peer.exchange(messages)]
        for n in range(50):
            ping, unary, stream, status = replies[4 * n : 4 * n + 4]
            assert ping[0]["payload"]["output"]["id"] == str(node.id)
            assert [e["payload"] for e in unary] == [{"output": {"message": n}}]
            assert [e["type"] for e in stream] == ["call.responded"] * 3 + ["call.completed"]
            assert [e["payload"]["code"] for e in status] == ["FORBIDDEN"]
        await eventually(lambda: node.status()["calls"] <= 1)  # nothing is left of them


async def iroh_without_a_record_is_anonymous() -> None:
    async with open_node() as node, iroh_peer(CALL) as peer:
        await dial(peer, node)
        sent = [request("node/whoami"), request("echo/unary", {"message": 1}, "d2")]
        who, refused = (answers(data)[0] for data in await peer.exchange(sent))
        assert who["payload"]["output"]["id"] == "anonymous"
        assert refused["payload"]["code"] == "FORBIDDEN"


async def datagrams_do_a_node_no_harm() -> None:
    """Nobody reads datagrams in a call session; they are dropped, and calls go on."""
    async with open_node() as node, bystander(node, "quic"), iroh_peer(CALL) as peer:
        await dial(peer, node)
        for _ in range(3):
            await peer.ask("send_datagrams", data="00" * 1000, count=500)
            (ping,) = answers((await peer.exchange([request("node/ping")]))[0])
            assert ping["type"] == "call.responded"


async def garbage_from_iroh_resets_its_stream_alone() -> None:
    async with open_node() as node, bystander(node, "quic"), iroh_peer(CALL) as peer:
        await dial(peer, node)
        with pytest.raises(IrohError):
            await peer.exchange([b"\xff\xff\xff\xffgarbage"])
        (ping,) = answers((await peer.exchange([request("node/ping")]))[0])
        assert ping["type"] == "call.responded"


async def iroh_is_told_when_it_is_revoked() -> None:
    async with open_node() as node, bystander(node, "quic"), iroh_peer(CALL) as peer:
        await know(node, peer)
        await dial(peer, node)
        await peer.exchange([request("node/ping")])
        await node.identities.remove_peer("iroh")
        said = await peer.ask("closed")
        assert str(int(CloseCode.REVOKED)) in said
        assert "no longer a peer" in said


async def iroh_that_dials_another_key_is_not_connected() -> None:
    async with open_node() as node, open_node() as other, iroh_peer(CALL) as peer:
        quic = next(one for one in node.listening if one.transport == "quic")
        with pytest.raises(IrohError, match="invalid peer certificate"):
            await peer.ask("connect", id=bytes(other.id).hex(), address=quic.address, alpn=CALL)
        await eventually(lambda: not node.endpoint.handshakes)


async def our_client_reaches_an_iroh_endpoint() -> None:
    """By key and address, in whatever form the key was written down."""
    async with iroh_peer("demo/1") as peer:
        for target in (key_of(peer), str(key_of(peer)), key_of(peer).fingerprint):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(peer.ask, "accept_and_echo")
                async with connect(
                    target,
                    addresses=[peer.address],
                    key=Ed25519PrivateKey.generate(),
                    alpn="demo/1",
                    transports=["quic"],
                ) as connection:
                    assert connection.peer_key == key_of(peer)
                    stream = await connection.open_stream()
                    await stream.send_all(b"hello iroh")
                    await stream.send_eof()
                    assert b"".join([part async for part in stream]) == b"hello iroh"


async def our_client_says_what_iroh_said() -> None:
    async with iroh_peer("demo/1") as peer, trio.open_nursery() as nursery:
        nursery.start_soon(peer.ask, "accept_fails")
        with pytest.raises(DialError, match="no_application_protocol"):
            async with open_session(
                key_of(peer),
                addresses=[peer.address],
                key=Ed25519PrivateKey.generate(),
                transports=["quic"],
            ):
                pass


SCENARIOS: dict[str, Callable[[], Awaitable[None]]] = {
    scenario.__name__: scenario
    for scenario in (
        iroh_is_a_peer_by_its_key,
        iroh_makes_all_kinds_of_calls_200_at_once,
        iroh_without_a_record_is_anonymous,
        datagrams_do_a_node_no_harm,
        garbage_from_iroh_resets_its_stream_alone,
        iroh_is_told_when_it_is_revoked,
        iroh_that_dials_another_key_is_not_connected,
        our_client_reaches_an_iroh_endpoint,
        our_client_says_what_iroh_said,
    )
}


async def main(name: str) -> None:
    raise_loopback()
    with trio.fail_after(240):
        await SCENARIOS[name]()


if __name__ == "__main__":
    trio.run(main, sys.argv[1])

"""Who is who: keys that do not fit, keys that nobody knows, keys that are claimed by others."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

import pytest
import trio
from aioquic import tls
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from alknet.client import connect, open_session
from alknet.core.address import Address
from alknet.core.contracts import CloseCode, Connection, ConnectionEnded
from alknet.core.datagram import UdpSocket
from alknet.core.endpoint.dial import DialError
from alknet.core.identity import NodeId, Peer
from alknet.core.limits import Limits
from alknet.core.quic.endpoint import QuicAcceptor, QuicEndpoint
from alknet.core.quic.handshake import AskFor, ClientPolicy, ServerPolicy, Shown
from alknet.core.tcp.listener import connect_tcp
from alknet.core.ticket import Ticket
from alknet.core.tls.credentials import NodeCredentials
from alknet.core.tls.trust import PinnedKey
from alknet.errors import Conflict
from alknet.node import Node
from alknet.testing.nodes import open_node
from tests.core.endpoint_kit import Handler, ask, echo
from tests.core.quic.pairs import admit_all
from tests.core.tcp.impostor import Impostor
from tests.scenarios.rig import TRANSPORTS, bystander, eventually, make_friend, refusal_at_the_door

CALL = "alknet/call"
VAULT = "vault/1"

pytestmark = pytest.mark.parametrize("transport", TRANSPORTS)


async def test_another_key_than_the_pinned_one_is_named(transport: str) -> None:
    other = NodeCredentials(Ed25519PrivateKey.generate()).node_id
    async with open_node() as node, bystander(node, transport):
        with pytest.raises(DialError) as caught:
            async with open_session(Ticket(other, node.ticket.addresses), transports=[transport]):
                pass
        (attempt,) = caught.value.attempts
        assert other.short in attempt.outcome
        assert node.id.short in attempt.outcome


@pytest.mark.parametrize("who", ["nobody", "an unknown key"])
async def test_a_handler_that_requires_identity_never_sees_a_stranger(
    transport: str, who: str
) -> None:
    served: list[Connection] = []

    async def serve(connection: Connection) -> None:
        served.append(connection)
        await echo(connection)

    key = None if who == "nobody" else Ed25519PrivateKey.generate()
    friend = make_friend("friend")
    handler = Handler(serve, alpns=[VAULT], requires_identity=True)
    async with (
        open_node(handlers=[handler], peers=[friend.peer]) as node,
        bystander(node, transport),
    ):
        ended = await _end_of_a_stranger(node, transport, key)
        if transport == "quic":
            assert "identity required" in ended
        assert not served
        async with connect(
            node.ticket, alpn=VAULT, key=friend.key, transports=[transport]
        ) as connection:
            assert await ask(connection) == b"ping"
        (connection,) = served
        assert connection.identity.id == "peer:friend"


async def _end_of_a_stranger(node: Node, transport: str, key: Ed25519PrivateKey | None) -> str:
    try:
        async with connect(node.ticket, alpn=VAULT, key=key, transports=[transport]) as connection:
            with trio.fail_after(15):
                ended = await connection.wait_closed()
    except DialError as exc:  # the refusal came with the end of the handshake
        return str(exc)
    assert ended.by_peer
    if connection.carrier.close_code:
        assert ended.code == CloseCode.AUTH_REQUIRED
    return ended.reason


async def test_the_key_of_a_disabled_peer_is_refused(transport: str) -> None:
    friend = make_friend("friend", "echo", enabled=False)
    async with open_node(peers=[friend.peer]) as node, bystander(node, transport):
        refusal = await refusal_at_the_door(node, transport, friend.key)
        assert "disabled" in refusal
        assert "UNAVAILABLE" not in refusal  # trying again would not help


async def test_one_peer_of_two_keys_and_two_peers_of_one_name(transport: str) -> None:
    """A name stands for one record; its nodes are one identity, and others cannot take it."""
    first, second = make_friend("twin", "echo"), make_friend("twin", "echo")
    both = (*first.peer.fingerprints, *second.peer.fingerprints)
    async with open_node(peers=[first.peer]) as node, bystander(node, transport):
        with pytest.raises(Conflict, match="twin"):
            await node.identities.put_peer(second.peer)
        with pytest.raises(Conflict):
            await node.identities.put_peer(Peer(name="other", fingerprints=first.peer.fingerprints))
        await node.identities.update_peer(Peer(name="twin", fingerprints=both, scopes=("echo",)))
        async with (
            open_session(node.ticket, key=first.key, transports=[transport]) as one,
            open_session(node.ticket, key=second.key, transports=[transport]) as two,
        ):
            for session in (one, two, one):
                assert b'"peer:twin"' in bytes(await session.call("node/whoami"))
                await session.call("echo/unary", {"message": 1})


async def test_two_nodes_may_know_different_peers_by_one_name(transport: str) -> None:
    first, second = make_friend("worker", "echo"), make_friend("worker")
    async with open_node(peers=[first.peer]) as left, open_node(peers=[second.peer]) as right:
        for node, known, unknown in ((left, first, second), (right, second, first)):
            async with open_session(node.ticket, key=known.key, transports=[transport]) as session:
                assert b'"peer:worker"' in bytes(await session.call("node/whoami"))
            async with open_session(
                node.ticket, key=unknown.key, transports=[transport]
            ) as session:
                assert b'"anonymous"' in bytes(await session.call("node/whoami"))


# Forged CertificateVerify: the key of A is shown, and another signs.


class _Forger:
    def __init__(self, shown: Ed25519PrivateKey) -> None:
        self._shown = shown
        self._signer = Ed25519PrivateKey.generate()

    def public_key(self) -> object:
        return self._shown.public_key()

    def sign(self, data: bytes) -> bytes:
        return self._signer.sign(data)


@pytest.fixture
def _forging(monkeypatch: pytest.MonkeyPatch) -> None:
    # aioquic picks the signature algorithm by the key's class, and would not lie for a stranger.
    original = tls.Context._signature_algorithms_for_private_key

    def algorithms(context: tls.Context) -> list[tls.SignatureAlgorithm]:
        key: object = context.certificate_private_key
        if isinstance(key, _Forger):
            return [tls.SignatureAlgorithm.ED25519]
        return original(context)

    monkeypatch.setattr(tls.Context, "_signature_algorithms_for_private_key", algorithms)


@pytest.mark.usefixtures("_forging")
async def test_a_client_that_claims_a_peers_key_is_refused(transport: str) -> None:
    friend = make_friend("friend", "echo")
    async with open_node(peers=[friend.peer]) as node, bystander(node, transport):
        address = node.ticket.addresses[0]
        if transport == "quic":
            with pytest.raises(ConnectionEnded) as caught:
                await _dial_forged(node.id, address, friend.key)
            assert caught.value.close.is_transport
            assert caught.value.close.code == 0x100 + 51  # decrypt_error
        else:
            stream = await connect_tcp(address.host, address.port, Limits())
            certificate = NodeCredentials(friend.key).certificate
            liar = Impostor(
                stream,
                is_client=True,
                alpn=CALL,
                certificate=certificate,
                key=Ed25519PrivateKey.generate(),
            )
            await liar.shake_hands()  # done for a client before the server has judged it
            with trio.fail_after(15):
                kind, alert = await _next_alert(liar)
            assert (kind, alert) == ("alert", 51)
            await stream.aclose()
        await eventually(lambda: node.endpoint.handshakes == 0)
        identities = [entry.identity for entry in node.endpoint.connections()]
        assert identities == ["peer:bystander"]


async def _next_alert(liar: Impostor) -> tuple[str, int]:
    """Read what follows the handshake: under TLS 1.3 it comes with the application's keys."""
    header = await liar._read(5)
    body = await liar._read(int.from_bytes(header[3:5]))
    keys = liar._keys[tls.Direction.DECRYPT, tls.Epoch.ONE_RTT]
    kind, data = keys.open(header, body)
    return "alert" if kind == 21 else str(kind), data[1]


async def _dial_forged(node_id: NodeId, address: Address, claimed: Ed25519PrivateKey) -> None:
    policy = ClientPolicy(PinnedKey(node_id), _Forger(claimed))  # type: ignore[arg-type]
    endpoint = QuicEndpoint(UdpSocket.bind("127.0.0.1", 0), limits=Limits())
    async with _running(endpoint):
        await endpoint.connect((address.host, address.port), alpn=CALL, policy=policy)


@asynccontextmanager
async def _running(endpoint: QuicEndpoint) -> AsyncGenerator[None]:
    error: Exception | None = None
    async with trio.open_nursery() as nursery:
        await nursery.start(endpoint.run)
        try:
            yield
        except ConnectionEnded as exc:
            error = exc
        nursery.cancel_scope.cancel()
    if error is not None:
        raise error


@pytest.mark.usefixtures("_forging")
async def test_a_server_that_claims_a_nodes_key_is_refused(transport: str) -> None:
    async with open_node() as node, bystander(node, transport):
        key = node.credentials.key
        async with _false_node(transport, key) as address:
            with pytest.raises(DialError) as caught:
                async with open_session(node.id, addresses=[address], transports=[transport]):
                    pass
        (attempt,) = caught.value.attempts
        assert "decrypt_error" in attempt.outcome or "signature" in attempt.outcome


@asynccontextmanager
async def _false_node(transport: str, claimed: Ed25519PrivateKey) -> AsyncGenerator[Address]:
    if transport == "quic":
        shown = Shown(_Forger(claimed))
        acceptor = QuicAcceptor(
            policy=ServerPolicy(lambda _hello: (shown, AskFor.NOTHING)),
            alpns=lambda: [CALL],
            on_connection=lambda _connection: pytest.fail("a forged key got through"),
            admit=admit_all,
        )
        endpoint = QuicEndpoint(UdpSocket.bind("127.0.0.1", 0), limits=Limits(), acceptor=acceptor)
        async with _running(endpoint):
            yield Address(*endpoint.local_address)
        return

    async def lie(stream: trio.SocketStream) -> None:
        certificate = NodeCredentials(claimed).certificate
        key = Ed25519PrivateKey.generate()
        liar = Impostor(stream, is_client=False, alpn=CALL, certificate=certificate, key=key)
        assert await liar.shake_hands() == 51

    (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
    async with trio.open_nursery() as nursery:
        nursery.start_soon(trio.serve_listeners, lie, [listener])
        yield Address("127.0.0.1", listener.socket.getsockname()[1])
        nursery.cancel_scope.cancel()

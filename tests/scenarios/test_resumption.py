"""A client that offers a ticket of another day: every handshake judges the key anew."""

from __future__ import annotations

import datetime as dt
import math
import socket
import ssl
from pathlib import Path

import trio
from aioquic import tls
from aioquic.quic import events
from aioquic.quic.configuration import QuicConfiguration
from aioquic.quic.connection import QuicConnection
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from alknet.core.address import Address
from alknet.core.tls.x509 import node_certificate, self_signed_web_certificate
from alknet.testing.nodes import open_node
from tests.core.tls.pki import write_chain, write_key
from tests.scenarios.rig import bystander, eventually, make_friend

CALL = "alknet/call"


async def test_an_old_ticket_on_quic_gets_a_full_handshake() -> None:
    friend = make_friend("friend")
    async with open_node(peers=[friend.peer]) as node, bystander(node, "quic"):
        done = await _quic_client(node.ticket.addresses[0], friend.key, _old_ticket())
        assert not done.session_resumed
        assert not done.early_data_accepted


async def test_no_ticket_is_offered_on_quic() -> None:
    issued: list[tls.SessionTicket] = []
    async with open_node() as node, bystander(node, "quic"):
        key = Ed25519PrivateKey.generate()
        await _quic_client(node.ticket.addresses[0], key, None, issued)
    assert not issued


def _old_ticket() -> tls.SessionTicket:
    now = dt.datetime.now(dt.UTC)
    return tls.SessionTicket(
        age_add=0,
        cipher_suite=tls.CipherSuite.AES_256_GCM_SHA384,
        not_valid_after=now + dt.timedelta(days=1),
        not_valid_before=now - dt.timedelta(days=1),
        resumption_secret=bytes(48),
        server_name=None,  # type: ignore[arg-type]
        ticket=b"ticket of another day",
        max_early_data_size=0xFFFFFFFF,
    )


async def _quic_client(
    address: Address,
    key: Ed25519PrivateKey,
    ticket: tls.SessionTicket | None,
    issued: list[tls.SessionTicket] | None = None,
) -> events.HandshakeCompleted:
    """Let an unchanged aioquic shake hands with a node over UDP."""
    configuration = QuicConfiguration(
        alpn_protocols=[CALL], verify_mode=ssl.CERT_NONE, session_ticket=ticket
    )
    configuration.certificate = node_certificate(key)
    configuration.private_key = key
    handler = None if issued is None else issued.append
    client = QuicConnection(configuration=configuration, session_ticket_handler=handler)
    target = (address.host, address.port)
    with trio.socket.socket(type=trio.socket.SOCK_DGRAM) as sock, trio.fail_after(30):
        await sock.bind(("127.0.0.1", 0))
        client.connect(target, trio.current_time())
        completed = None
        while completed is None or not client._handshake_confirmed:
            for data, _ in client.datagrams_to_send(trio.current_time()):
                await sock.sendto(data, target)
            with trio.move_on_at(client.get_timer() or math.inf) as wait:
                client.receive_datagram(await sock.recv(65_536), target, trio.current_time())
            if wait.cancelled_caught:
                client.handle_timer(trio.current_time())
            while (event := client.next_event()) is not None:
                assert not isinstance(event, events.ConnectionTerminated), event
                if isinstance(event, events.HandshakeCompleted):
                    completed = event
        client.close()
        for data, _ in client.datagrams_to_send(trio.current_time()):
            await sock.sendto(data, target)
    return completed


async def test_an_old_ticket_on_tcp_gets_a_full_handshake(tmp_path: Path) -> None:
    friend = make_friend("friend")
    cert = write_chain(tmp_path / "cert.pem", node_certificate(friend.key))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    context.set_alpn_protocols([CALL])
    context.load_cert_chain(cert, write_key(tmp_path / "key.pem", friend.key))
    ticket = await _ticket_of_another_server(context, tmp_path)
    async with open_node(peers=[friend.peer]) as node, bystander(node, "tcp"):
        address = node.ticket.addresses[0]
        with trio.fail_after(30):
            own = await trio.to_thread.run_sync(_tls_client, context, address, ticket)
            # OpenSSL sends tickets that name nothing; they are worth as little.
            await trio.to_thread.run_sync(_tls_client, context, address, own)
            await eventually(lambda: len(node.endpoint.connections()) == 1)


def _tls_client(
    context: ssl.SSLContext, address: Address, ticket: ssl.SSLSession
) -> ssl.SSLSession:
    """Shake hands and call, offering *ticket*; return the session for another time."""
    with (
        socket.create_connection((address.host, address.port)) as sock,
        context.wrap_socket(sock, session=ticket) as client,
    ):
        assert client.selected_alpn_protocol() == CALL
        # One whole exchange: tickets come behind the handshake, with the first bytes.
        body = b'{"type":"call.requested","id":"d1","payload":{"operationId":"/node/whoami"}}'
        client.sendall(len(body).to_bytes(4, "big") + body)
        assert b'"id":"peer:friend"' in client.recv(65_536)
        assert not client.session_reused
        assert client.session is not None
        return client.session


async def _ticket_of_another_server(context: ssl.SSLContext, directory: Path) -> ssl.SSLSession:
    """Resume with a server that allows it, as a proof that *context* offers what it has."""
    certificate, key = self_signed_web_certificate()
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.load_cert_chain(
        write_chain(directory / "other.pem", certificate), write_key(directory / "other.key", key)
    )
    server.set_alpn_protocols([CALL])

    async def greet(stream: trio.SocketStream) -> None:
        async with trio.SSLStream(stream, server, server_side=True) as secure:
            await secure.send_all(b"hello")
            await secure.receive_some()

    def client(port: int, ticket: ssl.SSLSession | None) -> tuple[ssl.SSLSession, bool]:
        with (
            socket.create_connection(("127.0.0.1", port)) as sock,
            context.wrap_socket(sock, session=ticket) as secure,
        ):
            assert secure.recv(5) == b"hello"
            session, was_reused = secure.session, secure.session_reused
            secure.unwrap()
            assert session is not None
            return session, bool(was_reused)

    (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
    async with trio.open_nursery() as nursery:
        nursery.start_soon(trio.serve_listeners, greet, [listener])
        port = listener.socket.getsockname()[1]
        ticket, _ = await trio.to_thread.run_sync(client, port, None)
        assert ticket.has_ticket
        newer, was_reused = await trio.to_thread.run_sync(client, port, ticket)
        assert was_reused
        nursery.cancel_scope.cancel()
    return newer

"""Ordinary TLS clients on the port of a node: stdlib ssl, `openssl s_client`, curl."""

from __future__ import annotations

import shutil
import ssl
from pathlib import Path

import pytest
import trio
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, ed25519

from alknet.core.tcp.connection import StreamConnection
from alknet.core.tcp.handshake import dial_tls
from alknet.core.tls.credentials import NodeCredentials
from alknet.core.tls.trust import PinnedKey, WebPki
from alknet.core.tls.x509 import self_signed_web_certificate
from tests.core.tcp.rig import ALPN, CLIENT, SERVER, TcpServer, greet_and_echo, tcp_server
from tests.core.tls.pki import INTERMEDIATE, ROOT, leaf, write_chain, write_key

WEB_ALPNS = [ALPN, "h2", "http/1.1"]
NODE = NodeCredentials(
    SERVER.key, {"one.test": leaf(INTERMEDIATE, "one.test")}, leaf(INTERMEDIATE, "default.test")
)


@pytest.fixture
def ca_file(tmp_path: Path) -> Path:
    return write_chain(tmp_path / "ca.pem", ROOT.certificate)


def unverified() -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context


async def shown_certificate(
    server: TcpServer, alpn: str | None, server_name: str | None
) -> x509.Certificate:
    context = unverified()
    if alpn is not None:
        context.set_alpn_protocols([alpn])
    stream = trio.SSLStream(await server.connect(), context, server_hostname=server_name)
    async with stream:
        await stream.do_handshake()
        assert await stream.receive_some(5) == b"hello"
        der = stream.getpeercert(binary_form=True)
    assert der
    return x509.load_der_x509_certificate(der)


async def s_client(server: TcpServer, *options: str) -> str:
    """Run `openssl s_client`; it ends when the server does."""
    program = shutil.which("openssl")
    assert program
    done = await trio.run_process(
        [program, "s_client", "-connect", f"127.0.0.1:{server.port}", "-ign_eof", *options],
        capture_stdout=True,
        capture_stderr=True,
        check=False,
    )
    return (done.stdout + done.stderr).decode()


async def greet_and_close(connection: StreamConnection) -> None:
    stream = await connection.accept_stream()
    await stream.send_all(f"hello over {connection.alpn}\n".encode())


async def answer_404(connection: StreamConnection) -> None:
    if connection.alpn != "http/1.1":
        await greet_and_echo(connection)
        return
    stream = await connection.accept_stream()
    assert (await stream.receive_some()).startswith(b"GET / HTTP/1.1\r\n")
    await stream.send_all(b"HTTP/1.1 404 Not Found\r\nContent-Length: 3\r\n\r\nno\n")


@pytest.mark.parametrize(
    ("alpn", "server_name", "expected"),
    [
        ("h2", "one.test", "one.test"),
        ("http/1.1", "one.test", "one.test"),
        (ALPN, "one.test", "one.test"),
        (None, "one.test", "one.test"),
        ("http/1.1", "two.test", "default.test"),
        ("http/1.1", None, "default.test"),
        (None, None, "default.test"),
        (ALPN, "two.test", str(SERVER.node_id)),
        (ALPN, None, str(SERVER.node_id)),
    ],
)
async def test_alpn_and_sni_choose_the_certificate(
    alpn: str | None, server_name: str | None, expected: str
) -> None:
    async with tcp_server(NODE, WEB_ALPNS, default_alpn="http/1.1") as server:
        certificate = await shown_certificate(server, alpn, server_name)
        (name,) = certificate.subject
        assert name.value == expected
        (connection,) = server.accepted
        assert connection.alpn == (alpn or "http/1.1")
        assert connection.server_name == server_name
        assert connection.peer_key is None


async def test_a_verifying_client_gets_the_whole_chain(ca_file: Path) -> None:
    context = ssl.create_default_context(cafile=ca_file)
    context.set_alpn_protocols(["http/1.1"])
    async with tcp_server(NODE, WEB_ALPNS) as server:
        stream = trio.SSLStream(await server.connect(), context, server_hostname="one.test")
        async with stream:
            await stream.send_all(b"ping")
            assert await stream.receive_some(5) == b"hello"


async def test_our_client_verifies_a_name_and_still_shows_its_key(ca_file: Path) -> None:
    async with tcp_server(NODE, WEB_ALPNS) as server:
        connection = await dial_tls(
            await server.connect(),
            alpn=ALPN,
            credentials=CLIENT,
            trust=WebPki("one.test", ca_file),
        )
        stream = await connection.open_stream()
        assert await stream.receive_some(5) == b"hello"
        await connection.aclose()
        assert connection.peer_key is None
        assert server.accepted[0].peer_key == CLIENT.node_id
        assert server.accepted[0].server_name == "one.test"


async def test_without_a_configured_certificate_a_web_client_gets_an_ecdsa_one() -> None:
    async with tcp_server(SERVER, WEB_ALPNS) as server:
        certificate = await shown_certificate(server, "h2", "any.test")
        assert isinstance(certificate.public_key(), ec.EllipticCurvePublicKey)
        certificate = await shown_certificate(server, ALPN, "any.test")
        assert isinstance(certificate.public_key(), ed25519.Ed25519PublicKey)


async def test_replaced_certificates_are_shown_to_the_next_client() -> None:
    node = NodeCredentials(SERVER.key, {"one.test": leaf(ROOT, "one.test")})
    async with tcp_server(node, WEB_ALPNS) as server:
        before = await shown_certificate(server, "h2", "one.test")
        node.set_web({"one.test": leaf(ROOT, "one.test")})
        after = await shown_certificate(server, "h2", "one.test")
        assert before != after


async def test_a_client_with_another_kind_of_certificate_is_anonymous(tmp_path: Path) -> None:
    certificate, key = self_signed_web_certificate()
    context = unverified()
    context.set_alpn_protocols([ALPN])
    context.load_cert_chain(
        write_chain(tmp_path / "cert.pem", certificate), write_key(tmp_path / "key.pem", key)
    )
    async with tcp_server() as server:
        async with trio.SSLStream(await server.connect(), context) as stream:
            assert await stream.receive_some(5) == b"hello"
        assert server.accepted[0].peer_key is None


async def test_s_client_speaks_with_a_handler() -> None:
    async with tcp_server(handle=greet_and_close) as server:
        said = await s_client(server, "-alpn", ALPN)
        assert "hello over alknet/test" in said
        assert "ALPN protocol: alknet/test" in said
        assert "peer signature type: ed25519" in said.lower()
        assert "New, TLSv1.3" in said


async def test_s_client_without_a_common_protocol_gets_alert_120() -> None:
    async with tcp_server() as server:
        assert "SSL alert number 120" in await s_client(server, "-alpn", "other/1")
        await server.failed.wait()  # the client may have ended first
        assert [failure.alert for failure in server.failures] == [120]


async def test_s_client_without_alpn_is_refused_or_gets_the_default_handler() -> None:
    async with tcp_server() as server:
        assert "SSL alert number 40" in await s_client(server)
        await server.failed.wait()
        assert "offers no ALPN" in str(server.failures[0])
        assert "SSL alert number 40" in await s_client(server, "-servername", "one.test")
    async with tcp_server(default_alpn=ALPN, handle=greet_and_close) as server:
        said = await s_client(server)
        assert "hello over alknet/test" in said
        assert "No ALPN negotiated" in said


async def test_s_client_of_tls_1_2_is_refused_with_protocol_version() -> None:
    async with tcp_server() as server:
        assert "SSL alert number 70" in await s_client(server, "-tls1_2", "-alpn", ALPN)


@pytest.mark.slow
async def test_a_client_with_an_old_ticket_gets_a_full_handshake(tmp_path: Path) -> None:
    session = str(tmp_path / "session.pem")
    async with tcp_server(handle=greet_and_close) as server:
        await s_client(server, "-alpn", ALPN, "-sess_out", session)
        assert "BEGIN SSL SESSION" in Path(session).read_text()
        said = await s_client(server, "-alpn", ALPN, "-sess_in", session)
        assert "New, TLSv1.3" in said
        assert "Reused" not in said
        assert "hello over alknet/test" in said


async def test_curl_speaks_http_while_a_peer_uses_the_same_port(ca_file: Path) -> None:
    program = shutil.which("curl")
    assert program
    async with tcp_server(NODE, WEB_ALPNS, handle=answer_404) as server:
        peer = await dial_tls(
            await server.connect(), alpn=ALPN, credentials=None, trust=PinnedKey(SERVER.node_id)
        )
        stream = await peer.open_stream()
        origin = f"one.test:{server.port}"
        done = await trio.run_process(
            [
                *(program, "-sS", "--http1.1", "--cacert", str(ca_file), "-w", "%{http_code}"),
                *("--resolve", f"{origin}:127.0.0.1", f"https://{origin}/"),
            ],
            capture_stdout=True,
        )
        assert done.stdout == b"no\n404"
        assert await stream.receive_some(5) == b"hello"
        await peer.aclose()

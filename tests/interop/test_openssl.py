"""`openssl s_client` at the TCP port of a whole node: an answer or an alert, never silence."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest
import trio
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePublicKey

from alknet.core.identity import NodeId
from alknet.core.tls.x509 import node_certificate, node_id_of_certificate
from alknet.node import Node
from alknet.testing.nodes import open_node
from tests.core.tls.pki import write_chain, write_key
from tests.interop.programs import find, run
from tests.scenarios.rig import bystander, make_friend

pytestmark = pytest.mark.interop

CALL = "alknet/call"
WHOAMI = b'{"type":"call.requested","id":"d1","payload":{"operationId":"/node/whoami"}}'


async def s_client(node: Node, *options: str | Path, stdin: bytes = b"") -> tuple[int, str]:
    """Shake hands, send *stdin* and read until the node ends it (it does, when we have)."""
    return await run(
        *(find("openssl"), "s_client", "-connect", str(node.ticket.addresses[0]), "-showcerts"),
        *options,
        stdin=stdin,
    )


async def ask_by_hand(node: Node, *options: str | Path) -> str:
    """Send a frame through `s_client` and return the first frame that comes back."""
    command = [find("openssl"), "s_client", "-quiet", "-alpn", CALL]
    command += ["-connect", str(node.ticket.addresses[0]), *map(str, options)]
    process = await trio.lowlevel.open_process(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    )
    assert process.stdin is not None
    assert process.stdout is not None
    async with process.stdin, process.stdout:
        with trio.fail_after(60):
            await process.stdin.send_all(len(WHOAMI).to_bytes(4, "big") + WHOAMI)
            answer = bytes(await process.stdout.receive_some())
        process.kill()
        await process.wait()
    return answer[4:].decode()


def shown(said: str) -> x509.Certificate:
    match = re.search("-----BEGIN CERTIFICATE-----.*?-----END CERTIFICATE-----", said, re.DOTALL)
    assert match, said
    return x509.load_pem_x509_certificate(match[0].encode())


async def test_alknet_call_shows_the_nodes_key() -> None:
    async with open_node() as node, bystander(node, "tcp"):
        status, said = await s_client(node, "-alpn", CALL)
        assert status == 0
        assert f"ALPN protocol: {CALL}" in said
        assert "peer signature type: ed25519" in said.lower()
        assert "TLSv1.3" in said
        assert node_id_of_certificate(shown(said)) == node.id


async def test_a_call_typed_by_hand_is_answered(tmp_path: Path) -> None:
    friend = make_friend("friend")
    cert = write_chain(tmp_path / "cert.pem", node_certificate(friend.key))
    key = write_key(tmp_path / "key.pem", friend.key)
    async with open_node(peers=[friend.peer]) as node, bystander(node, "tcp"):
        said = await ask_by_hand(node, "-cert", cert, "-key", key)
        assert '"id":"peer:friend"' in said
        assert str(NodeId.from_public_key(friend.key.public_key())) in said


async def test_http_1_1_shows_a_certificate_that_ordinary_clients_know() -> None:
    async with open_node() as node, bystander(node, "tcp"):
        status, said = await s_client(node, "-alpn", "h2,http/1.1")
        assert status == 0
        assert "ALPN protocol: http/1.1" in said
        assert isinstance(shown(said).public_key(), EllipticCurvePublicKey)
        request = b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
        _, said = await s_client(node, "-quiet", "-alpn", "http/1.1", stdin=request)
        assert "HTTP/1.1 404" in said


async def test_no_overlap_is_alert_120() -> None:
    async with open_node() as node, bystander(node, "tcp"):
        status, said = await s_client(node, "-alpn", "nosuch")
        assert status != 0
        assert "SSL alert number 120" in said


@pytest.mark.parametrize("default", [None, "http/1.1"])
async def test_a_client_without_alpn_gets_the_default_or_a_clean_refusal(
    default: str | None,
) -> None:
    async with open_node(default_alpn=default) as node, bystander(node, "tcp"):
        request = b"GET / HTTP/1.0\r\n\r\n"
        status, said = await s_client(node, "-quiet", stdin=request)
        if default is None:
            assert status != 0
            assert "alert" in said
        else:
            assert " 404 " in said


async def test_old_versions_of_tls_are_refused_by_name() -> None:
    async with open_node() as node, bystander(node, "tcp"):
        status, said = await s_client(node, "-tls1_2", "-alpn", CALL)
        assert status != 0
        assert "SSL alert number 70" in said  # protocol_version

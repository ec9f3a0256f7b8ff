"""curl at the port of a whole node."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from alknet.client import open_session
from alknet.core.address import Address
from alknet.core.config import NodeConfig, WebCertificateFiles
from alknet.core.endpoint.dial import DialError
from alknet.core.identity import NodeId
from alknet.node import Node
from alknet.testing.nodes import open_node
from tests.core.tls.pki import INTERMEDIATE, ROOT, leaf, write_chain, write_key
from tests.interop.programs import find, run
from tests.scenarios.rig import TRANSPORTS, bystander

pytestmark = pytest.mark.interop

NAME = "node.test"


@asynccontextmanager
async def web_node(directory: Path, name: str = NAME) -> AsyncGenerator[tuple[Node, Path]]:
    """Run a node with a certificate of an authority for *name*; yield that authority's file too."""
    certificate = leaf(INTERMEDIATE, name)
    files = WebCertificateFiles(
        (name,),
        write_chain(directory / "chain.pem", *certificate.chain),
        write_key(directory / "key.pem", certificate.key),
    )
    config = NodeConfig(listen=(Address("127.0.0.1", 0),), web_certificates=(files,))
    async with Node(config=config) as node:
        yield node, write_chain(directory / "ca.pem", ROOT.certificate)


async def curl(*options: str | Path) -> tuple[int, str]:
    return await run(find("curl"), "--silent", "--show-error", "--include", *options)


async def test_curl_gets_one_line_of_404() -> None:
    async with open_node() as node, bystander(node, "tcp"):
        url = f"https://{node.ticket.addresses[0]}/any/page?x=1"
        status, said = await curl("--http1.1", "--insecure", url, url)
        assert status == 0
        assert said.startswith("HTTP/1.1 404")
        assert said.count("404: this is an alknet node; it serves no pages") == 2
        status, said = await curl("--http1.1", "--insecure", "--head", url)
        assert status == 0
        assert "404: this is" not in said
        status, said = await curl("--http1.1", "--insecure", "--data", "x" * 100_000, url)
        assert "HTTP/1.1 404" in said or status in {55, 56}  # cut off amid too long a body


async def test_curl_verifies_the_configured_certificate_by_name(tmp_path: Path) -> None:
    async with web_node(tmp_path) as (node, ca_file), bystander(node, "tcp"):
        origin = f"{NAME}:{node.ticket.addresses[0].port}"
        there = ("--resolve", f"{origin}:127.0.0.1", f"https://{origin}/")
        status, said = await curl("--http1.1", "--cacert", ca_file, *there)
        assert (status, said[:12]) == (0, "HTTP/1.1 404")
        status, said = await curl("--http1.1", *there)
        assert status == 60, said  # not an authority that curl knows
        other = origin.replace(NAME, "other.test")
        status, said = await curl(
            *("--http1.1", "--cacert", ca_file),
            *("--resolve", f"{other}:127.0.0.1", f"https://{other}/"),
        )
        assert status == 60, said


@pytest.mark.parametrize("transport", TRANSPORTS)
async def test_our_client_verifies_it_too(transport: str, tmp_path: Path) -> None:
    """A bare host:port: the Web PKI must vouch for it, or nothing is connected."""
    async with web_node(tmp_path, "localhost") as (node, ca_file), bystander(node, transport):
        target = f"localhost:{node.ticket.addresses[0].port}"
        key = Ed25519PrivateKey.generate()
        async with open_session(
            target, key=key, transports=[transport], ca_file=ca_file
        ) as session:
            who = await session.call_as(dict[str, Any], "node/whoami")
            assert who["key"] == str(NodeId.from_public_key(key.public_key()))
        for wrong in ({"ca_file": None}, {"target": str(node.ticket.addresses[0])}):
            options: dict[str, Any] = {"target": target, "ca_file": ca_file, **wrong}
            with pytest.raises(DialError, match="not trusted"):
                async with open_session(transports=[transport], **options):
                    pass

"""Stock QUIC clients at the X.509 side of a whole node: HTTP/3, and raw streams."""

from __future__ import annotations

import json
import sys
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import trio

from alknet.core.address import Address
from alknet.core.config import NodeConfig, WebCertificateFiles
from alknet.core.contracts import Connection, ConnectionEnded, Stream
from alknet.http.placeholder import BODY
from alknet.node import Node
from tests.core.tls.pki import INTERMEDIATE, ROOT, leaf, write_chain, write_key
from tests.interop.programs import run
from tests.scenarios.rig import bystander

pytestmark = [pytest.mark.interop, pytest.mark.slow]

NAME = "node.test"
ECHO_ALPN = "test/echo"
LIBRARIES = ["aioquic", "qh3"]
MIB = 1024 * 1024


@dataclass
class Echo:
    """Sends back what comes on each stream, and notes from where."""

    alpns: tuple[str, ...] = (ECHO_ALPN,)
    requires_identity: bool = False
    addresses: set[str] = field(default_factory=set)

    async def handle(self, connection: Connection) -> None:
        async with trio.open_nursery() as nursery:
            try:
                while True:
                    stream = await connection.accept_stream()
                    self.addresses.add(connection.remote_address)
                    nursery.start_soon(self._echo, stream)
            except ConnectionEnded:
                return

    async def _echo(self, stream: Stream) -> None:
        async with stream:
            while data := await stream.receive_some():
                await stream.send_all(data)


@asynccontextmanager
async def web_node(directory: Path, *handlers: Any) -> AsyncGenerator[tuple[Node, Path]]:
    """Run a node with a certificate of an authority; yield that authority's file too."""
    certificate = leaf(INTERMEDIATE, NAME)
    files = WebCertificateFiles(
        (NAME,),
        write_chain(directory / "chain.pem", *certificate.chain),
        write_key(directory / "key.pem", certificate.key),
    )
    config = NodeConfig(listen=(Address("127.0.0.1", 0),), web_certificates=(files,))
    async with Node(config=config, handlers=handlers) as node:
        yield node, write_chain(directory / "ca.pem", ROOT.certificate)


async def client(
    library: str, node: Node, ca: Path, *steps: str, alpn: str = "h3", name: str = NAME
) -> tuple[int, str]:
    """Run a client through *steps*; return its exit status and what it printed last."""
    wanted = {
        "library": library,
        "port": node.ticket.addresses[0].port,
        "alpn": alpn,
        "ca": str(ca),
        "server_name": name,
        "steps": steps,
    }
    command = (sys.executable, "-m", "tests.interop.quic_client", json.dumps(wanted))
    status, said = await run(*command, within_s=180)
    return status, said.strip().rpartition("\n")[2]


@pytest.mark.parametrize("library", LIBRARIES)
async def test_a_stock_client_verifies_the_certificate_and_gets_404(
    library: str, tmp_path: Path
) -> None:
    async with web_node(tmp_path) as (node, ca), bystander(node, "quic"):
        status, said = await client(library, node, ca, "get /", "get /any/page")
        assert status == 0, said
        answer = {"status": "404", "body": BODY.decode()}
        assert json.loads(said) == [answer, answer]


@pytest.mark.parametrize("library", LIBRARIES)
async def test_a_stock_client_refuses_a_certificate_of_another_name_or_authority(
    library: str, tmp_path: Path
) -> None:
    async with web_node(tmp_path) as (node, ca):
        status, _ = await client(library, node, ca, "get /", name="other.test")
        assert status != 0
        other = write_chain(tmp_path / "other.pem", leaf(ROOT, "x").chain[0])
        status, _ = await client(library, node, other, "get /")
        assert status != 0


@pytest.mark.parametrize("library", LIBRARIES)
async def test_a_mebibyte_goes_both_ways_through_key_updates(library: str, tmp_path: Path) -> None:
    async with web_node(tmp_path, Echo()) as (node, ca):
        steps = (f"echo {MIB}", "update_keys", f"echo {MIB}", "update_keys", "echo 10")
        status, said = await client(library, node, ca, *steps, alpn=ECHO_ALPN)
        assert status == 0, said
        assert json.loads(said) == ["same", None, "same", None, "same"]


async def test_a_stock_client_goes_on_from_another_port(tmp_path: Path) -> None:
    echo = Echo()
    async with web_node(tmp_path, echo) as (node, ca):
        steps = (f"echo {MIB}", "migrate", f"echo {MIB}")
        status, said = await client("aioquic", node, ca, *steps, alpn=ECHO_ALPN)
        assert status == 0, said
        first, port, last = json.loads(said)
        assert (first, last) == ("same", "same")
        assert len(echo.addresses) == 2
        assert f"127.0.0.1:{port}" in echo.addresses


async def test_an_alpn_that_nobody_serves_is_refused(tmp_path: Path) -> None:
    async with web_node(tmp_path) as (node, ca), bystander(node, "quic"):
        status, said = await client("aioquic", node, ca, "get /", alpn="test/none")
        assert status != 0
        assert "ConnectionError" in said or "No common protocol" in said

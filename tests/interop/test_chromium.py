"""Chromium, which wants HTTP/3 over QUIC and nothing else from the port of a whole node."""

from __future__ import annotations

import base64
import hashlib
import logging
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from alknet.http.placeholder import BODY
from alknet.node import Node
from alknet.testing.nodes import open_node
from tests.interop.programs import find, run
from tests.scenarios.rig import bystander

pytestmark = [pytest.mark.interop, pytest.mark.slow]

NAME = "node.test"
# Without these it talks to its maker, to a GPU, and to desktop services that are not there.
QUIET = (
    *("--headless", "--disable-gpu", "--no-first-run", "--disable-background-networking"),
    *("--disable-component-update", "--disable-sync", "--disable-dev-shm-usage"),
    "--no-sandbox",  # root has none, and the page is ours
)
PATIENCE_S = 120.0  # it is big, and starts several processes


def spki_hash(node: Node) -> str:
    """The key of the node's own web certificate, as Chromium names it."""
    key = node.credentials.web_certificate(NAME).key.public_key()
    der = key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    return base64.b64encode(hashlib.sha256(der).digest()).decode()


async def page(node: Node, home: Path, *options: str) -> str:
    """Return the document that Chromium makes of the node's first page, or what it says."""
    port = node.ticket.addresses[0].port
    command = [
        *("env", f"HOME={home}", find("chromium"), *QUIET, f"--user-data-dir={home / 'profile'}"),
        f"--host-resolver-rules=MAP {NAME} 127.0.0.1",
        f"--origin-to-force-quic-on={NAME}:{port}",
        *(*options, "--dump-dom", f"https://{NAME}:{port}/"),
    ]
    _, said = await run(*command, within_s=PATIENCE_S)
    return said


async def test_chromium_shows_404_over_quic(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, logger="alknet")
    async with open_node() as node, bystander(node, "quic"):
        trusted = f"--ignore-certificate-errors-spki-list={spki_hash(node)}"
        assert BODY.decode().strip() in await page(node, tmp_path, trusted)
    accepted = [one.__dict__ for one in caplog.records if one.message == "connection.accepted"]
    assert ("h3", "quic") in {(one["alpn"], one["carrier"]) for one in accepted}
    assert not [one for one in accepted if one["carrier"] == "tcp"]


async def test_chromium_does_not_trust_a_certificate_that_nobody_vouches_for(
    tmp_path: Path,
) -> None:
    async with open_node() as node, bystander(node, "quic"):
        assert BODY.decode().strip() not in await page(node, tmp_path)

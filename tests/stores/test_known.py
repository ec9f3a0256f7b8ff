"""Trust on first use: explicit, stored, and it shouts on change."""

from __future__ import annotations

from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from alknet.client import open_session
from alknet.core.endpoint.dial import DialError
from alknet.core.identity import NodeId
from alknet.errors import Denied, StoreError
from alknet.stores.known import KNOWN_FILE, KnownNodes
from alknet.testing.nodes import open_node


def new_id() -> NodeId:
    return NodeId.from_public_key(Ed25519PrivateKey.generate().public_key())


async def test_the_first_key_is_remembered_and_another_one_refused(tmp_path: Path) -> None:
    known, first = KnownNodes(tmp_path), new_id()
    await known.check("a.example:4433", first)
    await known.check("a.example:4433", first)
    await known.check("b.example:4433", new_id())
    with pytest.raises(Denied, match="HAS CHANGED"):
        await KnownNodes(tmp_path).check("a.example:4433", new_id())
    assert (tmp_path / KNOWN_FILE).stat().st_mode & 0o777 == 0o600


async def test_a_damaged_file_trusts_nobody(tmp_path: Path) -> None:
    (tmp_path / KNOWN_FILE).write_text("{")
    with pytest.raises(StoreError, match="cannot read"):
        await KnownNodes(tmp_path).check("a.example:4433", new_id())
    assert (tmp_path / KNOWN_FILE).read_text() == "{"


@pytest.mark.parametrize("transport", ["quic", "tcp"])
async def test_a_bare_address_is_dialled_only_when_asked_to_trust(
    tmp_path: Path, transport: str
) -> None:
    known = KnownNodes(tmp_path)
    async with open_node() as node:
        address = node.ticket.addresses[0]
        with pytest.raises(DialError):
            async with open_session(address, transports=[transport]):
                pass
        async with open_session(address, transports=[transport], known_nodes=known) as session:
            assert session.connection.peer_key == node.id
            await session.call("node/ping", {})


@pytest.mark.parametrize("transport", ["quic", "tcp"])
async def test_a_changed_key_is_refused_before_anything_is_sent(
    tmp_path: Path, transport: str
) -> None:
    known = KnownNodes(tmp_path)
    async with open_node() as node:
        address = node.ticket.addresses[0]
        await known.check(str(address), new_id())
        with pytest.raises(Denied, match="HAS CHANGED"):
            async with open_session(address, transports=[transport], known_nodes=known):
                pass

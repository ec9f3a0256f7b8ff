"""Mistakes of the caller come out as what they are; what loses a race is closed."""

from __future__ import annotations

from pathlib import Path

import pytest
import trio

from alknet.core.address import Address
from alknet.core.contracts import Connection
from alknet.core.endpoint.dial import _Race, dial
from alknet.core.limits import Limits
from alknet.core.scopes import open_background
from alknet.core.tls.trust import PinnedKey, WebPki
from alknet.errors import LocalError
from alknet.testing.nodes import open_node
from tests.core.test_dial import silent_port


@pytest.mark.parametrize("transport", ["quic", "tcp"])
@pytest.mark.parametrize("text", [None, "no certificate"])
async def test_an_unusable_file_of_authorities_is_a_mistake_of_the_caller(
    tmp_path: Path, transport: str, text: str | None
) -> None:
    ca_file = tmp_path / "ca.pem"
    if text is not None:
        ca_file.write_text(text)
    async with open_node() as node:
        address = Address.parse(node.listening[0].address)
        trust = WebPki("127.0.0.1", ca_file)
        with pytest.raises(LocalError, match=r"ca\.pem"):
            async with dial([address], alpn="alknet/call", trust=trust, transports=[transport]):
                pass


async def test_a_connection_that_loses_by_a_hair_is_closed() -> None:
    """Two handshakes end in one tick: the second has a connection that nobody will have."""
    async with open_node() as node, open_background() as nursery:
        address = Address.parse(node.listening[0].address)
        trust = PinnedKey(node.id)
        race = _Race(nursery, "alknet/call", trust, None, Limits())
        first, second = [await race._connect_tcp(address) for _ in range(2)]
        race._won(first)
        race._won(second)
        with trio.fail_after(60):
            while len(node.endpoint.connections()) != 1:
                await trio.sleep(0.01)
        assert first.close_reason is None
        await first.aclose()


@pytest.mark.parametrize("transport", ["quic", "tcp"])
async def test_a_connection_that_wins_a_dial_as_it_is_cancelled_is_closed(
    transport: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While the attempts that have lost are being ended, whoever dialled goes away."""
    won: list[Connection] = []
    scope = trio.CancelScope()

    class Hasty(_Race):
        def _won(self, connection: Connection) -> None:
            super()._won(connection)
            won.append(connection)
            scope.cancel()

    monkeypatch.setattr("alknet.core.endpoint.dial._Race", Hasty)
    async with open_node() as node:
        with silent_port() as silent, scope:
            async with dial(
                [*node.ticket.addresses, silent],
                alpn="alknet/call",
                trust=PinnedKey(node.id),
                transports=[transport],
                limits=Limits(handshake_timeout_s=30, dial_timeout_s=30),
            ):
                pytest.fail("connected")
        assert scope.cancelled_caught
    (connection,) = won
    assert connection.close_reason is not None
    assert not connection.close_reason.by_peer

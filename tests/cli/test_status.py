from __future__ import annotations

import msgspec
import pytest

from alknet.cli.status import _show
from alknet.testing.nodes import open_node, open_peer_session
from tests.scenarios.shells import Shells


async def test_what_handlers_have_spawned_is_counted_by_type(
    capsys: pytest.CaptureFixture[str],
) -> None:
    async with (
        open_node(operations=Shells().operations()) as node,
        open_peer_session(node, scopes=["shell"], transports=["tcp"]) as session,
    ):
        _show(msgspec.json.encode(node.status()))
        assert "resources" not in capsys.readouterr().out
        for _ in range(2):
            await session.call("shell/open")
        _show(msgspec.json.encode(node.status()))
        assert "resources  2 shell\n" in capsys.readouterr().out

"""A node that refuses the caller as a whole says FORBIDDEN, not that it cannot be reached."""

from __future__ import annotations

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from alknet.call.codes import CallError, ExitStatus, exit_status
from alknet.client import open_session
from alknet.core.identity import NodeId, Peer
from alknet.testing.nodes import open_node


@pytest.mark.parametrize("transport", ["quic", "tcp"])
async def test_a_disabled_peer_is_denied(transport: str) -> None:
    key = Ed25519PrivateKey.generate()
    disabled = Peer(
        name="gone",
        fingerprints=(NodeId.from_public_key(key.public_key()).fingerprint,),
        enabled=False,
    )
    async with (
        open_node(peers=[disabled]) as node,
        open_session(node.ticket, key=key, transports=[transport]) as session,
    ):
        with pytest.raises(CallError) as caught:
            await session.call("node/ping")
    assert caught.value.code == "FORBIDDEN"
    assert exit_status(caught.value) == ExitStatus.DENIED

"""An operation that never waits must not stop the node."""

from __future__ import annotations

import trio

from alknet.core.contracts import CloseCode
from tests.call.sessions import Operations, raw_peer


async def test_a_subscription_that_never_waits_does_not_hold_up_the_close() -> None:
    operations = Operations()
    async with raw_peer("memory", operations) as (peer, server):
        await peer.request("s1", "echo/endless")
        await peer.receive()
        server.end(CloseCode.LIMIT, "enough")
        # The outbox is finished now: without care, its items go nowhere and the node stands still.
        with trio.fail_after(30):
            await peer.stream.send_eof()
            while await peer.receive() is not None:
                pass
            reason = await peer.connection.wait_closed()
        assert reason.code == CloseCode.LIMIT
        assert operations.running == 0

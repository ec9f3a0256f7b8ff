"""STOP_SENDING: nobody waits for the answer any more."""

from __future__ import annotations

import trio

from tests.call.sessions import Operations, raw_peer


async def test_stop_sending_ends_a_call_that_has_nothing_to_send_yet() -> None:
    operations = Operations()
    async with raw_peer("memory", operations) as (peer, server):
        await peer.request("s1", "echo/slow")
        await peer.stream.send_eof()
        await trio.testing.wait_all_tasks_blocked()
        assert operations.running == 1
        peer.stream.stop_sending(0)
        await trio.testing.wait_all_tasks_blocked()
        assert operations.running == 0
        assert not server.lanes.streams

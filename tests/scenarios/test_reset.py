"""kill -9 of a node that then comes back: its old connections end at once, not when they time out.

The limits are the defaults here, so an end by time-out would take 30 s and say so.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from alknet.call.codes import CallError
from alknet.call.session import CallSession
from alknet.client import open_session
from alknet.core.limits import Limits
from alknet.node import Node
from alknet.vault.resetkey import RESET_KEY_FILE
from tests.scenarios.homes import make_home, process_node, steady_address
from tests.scenarios.rig import make_friend

RESET = "stateless reset: the peer has lost its state"
# A machine that is busy with other tests; still far from the 30 s of a time-out.
WITHIN_S = 20

pytestmark = pytest.mark.slow


@asynccontextmanager
async def killed_amid_a_call(
    directory: Path, limits: Limits
) -> AsyncGenerator[tuple[CallSession, list[CallError]]]:
    """Yield a session whose node was killed and is back, and how its running call has ended."""
    friend = make_friend("friend", "echo")
    home = await make_home(directory, friend.peer)
    where = str(steady_address())
    errors: list[CallError] = []

    async def call(session: CallSession) -> None:
        with pytest.raises(CallError) as caught:
            await session.call("echo/unary", {"message": 1, "delay_ms": 60_000})
        errors.append(caught.value)

    async with trio.open_nursery() as nursery:
        async with process_node(home, listen=where) as node:
            session = await nursery.start(_hold_session, node.ticket, friend.key, limits)
            nursery.start_soon(call, session)
            await session.call("node/ping")
            node.kill()
        async with process_node(home, listen=where):
            yield session, errors
        nursery.cancel_scope.cancel()


async def _hold_session(
    ticket: str,
    key: Ed25519PrivateKey,
    limits: Limits,
    task_status: trio.TaskStatus[CallSession],
) -> None:
    async with open_session(ticket, key=key, transports=["quic"], limits=limits) as session:
        task_status.started(session)
        await trio.sleep_forever()


async def _until_ended(errors: list[CallError]) -> None:
    with trio.fail_after(WITHIN_S):
        while not errors:
            await trio.sleep(0.01)


async def test_a_new_call_learns_that_the_node_has_lost_the_old_one(tmp_path: Path) -> None:
    patient = Limits(keep_alive_s=1_000)
    async with killed_amid_a_call(tmp_path, patient) as (session, errors):
        with trio.fail_after(WITHIN_S), pytest.raises(CallError) as caught:
            await session.call("node/ping")
        await _until_ended(errors)
        for error in (caught.value, *errors):
            assert error.code == "UNAVAILABLE"
            assert error.retryable
        assert session.close_reason is not None
        assert session.close_reason.reason == RESET
        assert session.close_reason.by_peer
        assert not session.calling.pending


async def test_a_keep_alive_learns_it_too(tmp_path: Path) -> None:
    async with killed_amid_a_call(tmp_path, Limits(keep_alive_s=0.1)) as (session, errors):
        await _until_ended(errors)
        assert errors[0].code == "UNAVAILABLE"
        assert session.close_reason is not None
        assert session.close_reason.reason == RESET


async def test_the_key_of_resets_is_made_once_and_private(tmp_path: Path) -> None:
    home = await make_home(tmp_path)
    path = home / RESET_KEY_FILE
    seen = []
    for _ in range(2):
        async with Node.from_home(home, listen=[]):
            seen.append(path.read_bytes())
            assert path.stat().st_mode & 0o777 == 0o600
    assert seen[0] == seen[1]
    assert len(seen[0]) == 32

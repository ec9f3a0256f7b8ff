"""`CallHandler`: sessions of connections, and tokens that end calls."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager

import pytest
import trio

from alknet.call.codes import CallError
from alknet.call.handler import CallHandler
from alknet.call.session import CallSession
from alknet.core.contracts import CloseCode, Connection, ProtocolHandler
from alknet.core.identity import Identity
from alknet.core.limits import Limits
from alknet.errors import Denied, Unavailable
from tests.call.sessions import CARRIERS, ChangingIdentities, Operations, handled

both = pytest.mark.parametrize("carrier", CARRIERS)
KEY = Identity("key:abc")


class Tokens(ChangingIdentities):
    """Tokens that can be revoked, expire, or be unknowable for a while."""

    def __init__(self, *tokens: str) -> None:
        super().__init__(dict.fromkeys(tokens, KEY))
        self.expires_at: float | None = None
        self.is_stale = False

    def identify_token(self, token: str) -> Identity:
        if self.is_stale:
            raise Unavailable("stale")
        if token not in self.tokens:
            raise Denied("token refused", is_failed_authentication=True)
        return self.tokens[token]

    def token_expires_at(self, identity: Identity) -> float | None:
        return self.expires_at


@asynccontextmanager
async def served(carrier: str, handler: CallHandler, *tokens: str) -> AsyncGenerator[CallSession]:
    assert isinstance(handler.dispatcher, Operations)
    handler.dispatcher.tokens.update(dict.fromkeys(tokens, KEY))
    async with handled(carrier, handler, None) as (client, _):
        yield client


async def _outcome(call: Callable[[], Awaitable[object]], into: list[str]) -> None:
    try:
        await call()
        into.append("ok")
    except CallError as exc:
        into.append(exc.code)


def _slow(client: CallSession, token: str | None) -> Callable[[], Awaitable[object]]:
    return lambda: client.call("echo/slow", token=token)


@both
async def test_it_is_a_handler_that_serves_strangers(carrier: str) -> None:
    handler = CallHandler(Operations(), Limits())
    assert isinstance(handler, ProtocolHandler)
    assert handler.alpns == ("alknet/call",)
    assert not handler.requires_identity
    async with served(carrier, handler) as client:
        assert await client.call_as(int, "echo/unary", 1) == 1
        assert len(handler.sessions) == 1
    assert not handler.sessions


@both
async def test_revoking_a_token_ends_its_running_calls_and_no_others(carrier: str) -> None:
    identities = Tokens("alk_one", "alk_two")
    handler = CallHandler(Operations(), Limits(), identities=identities)
    async with served(carrier, handler, "alk_one", "alk_two") as client:
        results: dict[str | None, list[str]] = {"alk_one": [], "alk_two": [], None: []}
        async with trio.open_nursery() as nursery:
            for token, into in results.items():
                nursery.start_soon(_outcome, _slow(client, token), into)
            await trio.testing.wait_all_tasks_blocked()
            identities.is_stale = True  # not knowing is not revoking
            identities.change()
            await trio.testing.wait_all_tasks_blocked()
            identities.is_stale = False
            del identities.tokens["alk_one"]
            identities.change()
            await trio.testing.wait_all_tasks_blocked()
            assert results == {"alk_one": ["FORBIDDEN"], "alk_two": [], None: []}
            nursery.cancel_scope.cancel()


@both
async def test_a_token_that_expires_ends_its_calls(
    carrier: str, autojump_clock: trio.testing.MockClock
) -> None:
    identities = Tokens("alk_one")
    identities.expires_at = 1_000_005.0
    handler = CallHandler(Operations(), Limits(), identities=identities, clock=lambda: 1_000_000.0)
    async with served(carrier, handler, "alk_one") as client:
        with pytest.raises(CallError, match="revoked") as caught:
            await client.call("echo/slow", token="alk_one")
        assert caught.value.code == "FORBIDDEN"
        assert 5 <= trio.current_time() < 5.5


@both
async def test_refused_tokens_are_reported_with_their_connection(carrier: str) -> None:
    reported: list[Connection] = []
    handler = CallHandler(
        Operations(), Limits(), identities=Tokens(), on_failed_authentication=reported.append
    )
    async with served(carrier, handler) as client:
        with pytest.raises(CallError, match="FORBIDDEN"):
            await client.call("echo/unary", token="alk_wrong")
        assert [connection.is_dialer for connection in reported] == [False]


@both
async def test_a_refused_token_too_many_elsewhere_ends_this_session(carrier: str) -> None:
    handler = CallHandler(
        Operations(),
        Limits(),
        identities=Tokens(),
        on_failed_authentication=lambda _connection: True,
    )
    async with served(carrier, handler) as client:
        with pytest.raises(CallError, match="FORBIDDEN"):  # answered all the same
            await client.call("echo/unary", token="alk_wrong")
        await client.connection.wait_closed()
        await trio.testing.wait_all_tasks_blocked()
        reason = client.close_reason
        assert reason is not None
        assert (reason.code, reason.by_peer) == (CloseCode.LIMIT, True)

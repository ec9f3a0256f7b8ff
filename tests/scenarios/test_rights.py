"""What a caller may do: tokens that reach for more, resources without a name, rights withdrawn."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from alknet.call.codes import CallError
from alknet.call.context import Context
from alknet.call.operations import operation, public, resource
from alknet.client import open_session
from alknet.core.contracts import CloseCode
from alknet.core.identity import Grant, Identity
from alknet.node import Node
from alknet.testing.nodes import open_node
from tests.scenarios.rig import (
    TRANSPORTS,
    bystander,
    ended,
    make_friend,
    new_token,
    raw_caller,
    refusal_at_the_door,
)

pytestmark = pytest.mark.parametrize("transport", TRANSPORTS)


async def refusal(session: Any, operation_name: str, value: object = None, **options: Any) -> str:
    with pytest.raises(CallError) as caught:
        await session.call(operation_name, value, timeout_s=60, **options)
    return str(caught.value)


@pytest.mark.parametrize(
    "scopes",
    [("*",), ("admin*",), ("a*",), ("owner",), ("admin",), ("adm*", "node*", "*")],
    ids=" ".join,
)
async def test_no_wildcard_reaches_a_reserved_scope(
    transport: str, scopes: tuple[str, ...]
) -> None:
    async with open_node() as node, bystander(node, transport):
        token = await new_token(node, *scopes, name="owner")
        async with open_session(node.ticket, transports=[transport]) as session:
            for name in ("node/status", "node/tasks"):
                error = await refusal(session, name, token=token)
                assert error == "FORBIDDEN: scope 'admin:node' missing"
            who = await session.call_as(dict[str, Any], "node/whoami", token=token)
            assert who["id"].startswith("key:")


async def test_no_remote_peer_can_be_the_owner(transport: str) -> None:
    friend = make_friend("friend", "*")
    async with (
        open_node(peers=[friend.peer]) as node,
        bystander(node, transport),
        open_session(node.ticket, key=friend.key, transports=[transport]) as session,
    ):
        assert "FORBIDDEN" in await refusal(session, "node/status")
        assert "FORBIDDEN" in await refusal(
            session, "node/status", forwarded_for=Identity("owner", ("admin:*",))
        )
        for token in ("owner", "alk_owner", ""):
            assert "FORBIDDEN" in await refusal(session, "node/status", token=token)


async def test_a_key_that_says_admin_is_admitted_so_that_the_refusals_mean_something(
    transport: str,
) -> None:
    async with open_node() as node, open_session(node.ticket, transports=[transport]) as session:
        token = await new_token(node, "admin:*")
        status = await session.call_as(dict[str, Any], "node/status", token=token)
        assert status["id"] == str(node.id)


async def test_bad_tokens_are_refused_in_one_sentence_even_on_public_operations(
    transport: str,
) -> None:
    async with (
        open_node() as node,
        bystander(node, transport),
        open_session(node.ticket, transports=[transport]) as session,
    ):
        good = await new_token(node, "echo")
        expired = await new_token(node, "echo", expires_in_s=-1)
        unknown = good[:13] + good[13:][::-1]
        errors = {
            await refusal(session, "node/ping", token=token)
            for token in (expired, unknown, "nonsense")
        }
        assert len(errors) == 1
        assert errors.pop().startswith("FORBIDDEN: ")
        assert b"1" in bytes(await session.call("echo/unary", {"message": 1}, token=good))


class Where(msgspec.Struct, omit_defaults=True):
    tty: str | None = None


@operation("tty/read", access=resource("tty", action="read"), resource_id_path="/tty")
async def read_tty(where: Where) -> str | None:
    """Read a terminal."""
    return where.tty


@pytest.mark.parametrize("value", [{}, {"tty": None}, {"tty": ""}])
async def test_an_id_left_out_is_invalid_input_whatever_the_grants(
    transport: str, value: dict[str, Any]
) -> None:
    friend = make_friend("friend", "*")
    all_of_them = msgspec.structs.replace(friend.peer, resources=(Grant("tty", "*"),))
    async with (
        open_node(peers=[all_of_them], operations=[read_tty]) as node,
        bystander(node, transport),
        open_session(node.ticket, key=friend.key, transports=[transport]) as session,
    ):
        with pytest.raises(CallError) as caught:
            await session.call("tty/read", value)
        assert caught.value.code == "INVALID_INPUT"
        assert caught.value.details == {"path": "/tty"}
        assert bytes(await session.call("tty/read", {"tty": "t1"})) == b'"t1"'
        async with open_session(node.ticket, transports=[transport]) as stranger:
            assert "FORBIDDEN" in await refusal(stranger, "tty/read", {"tty": "t1"})


@operation("peek/context", access=public())
async def peek(ctx: Context) -> str:
    """Show all that a handler can see of its call."""
    return repr(ctx) + repr(ctx.info) + repr(vars(ctx))


async def test_a_token_never_reaches_a_handler(transport: str) -> None:
    async with (
        open_node(operations=[peek]) as node,
        open_session(node.ticket, transports=[transport]) as session,
    ):
        token = await new_token(node, "echo")
        seen = bytes(await session.call("peek/context", token=token)).decode()
        assert f"key:{token[4:12]}" in seen
        assert token[13:] not in seen


async def test_five_refused_tokens_close_the_connection(transport: str) -> None:
    async with (
        open_node() as node,
        bystander(node, transport),
        open_session(node.ticket, transports=[transport]) as session,
    ):
        for _ in range(5):
            assert "FORBIDDEN" in await refusal(session, "node/ping", token="alk_guess")
        reason = await ended(session)
        assert reason.code == CloseCode.LIMIT
        assert "failed authentications" in reason.reason


async def test_twenty_refused_tokens_a_minute_shut_strangers_out_but_not_friends(
    transport: str,
) -> None:
    friend = make_friend("friend", "echo")
    async with open_node(peers=[friend.peer]) as node, bystander(node, transport):
        for _ in range(4):
            await _guess_until_closed(node, transport)
        error = await refusal_at_the_door(node, transport)
        assert "too many failed authentications from this address" in error
        async with open_session(node.ticket, key=friend.key, transports=[transport]) as session:
            await session.call("echo/unary", {"message": 1})


async def _guess_until_closed(node: Node, transport: str) -> None:
    async with raw_caller(node, transport) as guesser:
        for n in range(5):
            await guesser.request("node/ping", call_id=f"d{n}", auth_token="alk_guess")
        code, _ = await guesser.fault()
        assert code == CloseCode.LIMIT

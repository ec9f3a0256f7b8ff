"""Who gets what answer: the table of access outcomes, through the dispatcher."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import msgspec
import pytest

from alknet.call.codes import CallError
from alknet.call.context import Context
from alknet.call.operations import Operation, any_scope, operation, public, resource, scopes
from alknet.call.proto.events import Requested
from alknet.call.registry import Registry
from alknet.core.contracts import Connection
from alknet.core.identity import ANONYMOUS, OWNER, Identity
from alknet.errors import Unavailable
from alknet.testing.memory import memory_connection_pair
from alknet.testing.operations import FixedIdentities, FixedOwnership, admit_request, key, peer


class Box(msgspec.Struct):
    id: str = ""
    size: int = 0


@operation("t/public", access=public())
async def everybody(box: Box) -> str:
    return "ok"


@operation("t/all", access=scopes("a", "b"))
async def all_scopes(box: Box) -> str:
    return "ok"


@operation("t/any", access=any_scope("a", "b"))
async def some_scope(box: Box) -> str:
    return "ok"


@operation("t/admin", access=scopes("admin:node"))
async def admin(box: Box) -> str:
    return "ok"


@operation("t/open", access=resource("box", action="open"), resource_id_path="/id")
async def open_box(box: Box) -> str:
    return "ok"


@operation(
    "t/scoped", access=resource("box", action="open", scopes_all=["a"]), resource_id_path="/id"
)
async def scoped_box(box: Box) -> str:
    return "ok"


@operation("t/list", access=resource("box", scopes_all=["a"]))
async def list_boxes(ctx: Context, box: Box) -> list[str]:
    return ctx.visible("box", ["b1", "b2", "b3"])


@operation("t/internal", internal=True)
async def internal(box: Box) -> str:
    return "ok"


@operation("t/internal-public", internal=True, access=public())
async def internal_public(box: Box) -> str:
    return "ok"


REGISTRY: list[Operation[..., Any]] = [
    everybody,
    all_scopes,
    some_scope,
    admin,
    open_box,
    scoped_box,
    list_boxes,
    internal,
    internal_public,
]

OWNERSHIP = FixedOwnership({("peer:p", "box", "b1"), ("key:k", "box", "b2")})

TOKENS = {"t-a": key("k", "a"), "t-star": key("star", "*"), "t-admin": key("adm", "admin:node")}

AUTH = ("FORBIDDEN", "authentication required")


@pytest.fixture
async def connection() -> AsyncIterator[Connection]:
    async with memory_connection_pair() as (_, acceptor):
        yield acceptor


async def outcome(
    connection: Connection,
    name: str,
    identity: Identity,
    data: bytes = b"{}",
    **more: Any,
) -> object:
    connection.identity = identity
    request = Requested(id="d1", operation=name, input=msgspec.Raw(data), **more)
    try:
        call = admit_request(
            Registry(REGISTRY),
            connection,
            request,
            identities=FixedIdentities(TOKENS),
            ownership=OWNERSHIP,
        )
        return msgspec.json.decode(await call.run())
    except CallError as exc:
        return exc.code, exc.message


B1, B2, NO_ID = b'{"id":"b1"}', b'{"id":"b2"}', b'{"id":""}'
BAD = b'{"id":1}'
NEITHER = "neither owner of box 'b2' nor granted open on it"
MISSING = ("INVALID_INPUT", "invalid input at /id: a resource id is needed, a string")
INVALID = ("INVALID_INPUT", "invalid input at /id: expected `str`, got `int`")


@pytest.mark.parametrize(
    ("name", "identity", "data", "expected"),
    [
        # PUBLIC is for everybody.
        ("t/public", ANONYMOUS, b"{}", "ok"),
        ("t/public", peer("p"), b"{}", "ok"),
        ("t/public", OWNER, b"{}", "ok"),
        ("t/public", ANONYMOUS, BAD, INVALID),
        # All scopes.
        ("t/all", ANONYMOUS, b"{}", AUTH),
        ("t/all", peer("p"), b"{}", ("FORBIDDEN", "scope 'a' missing")),
        ("t/all", peer("p", "a"), b"{}", ("FORBIDDEN", "scope 'b' missing")),
        ("t/all", peer("p", "a", "b"), b"{}", "ok"),
        ("t/all", peer("p", "*"), b"{}", "ok"),
        ("t/all", OWNER, b"{}", "ok"),
        # One of the scopes.
        ("t/any", ANONYMOUS, b"{}", AUTH),
        ("t/any", peer("p"), b"{}", ("FORBIDDEN", "one of the scopes 'a', 'b' missing")),
        ("t/any", peer("p", "b"), b"{}", "ok"),
        ("t/any", OWNER, b"{}", "ok"),
        # Reserved scopes: no wildcard reaches them.
        ("t/admin", ANONYMOUS, b"{}", AUTH),
        ("t/admin", peer("p", "*"), b"{}", ("FORBIDDEN", "scope 'admin:node' missing")),
        ("t/admin", peer("p", "a*"), b"{}", ("FORBIDDEN", "scope 'admin:node' missing")),
        ("t/admin", peer("p", "admin:*"), b"{}", "ok"),
        ("t/admin", OWNER, b"{}", "ok"),
        # Nobody is taken for the owner by a name that looks like it.
        ("t/admin", peer("owner"), b"{}", ("FORBIDDEN", "scope 'admin:node' missing")),
        ("t/admin", key("owner"), b"{}", ("FORBIDDEN", "scope 'admin:node' missing")),
        # Resources: owner, or grant for the action.
        ("t/open", ANONYMOUS, B1, AUTH),
        ("t/open", peer("p"), B1, "ok"),
        ("t/open", peer("p"), B2, ("FORBIDDEN", NEITHER)),
        ("t/open", peer("q", grants=["box:b2:open"]), B2, "ok"),
        ("t/open", peer("q", grants=["box:b2"]), B2, "ok"),
        ("t/open", peer("q", grants=["box:*:open"]), B2, "ok"),
        ("t/open", peer("q", grants=["box:b2:close"]), B2, ("FORBIDDEN", NEITHER)),
        ("t/open", peer("q", grants=["jar:*"]), B2, ("FORBIDDEN", NEITHER)),
        ("t/open", peer("q", "*"), B2, ("FORBIDDEN", NEITHER)),
        ("t/open", key("p"), B1, ("FORBIDDEN", NEITHER.replace("b2", "b1"))),
        ("t/open", OWNER, B2, "ok"),
        # An id left out is invalid input, for the owner of everything too.
        ("t/open", peer("p"), b"{}", MISSING),
        ("t/open", peer("p"), NO_ID, MISSING),
        ("t/open", OWNER, b"{}", MISSING),
        # Who lacks the scopes learns nothing about the input.
        ("t/open", ANONYMOUS, BAD, AUTH),
        ("t/open", ANONYMOUS, b"{}", AUTH),
        ("t/open", peer("p"), BAD, INVALID),
        ("t/scoped", peer("p"), B1, ("FORBIDDEN", "scope 'a' missing")),
        ("t/scoped", peer("p"), BAD, ("FORBIDDEN", "scope 'a' missing")),
        ("t/scoped", peer("p", "a"), BAD, INVALID),
        ("t/scoped", peer("p", "a"), B1, "ok"),
        ("t/scoped", peer("p", "a"), B2, ("FORBIDDEN", NEITHER)),
        # Lists: the scope admits, the handler filters.
        ("t/list", ANONYMOUS, b"{}", AUTH),
        ("t/list", peer("p"), b"{}", ("FORBIDDEN", "scope 'a' missing")),
        ("t/list", peer("p", "a"), b"{}", ["b1"]),
        ("t/list", peer("q", "a", grants=["box:b3"]), b"{}", ["b3"]),
        ("t/list", peer("q", "a"), b"{}", []),
        ("t/list", OWNER, b"{}", ["b1", "b2", "b3"]),
        # Internal ones are missing, for the owner too.
        ("t/internal", OWNER, b"{}", ("NOT_FOUND", "no operation named 't/internal'")),
        ("t/internal", ANONYMOUS, BAD, ("NOT_FOUND", "no operation named 't/internal'")),
        ("t/internal-public", peer("p", "*"), b"{}",
         ("NOT_FOUND", "no operation named 't/internal-public'")),
        ("t/none", OWNER, b"{}", ("NOT_FOUND", "no operation named 't/none'")),
    ],
)  # fmt: skip
async def test_outcome(
    connection: Connection, name: str, identity: Identity, data: bytes, expected: object
) -> None:
    assert await outcome(connection, name, identity, data) == expected
    assert await outcome(connection, "/" + name, identity, data) == expected


async def test_internal_looks_exactly_missing(connection: Connection) -> None:
    def error_for(name: str) -> bytes:
        request = Requested(id="d1", operation=name)
        with pytest.raises(CallError) as caught:
            admit_request(Registry(REGISTRY), connection, request)
        exc = caught.value
        answer = (exc.code, exc.message, exc.retryable, exc.details)
        return msgspec.json.encode(answer).replace(name.encode(), b"NAME")

    assert error_for("t/internal") == error_for("t/none") == error_for("t/internal-public")


@pytest.mark.parametrize(
    ("name", "token", "identity", "expected"),
    [
        # The token replaces the identity, whatever the connection is.
        ("t/any", "t-a", ANONYMOUS, "ok"),
        ("t/all", "t-a", peer("p", "a", "b"), ("FORBIDDEN", "scope 'b' missing")),
        ("t/admin", "t-a", OWNER, ("FORBIDDEN", "scope 'admin:node' missing")),
        # No token is the owner, and no wildcard reaches a reserved scope.
        ("t/admin", "t-star", ANONYMOUS, ("FORBIDDEN", "scope 'admin:node' missing")),
        ("t/admin", "t-admin", ANONYMOUS, "ok"),
        # A bad one is refused, also where none is needed.
        ("t/public", "bad", ANONYMOUS, ("FORBIDDEN", "token refused")),
        ("t/public", "", ANONYMOUS, ("FORBIDDEN", "token refused")),
        ("t/public", "owner", OWNER, ("FORBIDDEN", "token refused")),
        ("t/admin", "owner", ANONYMOUS, ("FORBIDDEN", "token refused")),
        ("t/none", "bad", ANONYMOUS, ("FORBIDDEN", "token refused")),
        ("t/internal", "bad", OWNER, ("FORBIDDEN", "token refused")),
    ],
)
async def test_token_outcome(
    connection: Connection, name: str, token: str, identity: Identity, expected: object
) -> None:
    assert await outcome(connection, name, identity, auth_token=token) == expected
    assert connection.identity is identity


async def test_token_owns_what_its_key_owns(connection: Connection) -> None:
    assert await outcome(connection, "t/open", peer("p"), B2, auth_token="t-a") == "ok"
    assert await outcome(connection, "t/open", peer("p"), B1, auth_token="t-a") == (
        "FORBIDDEN",
        NEITHER.replace("b2", "b1"),
    )


async def test_only_a_refused_token_is_a_failed_authentication(connection: Connection) -> None:
    async def is_failed(name: str, **more: Any) -> bool:
        with pytest.raises(CallError) as caught:
            admit_request(
                Registry(REGISTRY), connection, Requested(id="d1", operation=name, **more)
            )
        return caught.value.is_failed_authentication

    assert await is_failed("t/public", auth_token="bad")
    assert not await is_failed("t/all")
    assert not await is_failed("t/none")


async def test_stale_identities_are_unavailable(connection: Connection) -> None:
    class Stale(FixedIdentities):
        def identify_token(self, token: str) -> Identity:
            raise Unavailable("identities are stale", retry_after_s=0.5)

    with pytest.raises(CallError) as caught:
        admit_request(
            Registry(REGISTRY),
            connection,
            Requested(id="d1", operation="t/public", auth_token="t-a"),
            identities=Stale(),
        )
    exc = caught.value
    assert (exc.code, exc.retryable, exc.details) == ("UNAVAILABLE", True, {"retry_after_ms": 500})
    assert not exc.is_failed_authentication


async def test_forwarded_for_gives_no_right(connection: Connection) -> None:
    more: dict[str, Any] = {"forwarded_for": Identity("owner", ("*", "a", "b", "admin:node"))}
    assert await outcome(connection, "t/all", peer("p"), **more) == (
        "FORBIDDEN",
        "scope 'a' missing",
    )
    assert await outcome(connection, "t/list", peer("p", "a"), **more) == ["b1"]


async def test_the_checked_id_is_the_one_the_handler_gets(connection: Connection) -> None:
    # Doubled keys: the last counts, in the check and in the handler.
    assert await outcome(connection, "t/open", peer("p"), b'{"id":"b1","id":"b2"}') == (
        "FORBIDDEN",
        NEITHER,
    )

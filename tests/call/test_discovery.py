from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import msgspec
import pytest

from alknet.call.codes import CallError
from alknet.call.discovery import discovery_operations
from alknet.call.operations import ErrorSpec, Operation, operation, public, resource, scopes
from alknet.call.registry import Registry
from alknet.core.identity import ANONYMOUS, OWNER, Identity
from alknet.testing.operations import call_operation, peer


class Box(msgspec.Struct):
    id: str


class Left(msgspec.Struct):
    left: int


@operation("m/open", access=public())
async def everybody() -> int:
    """Say one."""
    return 1


@operation("m/scoped", access=scopes("m"))
async def scoped() -> AsyncIterator[int]:
    yield 1


@operation(
    "box/take",
    access=resource("box", action="take"),
    resource_id_path="/id",
    mutation=True,
    errors=[ErrorSpec("EMPTY", "nothing in it", Left, 409), ErrorSpec("SHUT")],
    max_duration_s=5,
    large_output=True,
)
async def take(box: Box) -> Box:
    """Take from a box.

    Gently.
    """
    return box


@operation("m/admin", access=scopes("admin:node"))
async def admin() -> int:
    return 1


@operation("m/hidden", internal=True)
async def hidden() -> int:
    return 1


@pytest.fixture
def operations() -> dict[str, Operation[..., Any]]:
    registry = Registry([everybody, scoped, take, admin, hidden])
    found = discovery_operations(registry)
    registry.extend(found, builtin=True)
    return {op.spec.name: op for op in found}


Operations = dict[str, Operation[..., Any]]

SERVICES = ["services/list", "services/schema", "services/watch"]


@pytest.mark.parametrize(
    ("identity", "names"),
    [
        (ANONYMOUS, ["m/open", *SERVICES]),
        (peer("p"), ["box/take", "m/open", *SERVICES]),
        (peer("p", "m"), ["box/take", "m/open", "m/scoped", *SERVICES]),
        (peer("p", "*"), ["box/take", "m/open", "m/scoped", *SERVICES]),
        (OWNER, ["box/take", "m/admin", "m/open", "m/scoped", *SERVICES]),
    ],
)
async def test_list_shows_what_the_caller_may_call(
    operations: Operations, identity: Identity, names: list[str]
) -> None:
    for full in (False, True):
        listed = await call_operation(
            operations["services/list"], {"with_schemas": full}, identity=identity
        )
        assert [entry["name"] for entry in listed["operations"]] == names


async def test_list_entries(operations: Operations) -> None:
    listed = await call_operation(operations["services/list"], {"prefix": "/m/"}, identity=OWNER)
    assert len(listed.pop("version")) == 32
    assert listed == {
        "operations": [
            {"name": "m/admin", "namespace": "m", "op_type": "query", "title": "",
             "description": ""},
            {"name": "m/open", "namespace": "m", "op_type": "query", "title": "Say one",
             "description": "Say one."},
            {"name": "m/scoped", "namespace": "m", "op_type": "subscription", "title": "",
             "description": ""},
        ]
    }  # fmt: skip


@pytest.mark.parametrize("name", ["box/take", "/box/take"])
async def test_schema_says_everything(operations: Operations, name: str) -> None:
    described = await call_operation(
        operations["services/schema"], {"name": name}, identity=peer("p")
    )
    box = {
        "title": "Box",
        "type": "object",
        "properties": {"id": {"type": "string"}},
        "required": ["id"],
    }
    assert described == {
        "name": "box/take",
        "namespace": "box",
        "op_type": "mutation",
        "title": "Take from a box",
        "description": "Take from a box.\n\nGently.",
        "input_schema": box,
        "output_schema": box,
        "error_schemas": [
            {
                "code": "EMPTY",
                "description": "nothing in it",
                "http_status": 409,
                "details_schema": {
                    "title": "Left",
                    "type": "object",
                    "properties": {"left": {"type": "integer"}},
                    "required": ["left"],
                },
            },
            {"code": "SHUT", "description": "", "http_status": 422, "details_schema": None},
        ],
        "access": {
            "public": False,
            "scopes_all": [],
            "scopes_any": [],
            "resource_type": "box",
            "action": "take",
        },
        "resource_id_path": "/id",
        "max_duration_s": 5,
        "large_output": True,
        "idempotent": False,
        "provenance": "local",
    }


async def test_a_full_list_is_the_schemas(operations: Operations) -> None:
    listed = await call_operation(
        operations["services/list"], {"with_schemas": True}, identity=OWNER
    )
    for entry in listed["operations"]:
        one = await call_operation(
            operations["services/schema"], {"name": entry["name"]}, identity=OWNER
        )
        assert one == entry


async def test_out_of_sight_is_missing_to_the_byte(operations: Operations) -> None:
    async def error_for(name: str, identity: Identity) -> bytes:
        with pytest.raises(CallError) as caught:
            await call_operation(operations["services/schema"], {"name": name}, identity=identity)
        exc = caught.value
        answer = (exc.code, exc.message, exc.retryable, exc.details)
        return msgspec.json.encode(answer).replace(name.encode(), b"NAME")

    missing = await error_for("m/none", ANONYMOUS)
    assert await error_for("m/hidden", OWNER) == missing
    assert await error_for("m/scoped", ANONYMOUS) == missing
    assert await error_for("m/admin", peer("p", "*")) == missing
    assert b"NOT_FOUND" in missing


async def test_schema_of_what_is_no_name(operations: Operations) -> None:
    with pytest.raises(CallError, match="NOT_FOUND"):
        await call_operation(operations["services/schema"], {"name": "x"})


async def test_discovery_is_marked_as_the_nodes_own(operations: Operations) -> None:
    described = await call_operation(operations["services/schema"], {"name": "services/list"})
    assert described["provenance"] == "builtin"
    assert described["access"]["public"]

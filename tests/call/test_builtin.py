from __future__ import annotations

from typing import Any

import pytest
import trio

from alknet.call.builtin import builtin_operations
from alknet.call.codes import CallError
from alknet.call.operations import Operation
from alknet.call.registry import Registry
from alknet.core.identity import ANONYMOUS, OWNER, NodeId
from alknet.testing.operations import call_operation, collect_items, peer

NODE = NodeId(bytes(range(32)))

Operations = dict[str, Operation[..., Any]]


@pytest.fixture
def operations() -> Operations:
    found = builtin_operations(
        NODE,
        version="1.2.3",
        alpns=lambda: ["alknet/call"],
        status=lambda: {"connections": 3},
        tasks=lambda: {"name": "node", "children": []},
        clock=lambda: 1234.5,
    )
    Registry().extend(found, builtin=True)
    return {op.spec.name: op for op in found}


async def test_ping(operations: Operations) -> None:
    answer = await call_operation(operations["node/ping"], identity=ANONYMOUS)
    assert answer == {"id": str(NODE), "time": 1234.5}


async def test_info(operations: Operations) -> None:
    answer = await call_operation(operations["node/info"], identity=ANONYMOUS)
    assert answer == {"id": str(NODE), "version": "1.2.3", "alpns": ["alknet/call"]}


async def test_whoami(operations: Operations) -> None:
    caller = peer("w1", "echo", grants=["box:b%3A1:open"])
    answer = await call_operation(operations["node/whoami"], identity=caller)
    assert answer == {
        "id": "peer:w1",
        "scopes": ["echo"],
        "resources": ["box:b%3A1:open"],
        "key": None,
        "address": "memory:dialer",
        "carrier": "memory",
    }
    stranger = await call_operation(operations["node/whoami"], identity=ANONYMOUS)
    assert stranger["id"] == "anonymous"


@pytest.mark.parametrize(
    ("name", "answer"),
    [("node/status", {"connections": 3}), ("node/tasks", {"name": "node", "children": []})],
)
async def test_status_and_tasks_are_for_the_owner(
    operations: Operations, name: str, answer: object
) -> None:
    assert await call_operation(operations[name], identity=OWNER) == answer
    for identity in (ANONYMOUS, peer("p"), peer("owner"), peer("p", "*"), peer("p", "a*")):
        with pytest.raises(CallError, match="FORBIDDEN"):
            await call_operation(operations[name], identity=identity)


@pytest.mark.parametrize("message", [None, 1, "text", [1, {"a": None}], {"b": 2.5}, ""])
async def test_echo_unary(operations: Operations, message: object) -> None:
    answer = await call_operation(
        operations["echo/unary"], {"message": message}, identity=peer("p", "echo")
    )
    assert answer == {"message": message}


@pytest.mark.parametrize(
    ("value", "path"),
    [
        ({}, "/message"),
        ({"message": 1, "delay_ms": -1}, "/delay_ms"),
        ({"message": 1, "delay_ms": 0.5}, "/delay_ms"),
        ({"message": 1, "delay_ms": 10**12}, "/delay_ms"),
    ],
)
async def test_echo_unary_refuses(operations: Operations, value: dict[str, Any], path: str) -> None:
    with pytest.raises(CallError) as caught:
        await call_operation(operations["echo/unary"], value)
    assert caught.value.details == {"path": path}


async def test_echo_unary_waits(
    operations: Operations, autojump_clock: trio.testing.MockClock
) -> None:
    before = trio.current_time()
    await call_operation(operations["echo/unary"], {"message": 1, "delay_ms": 1500})
    assert trio.current_time() - before == 1.5


async def test_echo_stream(operations: Operations, autojump_clock: trio.testing.MockClock) -> None:
    before = trio.current_time()
    items = await collect_items(
        operations["echo/stream"], {"count": 3, "interval_ms": 500}, identity=peer("p", "echo")
    )
    assert items == [{"n": 0}, {"n": 1}, {"n": 2}]
    assert trio.current_time() - before == 1.0
    assert await collect_items(operations["echo/stream"], {"count": 0}) == []


async def test_echo_stream_can_be_cancelled_without_interval(operations: Operations) -> None:
    with trio.move_on_after(0.01) as scope:
        await collect_items(operations["echo/stream"], {"count": 2**31 - 1})
    assert scope.cancelled_caught


@pytest.mark.parametrize("name", ["echo/unary", "echo/stream"])
async def test_echo_needs_its_scope(operations: Operations, name: str) -> None:
    for identity in (ANONYMOUS, peer("p")):
        with pytest.raises(CallError, match="FORBIDDEN"):
            await call_operation(operations[name], {"message": 1, "count": 1}, identity=identity)

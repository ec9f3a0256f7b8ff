"""Operations that calculate and remember who asked, and nodes that pass calls on to them."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import pytest
import trio

from alknet.call.codes import CallError
from alknet.call.context import Context
from alknet.call.operations import ErrorSpec, Operation, OperationError, operation, public, scopes
from alknet.testing.operations import peer
from tests.call.peers.federated import MemoryNode, rule

USER = peer("user", "math")


class Seen:
    """Operations that remember what their handlers saw."""

    def __init__(self) -> None:
        self.contexts: list[Context] = []
        self.running = 0
        self.sent = 0

    def operations(self) -> list[Operation[..., Any]]:
        return [
            self.add,
            self.sleep,
            self.count,
            self.total,
            self.double,
            self.fail,
            self.secret,
            self.hidden,
        ]

    @operation("math/add", access=scopes("calc"), mutation=True)
    async def add(self, ctx: Context, numbers: list[int]) -> int:
        self.contexts.append(ctx)
        return sum(numbers)

    @operation("math/sleep", access=scopes("calc"))
    async def sleep(self, ctx: Context) -> float:
        self.contexts.append(ctx)
        self.running += 1
        try:
            remaining_s = ctx.remaining_s
            await trio.sleep(3)
            return remaining_s
        finally:
            self.running -= 1

    @operation("math/count", access=scopes("calc"))
    async def count(self) -> AsyncIterator[str]:
        self.running += 1
        try:
            while True:
                self.sent += 1
                yield f"{self.sent}" + "x" * 20_000
        finally:
            self.running -= 1

    @operation("math/sum", access=scopes("calc"))
    async def total(self, items: AsyncIterator[int]) -> int:
        found = 0
        async for item in items:
            if item < 0:
                raise OperationError("INVALID_INPUT", "negative")
            found += item
        return found

    @operation("math/double", access=scopes("calc"))
    async def double(self, items: AsyncIterator[int]) -> AsyncIterator[int]:
        async for item in items:
            yield 2 * item

    @operation("math/fail", access=scopes("calc"), errors=[ErrorSpec("EMPTY")])
    async def fail(self) -> None:
        raise OperationError("EMPTY", "nothing there")

    @operation("secret/read", access=scopes("secret"))
    async def secret(self) -> str:
        return "secret"

    @operation("math/hidden", access=public(), internal=True)
    async def hidden(self) -> None: ...


def hub_and_worker(seen: Seen | None = None, **options: Any) -> tuple[MemoryNode, MemoryNode]:
    options.setdefault("rules", [rule(["w*", "any"], "math/*", scopes=["math"])])
    return MemoryNode("hub", **options), MemoryNode("w1", (seen or Seen()).operations())


async def code_of(awaitable: Any) -> str:
    with pytest.raises(CallError) as caught:
        await awaitable
    return caught.value.code


def chain(count: int, *, seen: Seen) -> list[MemoryNode]:
    """Return nodes of which each passes everything on to the next; the last has operations."""
    nodes = [MemoryNode(f"n{n}", rules=[rule("**", scopes=["pass"])]) for n in range(1, count)]
    return [*nodes, MemoryNode(f"n{count}", seen.operations(), rules=[rule("**")])]

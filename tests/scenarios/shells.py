"""Shells that callers open and own, as operations; run alone, a node that serves them.

``python -m tests.scenarios.shells HOME`` prints its ticket and serves until it is killed.
"""

from __future__ import annotations

import secrets
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import msgspec
import trio

from alknet.call.context import Context
from alknet.call.operations import Operation, operation, resource, scopes
from alknet.core.address import Address
from alknet.node import Node


class Shell(msgspec.Struct, frozen=True):
    """Which shell."""

    id: str


class Shells:
    """Shells of one node: they write down what they are told.

    Attributes:
        lines: What each open shell was told, by id.
    """

    def __init__(self) -> None:
        self.lines: dict[str, list[str]] = {}

    async def live(self, name: str, *, task_status: trio.TaskStatus[None]) -> None:
        self.lines[name] = []
        try:
            task_status.started()
            await trio.sleep_forever()
        finally:
            del self.lines[name]

    def operations(self) -> Sequence[Operation[..., Any]]:
        use = resource("shell", action="use")

        @operation("shell/open", access=scopes("shell"))
        async def open_shell(ctx: Context) -> Shell:
            """Open a shell, and own it."""
            name = secrets.token_hex(4)
            await ctx.own("shell", name, partial(self.live, name))
            ctx.log.info("shell.opened", extra={"shell": name})
            return Shell(name)

        @operation("shell/tell", access=use, resource_id_path="/id")
        async def tell(ctx: Context, shell: Shell) -> int:
            """Tell a shell something, and how often that was done."""
            self.lines[shell.id].append(ctx.identity.id)
            return len(self.lines[shell.id])

        @operation("shell/close", access=use, resource_id_path="/id")
        async def close(ctx: Context, shell: Shell) -> None:
            """Close a shell."""
            await ctx.release("shell", shell.id)

        @operation("shell/list", access=resource("shell", scopes_all=["shell"]))
        async def list_shells(ctx: Context) -> list[str]:
            """List the shells that the caller may use."""
            return ctx.visible("shell", list(self.lines), action="use")

        return open_shell, tell, close, list_shells


async def main(home: Path) -> None:
    shells = Shells().operations()
    listen = [Address("127.0.0.1", 0)]
    async with Node.from_home(home, listen=listen, operations=shells) as node:
        sys.stdout.write(f"{node.ticket}\n")
        sys.stdout.flush()
        await node.run_until_stopped()


if __name__ == "__main__":
    trio.run(main, Path(sys.argv[1]))

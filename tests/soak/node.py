"""The node under test, a process of its own: ``HOME``. It shows what it holds to its owner."""

from __future__ import annotations

import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import msgspec
import trio

from alknet.call.builtin import ADMIN_SCOPE
from alknet.call.operations import Operation, operation, scopes
from alknet.core.address import Address
from alknet.core.log import configure
from alknet.node import Node
from tests.soak.held import Held, held
from tests.soak.parent import cancel_with_parent

SCOPE = "soak"
ITEM = "x" * 16_384
MANY = 2_000


class Note(msgspec.Struct, frozen=True):
    text: str


@operation("soak/held", access=scopes(ADMIN_SCOPE))
async def soak_held() -> Held:
    """Show what the node's process holds."""
    return held()


@operation("soak/note", access=scopes(SCOPE), mutation=True)
async def soak_note(note: Note) -> int:
    """Take a text; say how long it is."""
    await trio.lowlevel.checkpoint()
    return len(note.text)


@operation("soak/pour", access=scopes(SCOPE))
async def soak_pour() -> AsyncIterator[str]:
    """Yield items as fast as they are taken."""
    for _ in range(MANY):
        yield ITEM


OPERATIONS: tuple[Operation[..., Any], ...] = (soak_held, soak_note, soak_pour)


async def main(home: Path) -> None:
    configure("warning", "json", sys.stderr)
    listen = [Address("127.0.0.1", 0)]
    async with (
        trio.open_nursery() as nursery,
        Node.from_home(home, listen=listen, operations=OPERATIONS) as node,
    ):
        nursery.start_soon(cancel_with_parent, nursery.cancel_scope)
        sys.stdout.write(f"{node.ticket}\n")
        sys.stdout.flush()
        await node.run_until_stopped()
        nursery.cancel_scope.cancel()


if __name__ == "__main__":
    trio.run(main, Path(sys.argv[1]))

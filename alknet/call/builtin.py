"""The operations that every node has beside discovery: ``node/…`` and ``echo/…``."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from typing import Annotated, Any

import msgspec
import trio
from msgspec import Meta

from alknet.call.context import Context
from alknet.call.operations import Operation, operation, public, scopes
from alknet.core.clock import WallClock, wall_clock
from alknet.core.identity import NodeId

__all__ = [
    "ADMIN_SCOPE",
    "ECHO_SCOPE",
    "Echo",
    "EchoInput",
    "NodeInfo",
    "Pong",
    "StreamInput",
    "StreamItem",
    "Uploaded",
    "WhoAmI",
    "builtin_operations",
    "echo_operations",
]

ADMIN_SCOPE = "admin:node"
"""Reserved: the owner has it, no ``*`` gives it, a grant must begin with ``admin:``."""

ECHO_SCOPE = "echo"

# A day: nobody waits longer for an echo, and the call's deadline ends it sooner.
Milliseconds = Annotated[int, Meta(ge=0, le=86_400_000)]


class Pong(msgspec.Struct, frozen=True):
    """Which node answered (z-base-32), and its wall clock in seconds since the Unix epoch."""

    id: str
    time: float


class NodeInfo(msgspec.Struct, frozen=True):
    """What a node tells everybody: its id (z-base-32), version, and the ALPNs that it serves."""

    id: str
    version: str
    alpns: list[str]


class Uploaded(msgspec.Struct, frozen=True):
    """How many items were sent."""

    count: int


class WhoAmI(msgspec.Struct, frozen=True):
    """How the node sees the caller.

    Attributes:
        id: ``peer:<name>``, ``key:<prefix>``, ``owner`` or ``anonymous``.
        scopes: What it is granted.
        resources: Static grants, ``type:id[:action]``.
        key: The key that its connection has proven, in z-base-32; null for none.
        address: Where its connection comes from.
        carrier: By what it comes: ``quic``, ``tcp``, ``memory`` or ``unix``.
    """

    id: str
    scopes: list[str]
    resources: list[str]
    key: str | None
    address: str
    carrier: str


class EchoInput(msgspec.Struct, frozen=True):
    """Any JSON, to be returned after a delay in milliseconds."""

    message: Any
    delay_ms: Milliseconds = 0


class Echo(msgspec.Struct, frozen=True):
    """What was sent."""

    message: Any


class StreamInput(msgspec.Struct, frozen=True):
    """How many items to send, and the milliseconds between two of them."""

    count: Annotated[int, Meta(ge=0, le=2**31 - 1)]
    interval_ms: Milliseconds = 0


class StreamItem(msgspec.Struct, frozen=True):
    """The number of the item: 0 to count-1."""

    n: int


def builtin_operations(
    node_id: NodeId,
    *,
    version: str,
    alpns: Callable[[], Sequence[str]],
    status: Callable[[], Mapping[str, Any]],
    tasks: Callable[[], Mapping[str, Any]],
    clock: WallClock = wall_clock,
) -> Sequence[Operation[..., Any]]:
    """Return the operations of a node, to be registered with ``builtin=True``.

    Args:
        node_id: Who answers.
        version: Of the program.
        alpns: The protocols that are served at the time.
        status: What ``node/status`` returns, JSON values; for the owner.
        tasks: The tree of tasks that ``node/tasks`` returns, JSON values; for the owner.
        clock: What ``node/ping`` says the time is.
    """

    @operation("node/ping", access=public())
    async def ping() -> Pong:
        """Say that the node lives, who it is and what its clock says."""
        return Pong(str(node_id), clock())

    @operation("node/info", access=public())
    async def info() -> NodeInfo:
        """Say what the node is and which protocols it serves."""
        return NodeInfo(str(node_id), version, list(alpns()))

    @operation("node/whoami", access=public())
    async def whoami(ctx: Context) -> WhoAmI:
        """Say whom the node takes the caller for."""
        key = ctx.remote.peer_key
        return WhoAmI(
            id=ctx.identity.id,
            scopes=list(ctx.identity.scopes),
            resources=[str(grant) for grant in ctx.identity.resources],
            key=None if key is None else str(key),
            address=ctx.remote.address,
            carrier=ctx.remote.carrier,
        )

    @operation("node/status", access=scopes(ADMIN_SCOPE))
    async def node_status() -> dict[str, Any]:
        """Show listeners, connections, peers and calls."""
        return dict(status())

    @operation("node/tasks", access=scopes(ADMIN_SCOPE))
    async def node_tasks() -> dict[str, Any]:
        """Show the tree of running tasks."""
        return dict(tasks())

    return ping, info, whoami, node_status, node_tasks, *echo_operations()


def echo_operations() -> Sequence[Operation[..., Any]]:
    """Return the operations ``echo/…``, one of each kind, to try things out and to measure."""

    @operation("echo/unary", access=scopes(ECHO_SCOPE))
    async def unary(sent: EchoInput) -> Echo:
        """Return the message, after a delay if one is asked for."""
        await trio.sleep(sent.delay_ms / 1000)
        return Echo(sent.message)

    @operation("echo/stream", access=scopes(ECHO_SCOPE))
    async def stream(wanted: StreamInput) -> AsyncIterator[StreamItem]:
        """Send the numbers from 0 to count-1, with an interval between them if asked for."""
        for n in range(wanted.count):
            await trio.sleep(wanted.interval_ms / 1000 if n else 0)
            yield StreamItem(n)

    @operation("echo/upload", access=scopes(ECHO_SCOPE))
    async def upload(items: AsyncIterator[Any]) -> Uploaded:
        """Count the items that are sent."""
        count = 0
        async for _ in items:
            count += 1
        return Uploaded(count)

    @operation("echo/bidi", access=scopes(ECHO_SCOPE))
    async def bidi(items: AsyncIterator[Any]) -> AsyncIterator[Any]:
        """Send each item back."""
        async for item in items:
            yield item

    return unary, stream, upload, bidi

"""Nodes in memory, with real dispatchers, that call one another's operations."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager
from itertools import pairwise
from typing import Any

import trio

from alknet.call.dispatch import OperationDispatcher
from alknet.call.operations import Operation
from alknet.call.peers import PeerEnvironment
from alknet.call.registry import Registry
from alknet.call.session import CallSession
from alknet.core.identity import Identity
from alknet.core.limits import Limits
from alknet.testing.memory import memory_connection_pair
from alknet.testing.operations import FixedIdentities, FixedOwnership
from tests.call.peers.fleet import offers

LIMITS = Limits()


class MemoryNode:
    """A node without a transport.

    Attributes:
        name: What the others call it.
        peers: Whom its operations can call.
        sessions: Its ends of its connections.
    """

    def __init__(self, name: str, operations: Sequence[Operation[..., Any]] = ()) -> None:
        self.name = name
        self.names = [operation.spec.name for operation in operations]
        self.peers = PeerEnvironment()
        self.dispatcher = OperationDispatcher(
            Registry(operations),
            identities=FixedIdentities(),
            ownership=FixedOwnership(),
            limits=LIMITS,
            peers=self.peers,
        )
        self.sessions: list[CallSession] = []

    @property
    def is_idle(self) -> bool:
        """No call runs here, made or served."""
        return not any(
            session.serving.calls or session.calling.pending for session in self.sessions
        ) and not any(peer.in_flight for peer in self.peers)


async def link(
    caller: MemoryNode,
    callee: MemoryNode,
    *,
    scopes: tuple[str, ...] = ("*",),
    task_status: trio.TaskStatus[CallSession] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Connect two nodes, and attach *callee* where *caller* finds it; report *caller*'s session."""
    async with (
        memory_connection_pair(alpn="alknet/call", limits=LIMITS) as (dialer, acceptor),
        trio.open_nursery() as nursery,
    ):
        acceptor.identity = Identity(f"peer:{caller.name}", scopes)
        ours = CallSession(dialer, caller.dispatcher, limits=LIMITS)
        theirs = CallSession(acceptor, callee.dispatcher, limits=LIMITS)
        await nursery.start(ours.run)
        await nursery.start(theirs.run)
        caller.sessions.append(ours)
        callee.sessions.append(theirs)
        with caller.peers.attach(callee.name, ours) as peer:
            peer.set_operations(ours, offers(callee.names), "1")
            task_status.started(ours)
            await trio.sleep_forever()


@asynccontextmanager
async def chain(*nodes: MemoryNode) -> AsyncGenerator[CallSession]:
    """Link each node to the next, and yield the first one's session."""
    async with trio.open_nursery() as nursery:
        made = [await nursery.start(link, caller, callee) for caller, callee in pairwise(nodes)]
        yield made[0]
        nursery.cancel_scope.cancel()

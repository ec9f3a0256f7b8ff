"""Nodes without a network: dispatchers that serve one another over connections in memory."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

from alknet.call.discovery import discovery_operations
from alknet.call.dispatch import OperationDispatcher
from alknet.call.operations import Operation
from alknet.call.registry import Registry
from alknet.call.session import CallSession
from alknet.core.identity import Identity
from alknet.core.limits import Limits
from alknet.core.scopes import open_background
from alknet.testing.operations import FixedIdentities, FixedOwnership, peer
from tests.call.sessions import connections

__all__ = ["CALLER", "Hop", "open_hop"]

CALLER = peer("caller", "*")


class Hop:
    """One node that serves, and those who call it.

    Attributes:
        dispatcher: What it serves.
        served: Its ends of the sessions that `connect` made.
    """

    def __init__(self, dispatcher: OperationDispatcher, limits: Limits) -> None:
        self.dispatcher = dispatcher
        self.served: list[CallSession] = []
        self._limits = limits

    @asynccontextmanager
    async def connect(
        self, identity: Identity = CALLER, carrier: str = "memory"
    ) -> AsyncGenerator[CallSession]:
        """Give a session to this node, which knows the caller as *identity*."""
        async with AsyncExitStack() as stack:
            pair = connections(carrier, self._limits, identity)
            dialer, acceptor = await stack.enter_async_context(pair)
            nursery = await stack.enter_async_context(open_background())
            served = CallSession(acceptor, self.dispatcher, limits=self._limits)
            self.served.append(served)
            await nursery.start(served.run)
            caller = CallSession(dialer, None, limits=self._limits)
            await nursery.start(caller.run)
            yield caller


@asynccontextmanager
async def open_hop(
    *operations: Operation[..., Any], limits: Limits | None = None
) -> AsyncGenerator[Hop]:
    """Run a node with *operations* and those of discovery; at the end all it runs is cancelled."""
    limits = limits or Limits()
    registry = Registry(operations)
    registry.extend(discovery_operations(registry), builtin=True)
    dispatcher = OperationDispatcher(
        registry, identities=FixedIdentities(), ownership=FixedOwnership(), limits=limits
    )
    async with open_background() as nursery:
        await nursery.start(dispatcher.survivors.serve)
        yield Hop(dispatcher, limits)

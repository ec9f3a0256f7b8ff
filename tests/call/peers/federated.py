"""Nodes in memory that call each other's operations: all of a node but its store and listeners."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Collection, Iterable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import trio
import trio.testing

from alknet.call.discovery import discovery_operations
from alknet.call.dispatch import OperationDispatcher
from alknet.call.operations import Operation
from alknet.call.peers import PeerEnvironment
from alknet.call.peers.federation import Federation
from alknet.call.peers.service import run_attached
from alknet.call.registry import Registry
from alknet.call.session import CallSession
from alknet.core.access import AccessRules
from alknet.core.config import NodeConfig
from alknet.core.config_re_export import FederationTable, ReExport
from alknet.core.globs import Glob
from alknet.core.identity import Identity, NodeId, Peer
from alknet.core.limits import Limits
from alknet.testing.operations import FixedOwnership, peer
from tests.call.sessions import ChangingIdentities, connections


def rule(
    peers: str | Sequence[str],
    operations: str | Sequence[str] = "**",
    *,
    scopes: Sequence[str] = (),
) -> ReExport:
    """Return a rule; without *scopes* everybody may."""
    return ReExport(
        tuple(map(Glob, [peers] if isinstance(peers, str) else peers)),
        tuple(map(Glob, [operations] if isinstance(operations, str) else operations)),
        AccessRules(scopes_all=tuple(scopes)) if scopes else AccessRules(public=True),
    )


class MemoryNode:
    """A node.

    Attributes:
        peers: The environment.
        known: Names of peers that it has a record of.
        sessions: By the name of the peer, newest last.
    """

    def __init__(
        self,
        name: str,
        operations: Iterable[Operation[..., Any]] = (),
        *,
        rules: Sequence[ReExport] = (),
        federation: FederationTable | None = None,
        tokens: Mapping[str, Identity] | None = None,
        limits: Limits | None = None,
        builtin: Sequence[Operation[..., Any]] = (),
        offerers: Collection[str] | None = None,
    ) -> None:
        """Make one; *offerers* are the peers that may offer, by default all."""
        self.name = name
        self.id = NodeId(name.encode().ljust(32, b"\0"))
        self.config = NodeConfig(
            limits=limits or Limits(),
            re_exports=tuple(rules),
            federation=federation or FederationTable(),
        )
        self.peers = PeerEnvironment(self.id)
        self.registry = Registry(operations)
        discovery = discovery_operations(
            self.registry,
            at_peer=lambda *asked: self.federation.describe(*asked),  # noqa: PLW0108  made later
        )
        self.registry.extend((*discovery, *builtin), builtin=True)
        self.known: set[str] = set()
        self.identities = KnownPeers(tokens, self.known, offerers)
        self.federation = Federation(self.peers, self.registry, self.identities, self.config)
        self.dispatcher = OperationDispatcher(
            self.registry,
            identities=self.identities,
            ownership=FixedOwnership(),
            limits=self.config.limits,
            peers=self.peers,
        )
        self.dispatcher.forwarder = self.federation.forwarder
        self.sessions: dict[str, list[CallSession]] = {}

    def session(self, name: str) -> CallSession:
        """Return the newest session with a peer."""
        return self.sessions[name][-1]

    def calls(self) -> int:
        """Return how many calls run in both directions, watches apart."""
        return sum(
            len([c for c in session.serving.calls.values() if c.operation != "services/watch"])
            for sessions in self.sessions.values()
            for session in sessions
        )


class World:
    """Nodes, and the connections between them."""

    def __init__(self, nursery: trio.Nursery, carrier: str) -> None:
        self._nursery = nursery
        self._carrier = carrier

    async def link(
        self,
        dialer: MemoryNode,
        acceptor: MemoryNode,
        *,
        scopes: Sequence[str] = ("*",),
        back: Sequence[str] = ("*",),
    ) -> tuple[CallSession, CallSession]:
        """Connect two nodes, as ``[[outbound]]`` does; both then know what the other offers.

        Args:
            scopes: What the acceptor lets the dialler do.
            back: What the dialler lets the acceptor do.
        """
        sessions: tuple[CallSession, CallSession] = await self._nursery.start(
            self._hold, dialer, acceptor, peer(dialer.name, *scopes), peer(acceptor.name, *back)
        )
        await trio.testing.wait_all_tasks_blocked()
        return sessions

    async def client(self, node: MemoryNode, identity: Identity) -> CallSession:
        """Return a session with *node* of somebody that serves nothing."""
        session: CallSession = await self._nursery.start(self._hold_client, node, identity)
        return session

    async def _hold(
        self,
        dialer: MemoryNode,
        acceptor: MemoryNode,
        dialers: Identity,
        acceptors: Identity,
        *,
        task_status: trio.TaskStatus[tuple[CallSession, CallSession]],
    ) -> None:
        async with connections(self._carrier, identity=dialers) as (out, in_):
            out.identity = acceptors
            ours = CallSession(out, dialer.dispatcher, limits=dialer.config.limits)
            theirs = CallSession(in_, acceptor.dispatcher, limits=acceptor.config.limits)
            dialer.sessions.setdefault(acceptor.name, []).append(ours)
            acceptor.sessions.setdefault(dialer.name, []).append(theirs)
            dialer.known.add(acceptor.name)
            acceptor.known.add(dialer.name)
            async with trio.open_nursery() as nursery:
                await nursery.start(ours.run)
                await nursery.start(theirs.run)
                nursery.start_soon(_attach, dialer, acceptor.name, ours)
                await ours.call("peers/offer")
                task_status.started((ours, theirs))

    async def _hold_client(
        self, node: MemoryNode, identity: Identity, *, task_status: trio.TaskStatus[CallSession]
    ) -> None:
        async with connections(self._carrier, identity=identity) as (out, in_):
            client = CallSession(out, None, limits=node.config.limits)
            server = CallSession(in_, node.dispatcher, limits=node.config.limits)
            node.sessions.setdefault(f"client {identity.id}", []).append(server)
            async with trio.open_nursery() as nursery:
                await nursery.start(client.run)
                await nursery.start(server.run)
                task_status.started(client)


class KnownPeers(ChangingIdentities):
    """Peers by name alone.

    Attributes:
        offerers: Those that may offer; None for all.
    """

    def __init__(
        self,
        tokens: Mapping[str, Identity] | None,
        known: set[str],
        offerers: Collection[str] | None,
    ) -> None:
        super().__init__(tokens)
        self._known = known
        self.offerers = offerers

    def peer(self, name: str) -> Peer | None:
        may_offer = self.offerers is None or name in self.offerers
        return Peer(name=name, may_offer=may_offer) if name in self._known else None

    def let_offer(self, *names: str) -> None:
        self.offerers = names
        self.change()


async def _attach(node: MemoryNode, name: str, session: CallSession) -> None:
    await run_attached(node.peers, name, session, follow=node.federation.follow)


@asynccontextmanager
async def open_world(*nodes: MemoryNode, carrier: str = "memory") -> AsyncGenerator[World]:
    """Run *nodes*, not connected yet, for as long as the block.

    Args:
        carrier: One of `tests.call.sessions.CARRIERS`: of many streams, or of one.
    """
    async with AsyncExitStack() as stack:
        nursery = await stack.enter_async_context(trio.open_nursery())
        for node in nodes:
            await nursery.start(node.peers.run)
        yield World(nursery, carrier)
        nursery.cancel_scope.cancel()

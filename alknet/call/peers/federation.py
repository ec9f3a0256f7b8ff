"""What a node has for its peers, wired: who offers, what is followed, passed on and listed."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any, NoReturn, Protocol
from weakref import WeakSet

import trio

from alknet.call.codes import CallError, ErrorCode
from alknet.call.discovery import DescribedOperation
from alknet.call.operations import Operation
from alknet.call.peers.announce import (
    NOT_TAKEN,
    ImportMemory,
    follow_operations,
    offer_operation,
)
from alknet.call.peers.attached import AttachedPeer
from alknet.call.peers.describing import describe_imported
from alknet.call.peers.environment import PeerEnvironment
from alknet.call.peers.forwarding import Forwarder, reference
from alknet.call.peers.listing import list_peers_operation
from alknet.call.peers.service import PeerService
from alknet.call.registry import Provenance, Registry
from alknet.call.session import CallSession
from alknet.call.spec import OpType
from alknet.core.config import NodeConfig
from alknet.core.contracts import CloseCode, IdentityProvider
from alknet.core.identity import Identity

__all__ = ["Dialled", "Federation"]

log = logging.getLogger(__name__)

FOLLOW_INTERVAL_S = 0.1
"""Changes of peers within this time count as one: all that are attached are looked at."""


class Dialled(Protocol):
    """To which peers a node keeps connections."""

    @property
    def version(self) -> int:
        """Grows with each change of that, and of what is known of any peer."""

    async def wait_changed(self, version: int) -> int:
        """Wait until `version` differs from *version* and return it. Cancelled, nothing happens."""

    def is_target(self, name: str) -> bool:
        """Return whether a connection to the peer *name* is to be kept."""


class Federation:
    """The peers of a node as its callers and they themselves meet them.

    Attributes:
        forwarder: What a dispatcher passes requests on by.
    """

    def __init__(
        self,
        environment: PeerEnvironment,
        registry: Registry,
        identities: IdentityProvider,
        config: NodeConfig,
        *,
        dialled: Dialled | None = None,
    ) -> None:
        """Wire it, and add its operations to *registry*.

        Args:
            environment: The peers of this node; it has a key.
            identities: Which peers there are, here or not.
            dialled: To whom this node keeps a connection, and so asks for what they offer.
        """
        assert environment.node_id is not None
        self._config, self._named = config, _named(config)
        self._identities = identities
        self._dialled = dialled
        self._refused: WeakSet[CallSession] = WeakSet()
        self._environment = environment
        self._registry = registry
        self._memory = ImportMemory()
        self._service = PeerService(environment, follow=self.follow)
        self.forwarder = Forwarder(
            environment,
            node_id=environment.node_id,
            limits=lambda: self._config.limits,
            rules=config.re_exports,
            op_type_here=self._builtin_op_type,
            why_absent=self._why_absent,
        )
        registry.extend(self._operations(environment), builtin=True)

    def describe(
        self, identity: Identity, route: Sequence[str], name: str
    ) -> DescribedOperation | None:
        """Return what *identity* may call over *route*, as the peer at its end describes it."""
        if len(route) != 1 or not self.forwarder.may_call(identity, route, name):
            return None
        offered = self._environment.offer(reference(route[0], name), name)
        return None if offered is None else describe_imported(offered)

    def apply(self, config: NodeConfig) -> None:
        """Take over the rules and limits of *config*, for the requests that come from now on."""
        self._config, self._named = config, _named(config)
        self.forwarder.rules = config.re_exports
        self._judge()

    async def follow_offerers(self) -> NoReturn:
        """Take what peers offer as soon as they may, and no longer; runs until cancelled.

        Who may not offer any more loses its connection, and with it the calls that it runs.
        """
        followed = self._identities if self._dialled is None else self._dialled
        version = followed.version
        while True:
            version = await followed.wait_changed(version)
            self._judge()
            await trio.sleep(FOLLOW_INTERVAL_S)

    async def follow(self, attached: AttachedPeer, session: CallSession) -> None:
        """Keep what a peer offers up to date; see `follow_operations`."""
        await follow_operations(attached, session, self._memory)

    def _operations(self, environment: PeerEnvironment) -> Sequence[Operation[..., Any]]:
        return (
            offer_operation(self._offered),
            list_peers_operation(
                environment,
                self.forwarder,
                is_enabled=lambda: self._config.federation.list_peers,
            ),
        )

    def _offered(self, session: object) -> None:
        if isinstance(session, CallSession):
            name = _peer_name(session)
            if name and not self._takes_from(name):
                self._refused.add(session)
                log.warning("peer.not_taken", extra={"peer": name, "reason": NOT_TAKEN})
                details = {"reason": "may_not_offer"}
                raise CallError(ErrorCode.FORBIDDEN, NOT_TAKEN, details=details)
        self._service.offered(session)

    def _takes_from(self, name: str) -> bool:
        peer = self._identities.peer(name)
        is_allowed = peer is not None and peer.may_offer
        is_dialled = self._dialled is not None and self._dialled.is_target(name)
        return is_allowed or is_dialled or name in self._named

    def _judge(self) -> None:
        """End what is taken from peers that may not offer now, and take it from those that may."""
        for attached in self._environment:
            for session in attached.sessions:
                if not session.connection.is_dialer and not self._takes_from(attached.name):
                    log.warning("peer.not_taken", extra={"peer": attached.name})
                    session.end(CloseCode.REVOKED, NOT_TAKEN)
        for session in list(self._refused):
            name = _peer_name(session)
            if session.close_reason is not None or not name:
                self._refused.discard(session)
            elif self._takes_from(name):
                self._refused.discard(session)
                self._service.offered(session)

    def _why_absent(self, name: str) -> str | None:
        if self._identities.peer(name) is None:
            return None
        why = f"the peer {name!r} is not connected"
        if self._takes_from(name):
            return why
        return f"{why} for calls: it may not offer operations to this node"

    def _builtin_op_type(self, name: str) -> OpType | None:
        entry = self._registry.lookup(name)
        if entry is None or entry.provenance is not Provenance.BUILTIN:
            return None
        return entry.operation.spec.op_type


def _named(config: NodeConfig) -> frozenset[str]:
    """Return the peers whose operations ``node.toml`` asks for."""
    dialled = (one.name for one in config.outbound)
    return frozenset(dialled).union(*(rule.named() for rule in config.re_exports))


def _peer_name(session: CallSession) -> str:
    kind, _, name = session.connection.identity.id.partition(":")
    return name if kind == "peer" else ""

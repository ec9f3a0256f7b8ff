"""What a node has for its peers, wired: who offers, what is followed, passed on and listed."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

from alknet.call.codes import CallError, ErrorCode
from alknet.call.discovery import DescribedOperation
from alknet.call.operations import Operation
from alknet.call.peers.announce import ImportMemory, follow_operations, offer_operation
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
from alknet.core.globs import Glob
from alknet.core.identity import Identity

__all__ = ["Federation"]

log = logging.getLogger(__name__)


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
    ) -> None:
        """Wire it, and add its operations to *registry*.

        Args:
            environment: The peers of this node; it has a key.
            identities: Which peers there are, here or not.
        """
        assert environment.node_id is not None
        self._config, self._offerers = config, _offerers(config)
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
            knows_peer=lambda name: identities.peer(name) is not None,
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
        """Take over the rules and limits of *config*, for the requests that come from now on.

        Peers that may not offer operations any more lose their connection.
        """
        self._config, self._offerers = config, _offerers(config)
        self.forwarder.rules = config.re_exports
        for attached in self._environment:
            for session in attached.sessions:
                if not session.connection.is_dialer and not self._takes_from(attached.name):
                    log.info("peer.not_taken", extra={"peer": attached.name})
                    session.end(CloseCode.REVOKED, _NOT_TAKEN)

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
            kind, _, name = session.connection.identity.id.partition(":")
            if kind == "peer" and not self._takes_from(name):
                raise CallError(ErrorCode.FORBIDDEN, _NOT_TAKEN)
        self._service.offered(session)

    def _takes_from(self, name: str) -> bool:
        return any(glob.matches(name) for glob in self._offerers)

    def _builtin_op_type(self, name: str) -> OpType | None:
        entry = self._registry.lookup(name)
        if entry is None or entry.provenance is not Provenance.BUILTIN:
            return None
        return entry.operation.spec.op_type


def _offerers(config: NodeConfig) -> tuple[Glob, ...]:
    return tuple(map(Glob, config.federation.offers_from))


_NOT_TAKEN = "this node takes no operations from this peer"

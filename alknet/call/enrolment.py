"""``alknet/register``: how a stranger with an invitation becomes a peer.

Call framing with one operation, ``register/claim``. The handshake has proven the claimant's key,
which is what the node will know it by; the claimant has pinned the node's, which stands in the
invitation. So neither has to believe anything that the other says of itself. A claim that is
asked again with the same secret and key gets the same answer.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import Annotated, Protocol

import msgspec
import trio
from msgspec import Meta

from alknet.call.codes import CallError, ErrorCode
from alknet.call.context import Context
from alknet.call.dispatch import OperationDispatcher
from alknet.call.operations import operation, public
from alknet.call.proto import ConnectionClose, encode_event, encode_frame
from alknet.call.registry import Registry
from alknet.call.session import CallSession, open_session
from alknet.core.contracts import (
    CloseCode,
    CloseReason,
    Connection,
    IdentityProvider,
    OwnershipProvider,
    ProtocolHandler,
)
from alknet.core.identity import NodeId, Peer
from alknet.core.invitation import Invitation
from alknet.core.limits import KIB, Limits
from alknet.core.ticket import MAX_ADDRESSES, Ticket
from alknet.errors import Denied, LocalError, Malformed

__all__ = [
    "ALPN",
    "OPERATION",
    "Claim",
    "Claimed",
    "EnrolmentHandler",
    "Invitations",
    "claim_invitation",
    "decode_claimed_untrusted",
]

log = logging.getLogger(__name__)

ALPN = "alknet/register"
OPERATION = "register/claim"

# A claim is one round trip and one write. Who has not made it by then holds a place for nothing.
CLAIM_WITHIN_S = 20.0
# A claim with sixteen of the longest addresses takes 5 KiB.
CLAIM_BYTES = 8 * KIB
# One is enough; a few more are a client that asks again because it did not hear.
CLAIMS_AT_ONCE = 4


class Claim(msgspec.Struct, frozen=True):
    """What a claimant says. Its ``repr`` does not show the secret.

    Attributes:
        secret: Of the invitation.
        name: The peer name that it expects to get; null takes any.
        addresses: ``host:port`` where it can be reached; most workers cannot.
    """

    secret: Annotated[str, Meta(max_length=128)]
    name: Annotated[str, Meta(max_length=63)] | None = None
    addresses: Annotated[tuple[Annotated[str, Meta(max_length=300)], ...], Meta(max_length=16)] = ()

    def __repr__(self) -> str:
        return f"<Claim as {self.name}>"


class Claimed(msgspec.Struct, frozen=True):
    """What a claimant has become.

    Attributes:
        name: The name of its peer record.
        scopes: What it may do at the node.
        ticket: The node's own.
    """

    name: str
    scopes: tuple[str, ...]
    ticket: str


class Invitations(Protocol):
    """Who was invited, and becomes a peer by it."""

    async def consume(
        self,
        secret: str,
        key: NodeId,
        *,
        name: str | None = None,
        addresses: tuple[str, ...] = (),
    ) -> Peer:
        """Make the holder of *key* a peer and the invitation useless, in one step.

        Asked again with the same secret and key, it returns the peer that was made. Cancelled,
        both was done or nothing.

        Raises:
            Denied: The invitation is refused.
            Conflict: The name or the key is taken.
            LocalError: An address is none.
            StoreError: Nothing could be written.
            Unavailable: It cannot be done now.
        """


class EnrolmentHandler:
    """Serves `ALPN`, to strangers too: the invitation decides.

    Refused claims count as failed authentications, of the connection and of its address.

    Attributes:
        alpns: The one name.
        requires_identity: False: claimants have none yet.
        limits: The node's; far less is allowed here.
    """

    alpns: Sequence[str] = (ALPN,)
    requires_identity = False

    def __init__(
        self,
        invitations: Invitations,
        limits: Limits,
        *,
        identities: IdentityProvider,
        ownership: OwnershipProvider,
        ticket: Callable[[], Ticket],
        on_failed_authentication: Callable[[Connection], object] | None = None,
    ) -> None:
        """Make a handler.

        Args:
            ticket: What claimants need to come back.
            on_failed_authentication: As for `alknet.call.handler.CallHandler`.
        """
        self.limits = limits
        self._invitations = invitations
        self._identities = identities
        self._ownership = ownership
        self._ticket = ticket
        self._on_failed_authentication = on_failed_authentication

    async def handle(self, connection: Connection) -> None:
        """Serve claims until the connection ends, for `CLAIM_WITHIN_S` at most.

        Cancelled, a claim was granted whole or not at all.
        """
        limits = _narrowed(self.limits)
        desk = _Desk(self._invitations, self._ticket)
        dispatcher = OperationDispatcher(
            Registry([desk.claim]),
            identities=self._identities,
            ownership=self._ownership,
            limits=limits,
        )
        session = CallSession(
            connection,
            dispatcher,
            limits=limits,
            on_failed_authentication=self._on_failed_authentication,
        )
        desk.count_refusal = session.authentication_failed
        with trio.move_on_after(CLAIM_WITHIN_S) as scope:
            await session.run()
        if scope.cancelled_caught:
            connection.close(CloseCode.LIMIT, f"no longer than {CLAIM_WITHIN_S:g} s for a claim")

    def farewell(self, reason: CloseReason) -> bytes:
        """Return the frame that tells *reason* on a carrier which cannot."""
        return encode_frame(encode_event(ConnectionClose(reason.code, reason.reason)))


async def claim_invitation(
    connection: Connection,
    invitation: Invitation,
    *,
    name: str | None = None,
    addresses: Sequence[str] = (),
) -> Claimed:
    """Claim *invitation* over a connection to its node that speaks `ALPN`.

    Cancelled, the node knows us or not; asked again it gives the same answer.

    Args:
        connection: To the node of the invitation, whose key it has proven; we have shown ours.
        name: The peer name that we expect to get; None takes any.
        addresses: Where we can be reached, if we can.

    Raises:
        CallError: The node refuses: FORBIDDEN (the invitation is not good), CONFLICT (the name or
            our key is taken), INVALID_INPUT (an address), or cannot: UNAVAILABLE, TIMEOUT.
        Malformed: It answers with something else than it should.
        LocalError: The connection leads to another node.
    """
    if connection.peer_key != invitation.ticket.node_id:
        raise LocalError("the connection leads to another node than the invitation")
    claim = Claim(invitation.secret, name, tuple(addresses))
    async with open_session(connection) as session:
        output = await session.call(OPERATION, claim, timeout_s=CLAIM_WITHIN_S)
    return decode_claimed_untrusted(output, invitation.ticket.node_id)


def decode_claimed_untrusted(output: bytes, node_id: NodeId) -> Claimed:
    """Read what ``register/claim`` returned. *node_id* is whom its ticket must name.

    Raises:
        Malformed: It is something else.
    """
    try:
        claimed = msgspec.json.decode(output, type=Claimed)
        ticket = Ticket.parse(claimed.ticket)
        # What it calls us is shown and kept, so it must be what a node calls a peer.
        Peer(name=claimed.name, scopes=claimed.scopes).normalized()
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError, LocalError) as exc:
        raise Malformed(f"not an answer of {OPERATION}") from exc
    if ticket.node_id != node_id:
        raise Malformed(f"the answer of {OPERATION} names another node")
    return claimed


class _Desk:
    """The operation, for one connection.

    Attributes:
        count_refusal: Called when a claim is refused, before the answer leaves.
    """

    def __init__(self, invitations: Invitations, ticket: Callable[[], Ticket]) -> None:
        self._invitations = invitations
        self._ticket = ticket
        self.count_refusal: Callable[[], object] = lambda: None

    @operation(OPERATION, access=public(), mutation=True, max_duration_s=CLAIM_WITHIN_S)
    async def claim(self, ctx: Context, claim: Claim) -> Claimed:
        """Become a peer of this node by an invitation, with the key that the handshake proved."""
        key = ctx.remote.peer_key
        if key is None:
            raise Denied("an invitation is claimed with a key: connect with one")
        about = {"key": str(key), "address": ctx.remote.address}
        try:
            peer = await self._invitations.consume(
                claim.secret, key, name=claim.name, addresses=claim.addresses
            )
        except Denied as exc:
            log.warning("enrolment.refused", extra={**about, "reason": exc.reason})
            if exc.is_failed_authentication:
                self.count_refusal()
            raise
        except LocalError as exc:
            path = {"path": "/addresses"}
            raise CallError(ErrorCode.INVALID_INPUT, str(exc), details=path) from None
        log.info("enrolment.claimed", extra={**about, "as": peer.name})
        return Claimed(peer.name, peer.scopes, str(self._ticket()))


def _narrowed(limits: Limits) -> Limits:
    """Return what a stranger needs for a claim, and no more."""
    return msgspec.structs.replace(
        limits,
        frame_bytes=min(CLAIM_BYTES, limits.frame_bytes),
        frame_bytes_unproven=min(CLAIM_BYTES, limits.frame_bytes_unproven),
        calls_per_connection=min(CLAIMS_AT_ONCE, limits.calls_per_connection),
        buffered_bytes_per_connection=min(
            4 * CLAIMS_AT_ONCE * CLAIM_BYTES, limits.buffered_bytes_per_connection
        ),
    )


assert MAX_ADDRESSES == 16  # as `Claim.addresses` says

_: type[ProtocolHandler] = EnrolmentHandler

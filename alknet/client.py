"""Connecting to a node from a program: by ticket, by key and addresses, or by name.

`connect` gives a connection for any ALPN, `open_session` a call session on it. Whom to trust
follows from what is named: a ticket or node id pins the key; a bare ``host:port`` has no key, so
the Web PKI must vouch for the name, or nothing is connected. Trust on first use has to be asked
for, by passing the `KnownNodes` to remember the key in. `claim` makes us a peer by an invitation,
`join_hub` a worker, which dials its hub from then on.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Iterable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import msgspec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from alknet.call import session as call_session
from alknet.call.builtin import WhoAmI
from alknet.call.codes import CallError, ErrorCode
from alknet.call.contracts import Dispatcher
from alknet.call.enrolment import ALPN as REGISTER_ALPN
from alknet.call.enrolment import Claimed, claim_invitation
from alknet.call.handler import ALPN as CALL_ALPN
from alknet.call.session import CallSession
from alknet.core.address import Address
from alknet.core.contracts import Connection
from alknet.core.endpoint.control import connect_control
from alknet.core.endpoint.dial import TRANSPORTS, dial
from alknet.core.identity import NodeId, Peer
from alknet.core.invitation import Invitation
from alknet.core.limits import Limits
from alknet.core.scopes import open_background
from alknet.core.ticket import Target, Ticket, parse_target
from alknet.core.tls.credentials import NodeCredentials
from alknet.core.tls.trust import AnyKey, PinnedKey, Trust, WebPki
from alknet.errors import LocalError
from alknet.stores.known import KnownNodes
from alknet.stores.outbound import StoredOutbound

__all__ = ["claim", "connect", "join_hub", "open_control_session", "open_session"]


@asynccontextmanager
async def connect(  # noqa: PLR0913  all but the first are options of one dial
    target: str | Target,
    *,
    alpn: str,
    addresses: Iterable[str | Address] = (),
    key: Ed25519PrivateKey | None = None,
    transports: Sequence[str] = TRANSPORTS,
    ca_file: Path | None = None,
    known_nodes: KnownNodes | None = None,
    limits: Limits | None = None,
) -> AsyncGenerator[Connection]:
    """Connect to a node; the connection is closed when the block ends.

    Args:
        target: A ticket, a node id in any form (then *addresses* say where), or ``host:port``.
        alpn: The protocol to speak.
        addresses: Where to try beside the ticket's own addresses.
        key: Our key, shown and proven when the node asks; None to stay anonymous.
        transports: ``quic``, ``tcp`` or both, which then race.
        ca_file: PEM file of authorities for ``host:port``, instead of the usual ones.
        known_nodes: Trust the key that a ``host:port`` shows first, and remember it here.
        limits: Time-outs and windows of this connection.

    Raises:
        DialError: Nobody answered with the right key; its ``attempts`` say what each try met.
        Denied: With *known_nodes*: the node there is not the one that it was.
        LocalError: The target makes no sense, or has no address.

    Cancelled, every attempt and the connection are closed.
    """
    trust, where = _resolve(target, addresses, ca_file)
    first_use = known_nodes is not None and isinstance(trust, WebPki)
    credentials = NodeCredentials(key) if key is not None else None
    async with dial(
        where,
        alpn=alpn,
        trust=AnyKey() if first_use else trust,
        credentials=credentials,
        transports=transports,
        limits=limits,
    ) as connection:
        if first_use and known_nodes is not None:
            assert connection.peer_key is not None
            await known_nodes.check(str(where[0]), connection.peer_key)
        yield connection


@asynccontextmanager
async def open_session(  # noqa: PLR0913  see `connect`
    target: str | Target,
    *,
    addresses: Iterable[str | Address] = (),
    key: Ed25519PrivateKey | None = None,
    transports: Sequence[str] = TRANSPORTS,
    ca_file: Path | None = None,
    known_nodes: KnownNodes | None = None,
    limits: Limits | None = None,
    dispatcher: Dispatcher | None = None,
) -> AsyncGenerator[CallSession]:
    """Connect to a node's call protocol; see `connect` for the arguments, errors and cancelling.

    Args:
        dispatcher: Serves calls that the node makes to us; without one they are NOT_FOUND.
    """
    async with (
        connect(
            target,
            alpn=CALL_ALPN,
            addresses=addresses,
            key=key,
            transports=transports,
            ca_file=ca_file,
            known_nodes=known_nodes,
            limits=limits,
        ) as connection,
        call_session.open_session(connection, dispatcher, limits=limits) as session,
    ):
        yield session


async def claim(
    invitation: Invitation,
    *,
    key: Ed25519PrivateKey,
    name: str | None = None,
    addresses: Sequence[str] = (),
    transports: Sequence[str] = TRANSPORTS,
    limits: Limits | None = None,
) -> Claimed:
    """Become a peer of the node that has made *invitation*, whose key must answer.

    It can be asked again with the same key, also if the answer was lost. Cancelled, the node knows
    us or not.

    Args:
        invitation: As `Invitation.parse` reads it.
        key: Ours, by which the node will know us.
        name: The peer name that we expect to get; None takes any.
        addresses: ``host:port`` where the node can reach us, if it can.
        transports: As for `connect`, and so are *limits*.

    Raises:
        DialError: Nobody answered with the invitation's key.
        CallError: The node refuses; see `claim_invitation`.
        Malformed: It answered with something else.
    """
    async with connect(
        invitation.ticket, alpn=REGISTER_ALPN, key=key, transports=transports, limits=limits
    ) as connection:
        return await claim_invitation(connection, invitation, name=name, addresses=addresses)


async def join_hub(
    invitation: Invitation,
    outbound: StoredOutbound,
    *,
    key: Ed25519PrivateKey,
    hub: Peer,
    keep_scopes: bool = False,
    name: str | None = None,
    addresses: Sequence[str] = (),
) -> tuple[Claimed, Peer]:
    """Become a worker of the node that has made *invitation*: each knows the other by its key.

    Done once more, or after it was interrupted at any point, it completes what is missing; so it
    may be done at each start of a machine, long after the invitation has ended. Cancelled, the hub
    knows us or not, and we know it and dial it, or neither.

    Args:
        invitation: As for `claim`, and so are *key*, *name* and *addresses*.
        outbound: Of our node, which dials the hub from then on.
        hub: The name and scopes that the hub gets here; what the invitation says is added.
        keep_scopes: As for `StoredOutbound.join`.

    Returns:
        What we have become there, and the hub's record here.

    Raises:
        Conflict: The name or the key of the hub is another peer's here; nothing was claimed.
        LocalError: The invitation is our own.
        DialError: As `claim`, and so are CallError and Malformed.
        StoreError: The hub knows us, but our store could not be written; so Unavailable.
    """
    ticket = invitation.ticket
    if ticket.node_id == NodeId.from_public_key(key.public_key()):
        raise LocalError("this invitation is of the very node that would join")
    hub = msgspec.structs.replace(
        hub,
        fingerprints=(ticket.node_id.fingerprint,),
        addresses=tuple(map(str, ticket.addresses)),
    ).normalized()
    # An invitation that then cannot be made use of would be lost.
    outbound.check_joinable(hub)
    try:
        claimed = await claim(invitation, key=key, name=name, addresses=addresses)
    except CallError as exc:
        found = None
        if exc.code == ErrorCode.FORBIDDEN and outbound.is_joined(hub):
            found = await _standing(ticket, key)
        if found is None or name not in {None, found.name}:
            raise
        claimed = found
    more = map(str, Ticket.parse(claimed.ticket).addresses)
    hub = msgspec.structs.replace(hub, addresses=(*hub.addresses, *more)).normalized()
    return claimed, await outbound.join(hub, keep_scopes=keep_scopes)


@asynccontextmanager
async def open_control_session(home: Path) -> AsyncGenerator[CallSession]:
    """Talk to the running node of *home* as its owner, through its Unix socket.

    Raises:
        Unavailable: No node runs there.
    """
    connection = await connect_control(home)
    async with open_background() as nursery:
        # A carrier of one stream notices its end only while somebody waits for it.
        nursery.start_soon(connection.wait_closed)
        async with call_session.open_session(connection) as session:
            yield session


async def _standing(ticket: Ticket, key: Ed25519PrivateKey) -> Claimed | None:
    """Ask a node what we are there; None if it does not know us."""
    async with open_session(ticket, key=key) as session:
        found = await session.call_as(WhoAmI, "node/whoami")
    kind, _, name = found.id.partition(":")
    return Claimed(name, tuple(found.scopes), str(ticket)) if kind == "peer" else None


def _resolve(
    target: str | Target, addresses: Iterable[str | Address], ca_file: Path | None
) -> tuple[Trust, list[Address]]:
    """Say whom to trust, and where to look."""
    if isinstance(target, str):
        target = parse_target(target)
    where = [a if isinstance(a, Address) else Address.parse(a) for a in addresses]
    if isinstance(target, Address):
        return WebPki(target.host, ca_file), [target, *where]
    if isinstance(target, Ticket):
        where = [*target.addresses, *where]
    node_id = target if isinstance(target, NodeId) else target.node_id
    if not where:
        raise LocalError(f"no address is known for node {node_id.short}; give one, or a ticket")
    return PinnedKey(node_id), where

"""Which key a peer has now, if one that is known here has signed it over."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import click

from alknet.cli.failures import CommandError

if TYPE_CHECKING:
    from alknet.core.identity import Peer
    from alknet.core.succession import Succession
    from alknet.stores.identities import StoredIdentities
    from alknet.stores.successors import WaitingKey

__all__ = [
    "confirm_successor",
    "find_successor",
    "say_what_waits",
    "successor_that_waits",
    "waiting_keys",
]

PREFIX = "ed25519:"


def waiting_keys(identities: StoredIdentities, peers: Sequence[Peer]) -> dict[str, list[str]]:
    """Return the ids of the keys that wait to take the place of a peer's, by the peer's name."""
    from alknet.stores.successors import StoredSuccessors

    successors = StoredSuccessors(identities)
    found = {peer.name: successors.waiting(peer) for peer in peers}
    return {name: [str(one.key) for one in waiting] for name, waiting in found.items() if waiting}


def say_what_waits(waiting: Mapping[str, Sequence[str]]) -> None:
    """Say which peers have new keys, and what takes them over."""
    from alknet.cli.output import say

    for name, keys in waiting.items():
        say(f"new key of {name}: {', '.join(keys)}")
        if len(keys) == 1:
            say(f"  'alknet peer follow {name}' takes it over")
        else:
            say(f"  all but one were signed by a thief: ask the owner of {name}")


def successor_that_waits(peer: Peer, waiting: Sequence[WaitingKey]) -> list[Succession]:
    """Return the verified statements that lead to the key that waits; none if none does.

    Raises:
        CommandError: Several keys wait, or what the store holds proves nothing.
    """
    from alknet.core.succession import follow_succession
    from alknet.errors import Denied

    if not waiting:
        return []
    if len(waiting) > 1:
        keys = ", ".join(str(one.key) for one in waiting)
        raise CommandError(
            "CONFLICT",
            f"the key of peer {peer.name!r} has signed over to several: {keys}; "
            "somebody has stolen it",
            hint="ask its owner for its new ticket by a way that you trust, then "
            f"'alknet peer set {peer.name} --key TICKET', or 'alknet peer disable {peer.name}'",
        )
    (one,) = waiting
    known = {bytes.fromhex(f.removeprefix(PREFIX)) for f in peer.fingerprints if PREFIX in f}
    try:
        return follow_succession(one.statements, known, bytes(one.key))
    except Denied as exc:
        raise CommandError(
            "DENIED", f"the new key of peer {peer.name!r} that is stored here is not proven: {exc}"
        ) from exc


def find_successor(peer: Peer, addresses: Sequence[str]) -> list[Succession]:
    """Ask whoever answers at the peer's addresses how it came to its key.

    Args:
        addresses: Where to look instead of at the addresses that are known.

    Returns:
        The verified statements from a key of *peer* to the key that answers, which has proven
        itself; none if the key that answers is known already.

    Raises:
        DialError: Nobody answers.
        CommandError: The statements do not prove what they should.
    """
    from alknet.cli.options import usage_errors
    from alknet.cli.running import run
    from alknet.core.address import Address

    with usage_errors("--address"):
        where = [Address.parse(text) for text in addresses or peer.addresses]
    if not where:
        raise CommandError(
            "UNAVAILABLE",
            f"no address is known for peer {peer.name!r}",
            hint="name one with --address HOST:PORT",
            status=4,
        )
    known = {bytes.fromhex(f.removeprefix(PREFIX)) for f in peer.fingerprints if PREFIX in f}

    async def ask() -> list[Succession]:
        from alknet.call import session as call_session
        from alknet.call.handler import ALPN
        from alknet.call.succession import OPERATION, decode_answer_untrusted
        from alknet.core.endpoint.dial import dial
        from alknet.core.succession import follow_succession
        from alknet.core.tls.trust import AnyKey
        from alknet.errors import Denied, Malformed

        # As a stranger, for nobody knows yet who answers.
        async with (
            dial(where, alpn=ALPN, trust=AnyKey(), credentials=None) as connection,
            call_session.open_session(connection) as session,
        ):
            assert connection.peer_key is not None
            key = bytes(connection.peer_key)
            if key in known:
                return []
            output = await session.call(OPERATION, {})
        try:
            return follow_succession(decode_answer_untrusted(output), known, key)
        except (Denied, Malformed) as exc:
            raise CommandError(
                "DENIED",
                f"the key that answers for peer {peer.name!r} is not signed over by a known one: "
                f"{exc}",
                hint="ask its owner for its new ticket by a way that you trust, then "
                f"'alknet peer set {peer.name} --key TICKET'",
                status=3,
            ) from exc

    return run(ask)


def confirm_successor(peer: Peer, statements: Sequence[Succession], yes: bool) -> tuple[str, str]:
    """Show what *statements* say; return the fingerprints of the old and the new key.

    Raises:
        CommandError: There is nobody to ask.
        click.Abort: The answer is no.
    """
    from datetime import UTC, datetime

    from alknet.cli.output import note
    from alknet.core.nodeid import NodeId

    for one in statements:
        date = datetime.fromtimestamp(one.signed_at, UTC).date()
        note(f"{date}  {NodeId(one.old)} signed over to {NodeId(one.new)}")
    if not yes:
        if not sys.stdin.isatty():
            raise CommandError(
                "USAGE", "this replaces a peer's key, and there is no terminal to ask", hint="--yes"
            )
        click.confirm(f"Take the new key for peer {peer.name}?", abort=True, err=True)
    return NodeId(statements[0].old).fingerprint, NodeId(statements[-1].new).fingerprint

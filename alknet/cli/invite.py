"""``alknet peer invite``: invitations by which other nodes make themselves peers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from datetime import datetime
from typing import TYPE_CHECKING, TypeVar

import click

from alknet.cli.failures import CommandError
from alknet.cli.names import did_you_mean
from alknet.cli.options import Command, Duration, is_json, usage_errors
from alknet.cli.output import emit, note, say, table
from alknet.cli.rights import check_scopes, grants, listed, rights_options

if TYPE_CHECKING:
    from collections.abc import Awaitable

    from alknet.core.ticket import Ticket
    from alknet.stores.enrolment import EnrolmentTokens, MintedEnrolment
    from alknet.stores.tables import EnrolmentRow

__all__ = ["invite", "invites", "uninvite"]

T = TypeVar("T")

# Long enough to walk to another machine, short enough that one left in a chat is soon worthless.
DEFAULT_TTL_S = 600.0


@click.command(
    cls=Command,
    examples=[
        "alknet peer invite w1 --scope jobs:run > w1.invite",
        "alknet peer invite w1 | ssh w1 alknet worker join",
        "alknet peer invite w1 --ttl 1h --address hub.example.org:4433",
    ],
)
@click.argument("name")
@rights_options
@click.option(
    "--ttl",
    type=Duration(),
    metavar="TIME",
    default=DEFAULT_TTL_S,
    help="How long it can be used: 90s, 10m (the default), 12h … up to 30d.",
)
@click.option(
    "--address",
    "addresses",
    metavar="HOST:PORT",
    multiple=True,
    help="Where this node is reached, instead of by its ticket's addresses; repeatable.",
)
def invite(
    name: str,
    scopes: Sequence[str],
    resources: Sequence[str],
    ttl: float,
    addresses: Sequence[str],
) -> None:
    """Print an invitation, this once: whoever uses it becomes the peer NAME.

    It works one time, for the first key that shows it. The scopes and resources are what the peer
    may do here; without --scope it may call public operations only. On the other machine
    'alknet worker join' reads it from standard input or from a file. One that was made before for
    the same name, and not used, is revoked: its text is kept nowhere.
    """
    from alknet.core.clock import wall_clock
    from alknet.core.identity import check_peer_name
    from alknet.core.invitation import Invitation
    from alknet.errors import Conflict
    from alknet.stores.enrolment import LONGEST_LIFE_S

    with usage_errors("NAME"):
        check_peer_name(name)
    if ttl > LONGEST_LIFE_S:
        raise click.BadParameter("an invitation lives for 30d at most", param_hint="--ttl")
    allowed, granted = check_scopes(scopes), grants(resources)
    ticket, runs = _own_ticket(addresses)

    async def create(tokens: EnrolmentTokens) -> tuple[MintedEnrolment, list[EnrolmentRow]]:
        before = [row for row in tokens.tokens() if row.name == name]
        try:
            made = await tokens.create(name, lifetime_s=ttl, scopes=allowed, resources=granted)
        except Conflict as exc:
            hint = f"take another name, or let it go first: 'alknet peer remove {name}'"
            raise CommandError("CONFLICT", str(exc), hint=hint) from exc
        return made, await _revoked(tokens, before)

    minted, replaced = _with_tokens(create)
    invitation = str(Invitation(ticket, minted.secret))
    expires_at = wall_clock() + ttl
    if is_json():
        emit(
            {
                "invitation": invitation,
                "id": minted.id,
                "name": name,
                "addresses": list(map(str, ticket.addresses)),
                "expires_at": expires_at,
                "replaces": [row.id for row in replaced],
            }
        )
        return
    say(invitation)
    note(f"Invitation {minted.id} for peer {name}, expires: {_when(expires_at)}.")
    for row in replaced:
        if row.expires_at > wall_clock():
            note(f"It replaces invitation {row.id}, which nobody had used: that works no more.")
    whence = "as --address says" if addresses else "where it runs" if runs else "as configured"
    note(f"It says that this node is reached, {whence}, at: {listed(ticket.addresses)}")
    note("It is shown only now and works once. On the other machine give it to")
    note("'alknet worker join' by standard input or --file, never as an argument.")
    if not runs:
        note("This node does not run: start it with 'alknet up' before the invitation is used.")
    if all(map(_is_loopback, (address.host for address in ticket.addresses))):
        note("WARNING: only this machine reaches it there. Name an address that others reach with")
        note("--address HOST:PORT, or for all invitations by 'advertise' in node.toml.")


@click.command(cls=Command, examples=["alknet peer invites", "alknet peer invites --json"])
def invites() -> None:
    """List the invitations that were not used; their texts are kept nowhere."""
    from alknet.cli.home import read_store
    from alknet.stores.enrolment import EnrolmentTokens

    rows = read_store(lambda identities: EnrolmentTokens(identities).tokens())
    if is_json():
        emit({"invitations": [_as_json(row) for row in rows]})
        return
    lines = [
        (row.id, row.name, listed(row.scopes), listed(row.resources), _expiry(row)) for row in rows
    ]
    headers = ("id", "name", "scopes", "resources", "expires")
    table(headers, lines, empty="no invitations; 'alknet peer invite NAME' makes one")


@click.command(cls=Command, examples=["alknet peer uninvite w1", "alknet peer uninvite y7k3m1qo"])
@click.argument("invitation", metavar="ID|NAME")
def uninvite(invitation: str) -> None:
    """Revoke an invitation that was not used, by its id or the name that it is for.

    A peer that has used one stays.
    """
    if "://" in invitation:  # whoever pastes it whole shall not have it repeated by the error
        why = "name it by its id, or by the peer's name: 'alknet peer invites' lists them"
        raise click.BadParameter(why)
    revoked = _with_tokens(lambda tokens: _uninvited(tokens, invitation))
    if is_json():
        emit({"id": revoked[0], "ids": revoked, "done": "revoked"})
    else:
        for one in revoked:
            say(f"invitation {one} revoked")


async def _uninvited(tokens: EnrolmentTokens, invitation: str) -> list[str]:
    """Revoke what *invitation* names; return the ids."""
    from alknet.errors import NotFound

    open_ones = tokens.tokens()
    of_name = [row for row in open_ones if row.name == invitation.removeprefix("@")]
    if of_name and invitation not in {row.id for row in open_ones}:
        return [row.id for row in await _revoked(tokens, of_name)]
    try:
        await tokens.revoke(invitation)
    except NotFound as exc:
        known = (text for row in open_ones for text in (row.id, row.name))
        near = did_you_mean(invitation, known)
        how = "'alknet peer invites' lists those that were not used"
        hint = f"{near} {how}" if near else how
        raise CommandError("NOT_FOUND", str(exc), hint=hint) from exc
    return [invitation]


async def _revoked(tokens: EnrolmentTokens, rows: Sequence[EnrolmentRow]) -> list[EnrolmentRow]:
    """Revoke *rows*; return those that nobody was faster to use or revoke."""
    from alknet.errors import NotFound

    revoked = []
    for row in rows:
        with suppress(NotFound):
            await tokens.revoke(row.id)
            revoked.append(row)
    return revoked


def _own_ticket(addresses: Sequence[str]) -> tuple[Ticket, bool]:
    """Return what stands in the invitation, and whether the node runs."""
    import msgspec

    from alknet.cli.home import need_node
    from alknet.cli.own_ticket import configured_ticket, running_ticket
    from alknet.core.address import Address
    from alknet.core.nodeid import NodeId
    from alknet.core.ticket import Ticket
    from alknet.vault.homevault import home_public_key

    node_id = NodeId(home_public_key(need_node()))
    running = running_ticket()
    ticket = Ticket.parse(running or configured_ticket(node_id))
    if addresses:
        with usage_errors("--address"):
            given = tuple(dict.fromkeys(map(Address.parse, addresses)))
        ticket = msgspec.structs.replace(ticket, addresses=given)
    if not ticket.addresses:
        raise CommandError(
            "UNAVAILABLE",
            "no address is known by which others reach this node",
            hint="name one with --address, set 'advertise' in node.toml, or start the node",
        )
    return ticket, running is not None


def _with_tokens(use: Callable[[EnrolmentTokens], Awaitable[T]]) -> T:
    from alknet.cli.home import open_store
    from alknet.cli.running import run
    from alknet.stores.enrolment import EnrolmentTokens

    async def opened() -> T:
        async with open_store() as identities:
            return await use(EnrolmentTokens(identities))

    return run(opened)


def _is_loopback(host: str) -> bool:
    return host in {"localhost", "::1"} or host.startswith("127.")


def _as_json(row: EnrolmentRow) -> dict[str, object]:
    from alknet.core.clock import wall_clock

    return {
        "id": row.id,
        "name": row.name,
        "scopes": row.scopes,
        "resources": [str(grant) for grant in row.resources],
        "created_at": row.created_at,
        "expires_at": row.expires_at,
        "expired": row.expires_at <= wall_clock(),
    }


def _expiry(row: EnrolmentRow) -> str:
    from alknet.core.clock import wall_clock

    return f"{_when(row.expires_at)}{' (expired)' if row.expires_at <= wall_clock() else ''}"


def _when(at: float) -> str:
    return datetime.fromtimestamp(at).astimezone().strftime("%Y-%m-%d %H:%M %Z")

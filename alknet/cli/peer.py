"""``alknet peer``: the nodes that this one knows.

Peers are written through the store of the home, with or without a running node, which follows it.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import TYPE_CHECKING, Any

import click

from alknet.cli.invite import invite, invites, uninvite
from alknet.cli.options import Group, is_json, usage_errors
from alknet.cli.output import emit, fields, say, table
from alknet.cli.rights import check_scopes, grants, listed, rights_options

if TYPE_CHECKING:
    from alknet.core.contracts import IdentityStore
    from alknet.core.identity import Peer
    from alknet.stores.identities import StoredIdentities
    from alknet.stores.successors import WaitingKey

__all__ = ["peer"]

# What another process wrote is in our memory within milliseconds, at the latest after a second.
SEEN_WITHIN_S = 1.5


@click.group(
    cls=Group,
    examples=[
        "alknet peer add bob alknet://… --scope echo",
        "alknet peer invite w1 --scope echo      let a worker add itself",
        "alknet peer list",
        "alknet peer disable bob",
    ],
)
def peer() -> None:
    """Say which nodes this one knows and what they may do.

    A peer is known by its key. Its connections run under its name, with the scopes and resources
    that it has here. Changes act on a running node, and on live connections, within a second.
    """


for command in (invite, invites, uninvite):
    peer.add_command(command)


@peer.command(
    examples=[
        "alknet peer add bob alknet://ybndr…@192.0.2.7:4433 --scope echo",
        "alknet peer add carol ed25519:0c8f… --address carol.example.org:4433",
        "alknet peer add dave ybndr… --scope fs:read --resource share:photos:read",
    ],
)
@click.argument("name")
@click.argument("node", metavar="ID|FINGERPRINT|TICKET")
@rights_options
@click.option(
    "--address",
    "addresses",
    metavar="HOST:PORT",
    multiple=True,
    help="Where it is reached, beside the ticket's addresses; repeatable.",
)
@click.option("--display-name", metavar="TEXT", default="", help="Free text for people.")
@click.option(
    "--may-offer", is_flag=True, help="Let it offer operations, to be called, as workers do."
)
def add(
    name: str,
    node: str,
    scopes: Sequence[str],
    resources: Sequence[str],
    addresses: Sequence[str],
    display_name: str,
    may_offer: bool,
) -> None:
    """Make a node known under NAME.

    NODE is its ticket, which also says where it is reached, its id in any form, or the
    fingerprint of its certificate. Without --scope it may call public operations only.
    """
    from alknet.core.identity import Peer

    fingerprint, known = _read_node(node)
    made = Peer(
        name=name,
        fingerprints=(fingerprint,),
        scopes=check_scopes(scopes),
        resources=grants(resources),
        display_name=display_name,
        addresses=(*known, *addresses),
        may_offer=may_offer,
    )
    with usage_errors("peer"):
        made = made.normalized()
    _write(lambda store: store.put_peer(made))
    _done(made.name, "added")


@peer.command("list", examples=["alknet peer list", "alknet peer list --json"])
def list_peers() -> None:
    """List the peers, those of node.toml included."""
    from alknet.cli.follow import say_what_waits, waiting_keys
    from alknet.cli.home import read_store

    peers, waiting = read_store(
        lambda identities: (identities.peers(), waiting_keys(identities, identities.peers()))
    )
    if is_json():
        emit({"peers": [_as_json(one, waiting.get(one.name, ())) for one in peers]})
        return
    rows = [
        (one.name, _state(one), listed(one.scopes), listed(one.addresses), _key(one))
        for one in peers
    ]
    headers = ("name", "state", "scopes", "addresses", "key")
    table(headers, rows, empty="no peers; 'alknet peer add NAME TICKET' adds one")
    say_what_waits(waiting)


@peer.command(examples=["alknet peer show bob"])
@click.argument("name")
def show(name: str) -> None:
    """Show all that is known of a peer."""
    found, waiting = _find_with_waiting(name)
    new = [str(one.key) for one in waiting]
    if is_json():
        emit(_as_json(found, new))
        return
    fields(
        {
            "name": found.name,
            "display name": found.display_name or "-",
            "state": _state(found),
            "keys": listed(found.fingerprints),
            "ids": listed(_ids(found)),
            "addresses": listed(found.addresses),
            "scopes": listed(found.scopes),
            "resources": listed(found.resources),
            "may offer": "yes" if found.may_offer else "no",
        }
    )
    if new:
        from alknet.cli.follow import say_what_waits

        say_what_waits({found.name: new})


@peer.command(
    "set",
    examples=[
        "alknet peer set bob --scope echo --scope fs:read    exactly these scopes",
        "alknet peer set bob --no-scopes                     none any more",
        "alknet peer set bob --key ybndr…                    its new key, the old one is dropped",
    ],
)
@click.argument("name")
@rights_options
@click.option("--address", "addresses", metavar="HOST:PORT", multiple=True, help="Where it is.")
@click.option(
    "--key",
    "keys",
    metavar="ID|FINGERPRINT|TICKET",
    multiple=True,
    help="Its key; repeat it for several.",
)
@click.option("--display-name", metavar="TEXT", help="Free text for people.")
@click.option("--no-scopes", is_flag=True, help="Take all scopes away.")
@click.option("--no-resources", is_flag=True, help="Take all resources away.")
@click.option("--no-addresses", is_flag=True, help="Forget its addresses.")
@click.option(
    "--may-offer/--no-may-offer",
    default=None,
    help="Whether it may offer operations, to be called, as workers do.",
)
def set_peer(name: str, **options: Any) -> None:
    """Change what is known of a peer.

    Each option replaces all values of its kind; what is not named stays. Calls of the peer that run
    and would be refused now end within a second.
    """
    changes = _changes(options)
    if not changes:
        raise click.UsageError("nothing to change: name at least one option")
    _update(name, changes)
    _done(name, "changed")


@peer.command(
    examples=[
        "alknet peer follow bob",
        "alknet peer follow bob --address 192.0.2.7:4433 --yes",
    ]
)
@click.argument("name")
@click.option(
    "--address",
    "addresses",
    metavar="HOST:PORT",
    multiple=True,
    help="Where it answers, instead of where it is known to; repeatable.",
)
@click.option("--yes", is_flag=True, help="Do not ask whether to take the new key.")
def follow(name: str, addresses: Sequence[str], yes: bool) -> None:
    """Take over the new key of a peer that has rotated it.

    If the peer has told this node of its key, which 'alknet peer list' shows, that is the one;
    else the node that answers at the peer's addresses is asked how it came to its key. Only what
    a key that is known here has signed, and the new key too, is believed; then the new key takes
    the old one's place. The ids of both are shown first: whoever stole the old key could sign too.
    """
    from alknet.cli.follow import confirm_successor, find_successor, successor_that_waits

    found, waiting = _find_with_waiting(name)
    statements = successor_that_waits(found, waiting)
    if addresses or not waiting:
        statements = find_successor(found, addresses)
    if not statements:
        _done(found.name, "has the key that is known")
        return
    old, new = confirm_successor(found, statements, yes)
    kept = tuple(f for f in found.fingerprints if f not in {old, new})
    changes: dict[str, Any] = {"fingerprints": (new, *kept)}
    if addresses:
        changes["addresses"] = tuple(addresses)
    _update(found.name, changes)
    _done(found.name, "followed", old=old, new=new)


@peer.command(examples=["alknet peer enable bob"])
@click.argument("name")
def enable(name: str) -> None:
    """Let a disabled peer in again."""
    _set_enabled(name, True)


@peer.command(examples=["alknet peer disable bob"])
@click.argument("name")
def disable(name: str) -> None:
    """Refuse a peer's keys, and close its connections within a second; its record stays."""
    _set_enabled(name, False)


@peer.command(examples=["alknet peer rename bob robert"])
@click.argument("name")
@click.argument("new_name")
def rename(name: str, new_name: str) -> None:
    """Give a peer another name. What it owned under the old one it owns no more."""
    from alknet.core.identity import check_peer_name

    with usage_errors("NEW_NAME"):
        check_peer_name(new_name)
    name = _find(name).name
    _write(lambda store: store.rename_peer(name, new_name))
    _done(new_name, "renamed", was=name)


@peer.command(examples=["alknet peer remove bob"])
@click.argument("name")
def remove(name: str) -> None:
    """Forget a peer, and close its connections within a second."""
    name = _find(name).name
    _write(lambda store: store.remove_peer(name))
    _done(name, "removed")


def _read_node(text: str) -> tuple[str, tuple[str, ...]]:
    """Return the fingerprint of what the user typed, and the addresses in it."""
    from alknet.core.identity import parse_fingerprint
    from alknet.core.ticket import SCHEME, Ticket

    with usage_errors("ID|FINGERPRINT|TICKET"):
        if text.strip().lower().startswith(SCHEME):
            ticket = Ticket.parse(text)
            return ticket.node_id.fingerprint, tuple(map(str, ticket.addresses))
        return parse_fingerprint(text), ()


def _changes(options: dict[str, Any]) -> dict[str, Any]:
    changes: dict[str, Any] = {}
    for field in ("scopes", "resources", "addresses"):
        if options[f"no_{field}"]:
            if options[field]:
                raise click.UsageError(f"--no-{field} and new ones at the same time")
            changes[field] = ()
    if options["scopes"]:
        changes["scopes"] = check_scopes(options["scopes"])
    if options["resources"]:
        changes["resources"] = grants(options["resources"])
    if options["keys"]:
        read = [_read_node(text) for text in options["keys"]]
        changes["fingerprints"] = tuple(fingerprint for fingerprint, _ in read)
        if found := tuple(address for _, addresses in read for address in addresses):
            changes["addresses"] = found
    if options["addresses"]:
        changes["addresses"] = (*changes.get("addresses", ()), *options["addresses"])
    if options["display_name"] is not None:
        changes["display_name"] = options["display_name"]
    if options["may_offer"] is not None:
        changes["may_offer"] = options["may_offer"]
    return changes


def _set_enabled(name: str, enabled: bool) -> None:
    _update(name, {"enabled": enabled})
    _done(name, "enabled" if enabled else "disabled")


def _update(name: str, changes: dict[str, Any]) -> None:
    """Change a peer; what another process changes at the same time is kept."""
    import msgspec
    import trio

    from alknet.cli.home import open_store, peer_of
    from alknet.cli.running import run
    from alknet.errors import Conflict

    async def write() -> None:
        async with open_store() as identities:
            while True:
                found = peer_of(identities, name)
                version = identities.version
                with usage_errors("peer"):
                    changed = msgspec.structs.replace(found, **changes).normalized()
                try:
                    return await identities.update_peer(changed, was=found)
                except Conflict:
                    # Whoever was faster is seen in a moment; else the conflict is another one.
                    with trio.move_on_after(SEEN_WITHIN_S):
                        await identities.wait_changed(version)
                    if peer_of(identities, name) == found:
                        raise

    run(write)


def _find(name: str) -> Peer:
    from alknet.cli.home import peer_of, read_store

    return read_store(lambda identities: peer_of(identities, name))


def _find_with_waiting(name: str) -> tuple[Peer, Sequence[WaitingKey]]:
    from alknet.cli.home import peer_of, read_store
    from alknet.stores.successors import StoredSuccessors

    def find(identities: StoredIdentities) -> tuple[Peer, Sequence[WaitingKey]]:
        found = peer_of(identities, name)
        return found, StoredSuccessors(identities).waiting(found)

    return read_store(find)


def _write(change: Callable[[IdentityStore], Awaitable[None]]) -> None:
    from alknet.cli.home import open_store
    from alknet.cli.running import run

    async def write() -> None:
        async with open_store() as identities:
            await change(identities)

    run(write)


def _done(name: str, what: str, **more: str) -> None:
    if is_json():
        emit({"peer": name, "done": what, **more})
    else:
        say(f"peer {name} {what}")


def _as_json(one: Peer, waiting: Sequence[str] = ()) -> dict[str, object]:
    return {
        "name": one.name,
        "fingerprints": one.fingerprints,
        "ids": _ids(one),
        "scopes": one.scopes,
        "resources": [str(grant) for grant in one.resources],
        "display_name": one.display_name,
        "addresses": one.addresses,
        "may_offer": one.may_offer,
        "enabled": one.enabled,
        "read_only": one.read_only,
        "waiting_keys": waiting,
    }


def _ids(one: Peer) -> list[str]:
    from alknet.core.nodeid import NodeId

    return [str(NodeId.parse(f)) for f in one.fingerprints if f.startswith("ed25519:")]


def _key(one: Peer) -> str:
    first = (_ids(one) or list(one.fingerprints) or ["-"])[0]
    more = len(one.fingerprints) - 1
    return f"{first} +{more}" if more > 0 else first


def _state(one: Peer) -> str:
    state = "enabled" if one.enabled else "disabled"
    return f"{state} (node.toml)" if one.read_only else state

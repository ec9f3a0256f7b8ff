"""``alknet id`` and ``alknet whoami``: who this node is, and whom others take it for."""

from __future__ import annotations

from typing import Any

import click

from alknet.cli.options import Command, is_json
from alknet.cli.output import emit, emit_raw, fields, note, say
from alknet.cli.own_ticket import configured_ticket, running_ticket
from alknet.cli.remote import TARGET, ask_node, make_remote, remote_options
from alknet.cli.rights import listed

__all__ = ["show_id", "whoami"]


@click.command(
    "id",
    cls=Command,
    examples=[
        "alknet id",
        "alknet id --ticket                the ticket alone, to paste",
        "alknet peer add hub $(ssh hub alknet id --ticket)",
    ],
)
@click.option("--ticket", "ticket_alone", is_flag=True, help="Print the ticket alone.")
def show_id(ticket_alone: bool) -> None:
    """Print this node's id, its fingerprint and its ticket.

    The ticket is what others need to reach it. If the node runs, it is the ticket of what it
    really listens on; if not, of what node.toml says.
    """
    from alknet.cli.home import need_node
    from alknet.core.nodeid import NodeId
    from alknet.vault.homevault import home_public_key

    node_id = NodeId(home_public_key(need_node()))
    ticket = running_ticket() or configured_ticket(node_id)
    if "@" not in ticket:
        note("No address is known by which others reach it: set 'advertise' in node.toml.")
    if is_json():
        emit({"id": str(node_id), "fingerprint": node_id.fingerprint, "ticket": ticket})
    elif ticket_alone:
        say(ticket)
    else:
        fields({"id": node_id, "fingerprint": node_id.fingerprint, "ticket": ticket})


@click.command(
    cls=Command,
    examples=[
        "alknet whoami                              at the running node of this home: its owner",
        "alknet whoami @bob                         as which of bob's peers, with which scopes",
        "alknet whoami @bob --token-file ci.token   what a token stands for",
    ],
)
@click.argument("target", required=False, metavar=TARGET)
@remote_options
def whoami(target: str | None, **options: Any) -> None:
    """Ask a node whom it takes you for, and what it lets you do."""
    import msgspec

    from alknet.cli.running import run

    remote = make_remote(target, **options)

    async def ask() -> bytes:
        async with remote.session() as session:
            return await ask_node(session, remote, "node/whoami")

    output = run(ask)
    if is_json():
        emit_raw(output)
        return
    found = msgspec.json.decode(output, type=dict[str, Any])
    for name in ("scopes", "resources"):
        found[name] = listed(found.get(name) or ())
    fields({name: "-" if value is None else value for name, value in found.items()})

"""``alknet id`` and ``alknet whoami``: who this node is, and whom others take it for."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from alknet.cli.options import Command, is_json, the_home
from alknet.cli.output import emit, emit_raw, fields
from alknet.cli.remote import TARGET, make_remote, remote_options
from alknet.cli.rights import listed

if TYPE_CHECKING:
    from alknet.core.nodeid import NodeId

__all__ = ["show_id", "whoami"]

# The ticket of a running node is a courtesy: one that hangs must not keep `id` from answering.
ASK_WITHIN_S = 2.0


@click.command(
    "id",
    cls=Command,
    examples=[
        "alknet id",
        "alknet id --json | jq -r .ticket",
    ],
)
def show_id() -> None:
    """Print this node's id, its fingerprint and its ticket.

    The ticket is what others need to reach it. If the node runs, it is the ticket of what it
    really listens on; if not, of what node.toml says.
    """
    from alknet.cli.home import need_node
    from alknet.core.nodeid import NodeId
    from alknet.vault.homevault import home_public_key

    node_id = NodeId(home_public_key(need_node()))
    ticket = _running_ticket() or _configured_ticket(node_id)
    if is_json():
        emit({"id": str(node_id), "fingerprint": node_id.fingerprint, "ticket": ticket})
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
            return bytes(await session.call("node/whoami", {}, **remote.options))

    output = run(ask)
    if is_json():
        emit_raw(output)
        return
    found = msgspec.json.decode(output, type=dict[str, Any])
    for name in ("scopes", "resources"):
        found[name] = listed(found.get(name) or ())
    fields({name: "-" if value is None else value for name, value in found.items()})


def _running_ticket() -> str | None:
    """Return the ticket that the running node gives itself; None if none runs."""
    from alknet.cli.running import run

    if not (the_home() / "control.sock").exists():
        return None

    async def ask() -> str | None:
        import msgspec
        import trio

        from alknet.client import open_control_session
        from alknet.errors import AlknetError

        try:
            with trio.move_on_after(ASK_WITHIN_S):
                async with open_control_session(the_home()) as session:
                    status = await session.call("node/status", {})
                    return str(msgspec.json.decode(status, type=dict[str, Any])["ticket"])
        except (AlknetError, OSError):
            return None  # `alknet status` says what is wrong with it
        return None

    return run(ask)


def _configured_ticket(node_id: NodeId) -> str:
    from alknet.cli.home import load_home_config
    from alknet.core.endpoint.interfaces import reachable_addresses
    from alknet.core.ticket import Ticket

    config = load_home_config()
    fixed = [address for address in config.listen if address.port]
    return str(Ticket(node_id, config.advertise or reachable_addresses(fixed)))

"""``alknet worker``: this node as a worker, which dials its hub and is called by it."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from alknet.cli.failures import CommandError
from alknet.cli.hubs import list_hubs, own_outbound, running_outbound
from alknet.cli.names import did_you_mean
from alknet.cli.options import Group, is_json, usage_errors
from alknet.cli.output import emit, fields, note, say
from alknet.cli.rights import check_scopes, listed

if TYPE_CHECKING:
    from alknet.call.enrolment import Claimed
    from alknet.core.identity import Peer
    from alknet.core.invitation import Invitation

__all__ = ["worker"]

NOTHING = "nothing but public operations"


@click.group(
    cls=Group,
    examples=[
        "alknet worker join --allow jobs:run < w1.invite",
        "alknet worker list",
        "alknet worker leave hub",
    ],
)
def worker() -> None:
    """Make this node a worker of a hub: it dials the hub, and comes back by itself.

    The hub calls the worker by the connection that the worker has made, so the worker may be
    behind NAT. What the hub may do here, this node decides.
    """


@worker.command(
    examples=[
        "alknet worker join < w1.invite",
        "alknet worker join --file w1.invite --name hub --allow jobs:run --allow fs:read",
        "ssh hub alknet peer invite w1 | alknet worker join --allow '*'",
    ],
)
@click.argument("misplaced", nargs=-1, metavar="", type=click.UNPROCESSED)
@click.option(
    "--file",
    metavar="FILE",
    type=click.Path(path_type=Path, dir_okay=False, exists=True),
    help="Where the invitation is; by default it comes by standard input.",
)
@click.option("--name", metavar="HUB", default="hub", help="What to call the hub here; 'hub'.")
@click.option(
    "--allow",
    metavar="SCOPE",
    multiple=True,
    help="What the hub may do here, as 'jobs:run' or 'fs:*'; repeatable. By default public "
    "operations alone.",
)
@click.option("--as", "own_name", metavar="NAME", help="Refuse an invitation for another name.")
def join(
    misplaced: Sequence[str],
    file: Path | None,
    name: str,
    allow: Sequence[str],
    own_name: str | None,
) -> None:
    """Join the hub that has made the invitation, which 'alknet peer invite' prints there.

    Each knows the other by its key from then on. It can be repeated: what an earlier attempt has
    left undone is completed. --allow replaces what the hub was allowed before.
    """
    from alknet.cli.home import node_key
    from alknet.cli.running import run
    from alknet.core.identity import Peer

    if misplaced:
        raise click.UsageError(
            "an invitation is not an argument, which others on this machine can see: give it by "
            "standard input or --file, and have this one revoked"
        )
    invitation = _read_invitation(file)
    with usage_errors("--name"):
        hub = Peer(name=name, scopes=check_scopes(allow)).normalized()
    key = node_key()

    async def joined() -> tuple[Claimed, Peer]:
        from alknet.cli.home import load_home_config, open_store
        from alknet.client import join_hub
        from alknet.core.endpoint.dial import DialError

        addresses = tuple(map(str, load_home_config().advertise))
        async with open_store() as identities:
            outbound = own_outbound(identities)
            try:
                return await join_hub(
                    invitation,
                    outbound,
                    key=key,
                    hub=hub,
                    keep_scopes=not allow,
                    name=own_name,
                    addresses=addresses,
                )
            except DialError as exc:
                exc.add_note(
                    "does the hub run ('alknet up'), and do these addresses, which stand in the "
                    "invitation, lead to it? 'alknet peer invite NAME --address HOST:PORT' there "
                    "makes one with another"
                )
                raise
            except Exception as exc:  # boundary: what this command can say more of
                if (error := _explained(exc)) is None:
                    raise
                raise error from exc

    _show_joined(invitation, *run(joined))


worker.add_command(list_hubs)


@worker.command(examples=["alknet worker leave hub", "alknet worker leave hub --forget"])
@click.argument("name")
@click.option("--forget", is_flag=True, help="Remove its peer record too: it is a stranger then.")
def leave(name: str, forget: bool) -> None:
    """Dial a hub no more; a running node closes the connection within a second.

    The hub stays a peer here unless --forget is given, and keeps its own record of this node.
    """
    from alknet.cli.home import open_store
    from alknet.cli.running import run
    from alknet.errors import NotFound

    name = name.removeprefix("@")

    async def left() -> None:
        async with open_store() as identities:
            outbound = own_outbound(identities)
            try:
                await outbound.leave(name)
            except NotFound as exc:
                near = did_you_mean(name, (target.name for target in outbound.targets()))
                hint = f"{near} 'alknet worker list' lists them".lstrip()
                raise CommandError("NOT_FOUND", str(exc), hint=hint) from exc
            if forget:
                await identities.remove_peer(name)

    run(left)
    if is_json():
        emit({"peer": name, "done": "left", "forgotten": forget})
    else:
        say(f"left {name}{' and forgot it' if forget else ''}")


def _read_invitation(file: Path | None) -> Invitation:
    from alknet.core.invitation import MAX_INVITATION_CHARS, Invitation

    most = MAX_INVITATION_CHARS + 1
    if file is not None:
        with file.open(encoding="utf-8", errors="replace") as opened:
            text = opened.read(most)
        if file.stat().st_mode & 0o077:
            note(f"Others may read {file}, and could have used the invitation: chmod 600 '{file}'.")
    elif sys.stdin.isatty():
        text = click.prompt("Invitation", hide_input=True, err=True)
    else:
        text = sys.stdin.read(most)
    with usage_errors("--file" if file is not None else "standard input"):
        return Invitation.parse(text)


def _explained(exc: Exception) -> CommandError | None:
    """Say what to do about a refusal; None for what says it itself."""
    from alknet.call.codes import CallError, ErrorCode
    from alknet.errors import Conflict

    if isinstance(exc, Conflict):
        hint = (
            "'alknet peer list' shows who has this key or name: join with --name and the name of "
            "the peer that has the key, or else one that nobody has"
        )
        return CommandError("CONFLICT", f"{exc} on this node", hint=hint)
    if isinstance(exc, CallError) and exc.code == ErrorCode.FORBIDDEN:
        hint = "have its owner make a new one: 'alknet peer invite NAME'"
        return CommandError("DENIED", f"the hub refuses: {exc.message}", hint=hint, status=3)
    if isinstance(exc, CallError) and exc.code == ErrorCode.CONFLICT:
        hint = (
            "its owner removes the peer there; where only the name is taken, an invitation for "
            "another name will do"
        )
        return CommandError("CONFLICT", f"the hub refuses: {exc.message}", hint=hint)
    return None


def _show_joined(invitation: Invitation, claimed: Claimed, hub: Peer) -> None:
    node_id = str(invitation.ticket.node_id)
    if is_json():
        emit(
            {
                "hub": hub.name,
                "id": node_id,
                "as": claimed.name,
                "allowed": hub.scopes,
                "granted": claimed.scopes,
                "addresses": hub.addresses,
            }
        )
        return
    fields(
        {
            "hub": f"{hub.name}  {node_id}",
            "addresses": listed(hub.addresses),
            "we are there": claimed.name,
            "we may do there": ", ".join(claimed.scopes) or NOTHING,
            "it may do here": ", ".join(hub.scopes) or NOTHING,
        }
    )
    if running_outbound() is None:
        note("This node does not run: 'alknet up' connects it to the hub.")

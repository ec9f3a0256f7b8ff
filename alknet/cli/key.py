"""``alknet key``: the node's identity, and a new one in its place."""

from __future__ import annotations

import sys
from typing import Any

import click

from alknet.cli.auditing import record_done
from alknet.cli.failures import CommandError
from alknet.cli.options import Group, is_json, the_home
from alknet.cli.output import emit, fields, note, say, table
from alknet.cli.unlocking import make_unlock, open_vault, unlock_options

__all__ = ["key"]


@click.group(
    cls=Group,
    examples=[
        "alknet key rotate      a new key for this node, signed by the old one",
        "alknet key history     which keys it had",
    ],
)
def key() -> None:
    """Give this node a new key, and show which ones it had.

    All keys come from the node's 24 words: a rotation takes the next device number of the same
    words. It is for keys that are old, not for keys that were stolen: a thief can sign, too.
    """


@key.command(
    examples=[
        "alknet key rotate",
        "alknet key rotate --device 7      when another machine of these words has the next number",
    ],
)
@click.option(
    "--device",
    type=click.IntRange(0, 2**31 - 1),
    metavar="N",
    help="The device number of the new key; by default the next one.",
)
@click.option("--yes", is_flag=True, help="Do not ask whether to go on.")
@unlock_options
def rotate(device: int | None, yes: bool, **unlock: Any) -> None:
    """Give this node a new key, which the old one signs over to.

    The node has another id and ticket from its next start on. It then tells all peers whose
    addresses it knows; their owners take the new key over with 'alknet peer follow NAME', which
    checks the old key's signature. The old key can still be derived from the words.

    Name --device where another machine has the same words, for two nodes must not share a key.
    """
    from alknet.cli.running import uninterrupted
    from alknet.core.clock import wall_clock
    from alknet.core.nodeid import NodeId
    from alknet.stores.succession import rotate_identity

    vault = open_vault(make_unlock(**unlock))
    try:
        _confirm(yes)
        with uninterrupted():
            made = rotate_identity(vault, the_home(), now=wall_clock(), device=device)
        number = vault.header.device
    finally:
        vault.lock()
    old, new = NodeId(made.old), NodeId(made.new)
    record_done(("key.rotate", str(new)))
    if is_json():
        emit({"old": str(old), "id": str(new), "fingerprint": new.fingerprint, "device": number})
        return
    fields({"old id": old, "id": new, "device": number})
    say("Restart the node: it tells its peers, who run 'alknet peer follow' with its name there.")


@key.command(examples=["alknet key history", "alknet key history --json"])
def history() -> None:
    """Show the keys that this node had, oldest first, and when each was signed over."""
    from datetime import UTC, datetime

    from alknet.cli.home import need_node
    from alknet.core.nodeid import NodeId
    from alknet.stores.succession import read_succession
    from alknet.vault.homevault import home_public_key

    home = need_node()
    chain = read_succession(home, home_public_key(home))
    if is_json():
        emit(
            {
                "statements": [
                    {
                        "old": str(NodeId(one.old)),
                        "id": str(NodeId(one.new)),
                        "signed_at": one.signed_at,
                    }
                    for one in chain
                ]
            }
        )
        return
    rows = [
        (datetime.fromtimestamp(one.signed_at, UTC).date(), NodeId(one.old), NodeId(one.new))
        for one in chain
    ]
    table(("date", "old id", "new id"), rows, empty="the node has its first key")


def _confirm(yes: bool) -> None:
    if yes:
        return
    if not sys.stdin.isatty():
        raise CommandError(
            "USAGE", "this changes the node's id, and there is no terminal to ask", hint="add --yes"
        )
    note("The node gets another id, and its peers must follow it with 'alknet peer follow'.")
    click.confirm("Go on?", abort=True, err=True)

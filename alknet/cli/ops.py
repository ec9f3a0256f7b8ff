"""``alknet ops``: what a node lets us call."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import click

from alknet.cli.options import Command, is_json
from alknet.cli.output import emit_raw, say_json, table
from alknet.cli.remote import TARGET, make_remote, remote_options, split_target

__all__ = ["ops"]


@click.command(
    cls=Command,
    examples=[
        "alknet ops                         of the running node of this home, all of them",
        "alknet ops @bob                    those that bob lets this node call",
        "alknet ops @bob echo/stream        one, with the schemas of its input and output",
        "alknet ops @bob --prefix echo/ --json",
    ],
)
@click.argument("words", nargs=-1, metavar=f"{TARGET} [OP]")
@click.option("--prefix", default="", metavar="P", help="Those whose names begin so.")
@remote_options
def ops(words: Sequence[str], prefix: str, **options: Any) -> None:
    """List the operations that a node lets you call, or describe one.

    What you lack the scopes for is not listed; a token (--token-file, ALKNET_TOKEN) may show more.
    """
    from alknet.cli.running import run

    target, rest = split_target(words)
    if len(rest) > 1:
        raise click.UsageError("more than one operation")
    remote = make_remote(target, **options)
    operation = rest[0].removeprefix("/") if rest else None

    async def ask() -> bytes:
        async with remote.session() as session:
            if operation is None:
                call = session.call("services/list", {"prefix": prefix}, **remote.options)
            else:
                call = session.call("services/schema", {"name": operation}, **remote.options)
            return bytes(await call)

    output = run(ask)
    if is_json():
        emit_raw(output)
    elif operation is not None:
        say_json(output)
    else:
        _list(output)


def _list(output: bytes) -> None:
    import msgspec

    found = msgspec.json.decode(output, type=dict[str, Any])["operations"]
    rows = [(one["name"], one["op_type"], one.get("description", "")) for one in found]
    table(("operation", "type", "description"), rows, empty="no operations that you may call")

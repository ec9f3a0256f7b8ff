"""``alknet ops``: what a node lets us call."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import click

from alknet.cli.options import Command, is_json
from alknet.cli.output import emit, emit_raw, say_json, table
from alknet.cli.peers import listed_peers
from alknet.cli.remote import ANY, TARGET, Remote, make_remote, remote_options, split_target

if TYPE_CHECKING:
    from alknet.call.session import CallSession

__all__ = ["ops"]

# Of the operations of a node further on, for which each is asked by itself.
ASKED_AT_ONCE = 8
LISTED_KEYS = ("name", "namespace", "op_type", "title", "description")


@click.command(
    cls=Command,
    examples=[
        "alknet ops                         of the running node of this home, all of them",
        "alknet ops @bob                    those that bob lets this node call",
        "alknet ops @bob echo/stream        one, with the schemas of its input and output",
        "alknet ops @bob --prefix echo/ --json",
        "alknet ops --peers                 of its peers, with who offers each: @any calls them",
    ],
)
@click.argument("words", nargs=-1, metavar=f"{TARGET} [OP]")
@click.option("--prefix", default="", metavar="P", help="Those whose names begin so.")
@click.option("--peers", is_flag=True, help="Those of the node's peers that you may call.")
@remote_options
def ops(words: Sequence[str], prefix: str, peers: bool, **options: Any) -> None:
    """List the operations that a node lets you call, or describe one.

    What you lack the scopes for is not listed; a token (--token-file, ALKNET_TOKEN) may show more.
    With --peers, and for @any, who offers each is listed instead of what it is.
    """
    from alknet.cli.running import run

    target, rest = split_target(words)
    if len(rest) > 1:
        raise click.UsageError("more than one operation")
    remote = make_remote(target, **options)
    operation = rest[0].removeprefix("/") if rest else None
    if peers and operation is not None:
        raise click.UsageError("--peers lists: name no operation")
    output = run(lambda: _ask(remote, operation, prefix.removeprefix("/"), peers))
    if isinstance(output, dict):
        _list_offers(output, target)
    elif is_json():
        emit_raw(output)
    elif operation is not None:
        say_json(output)
    else:
        _list(output, target)


async def _ask(
    remote: Remote, operation: str | None, prefix: str, peers: bool
) -> bytes | dict[str, list[str]]:
    async with remote.session() as session:
        if operation is not None:
            about = {"name": operation, "peer": remote.route}
            return bytes(await session.call("services/schema", about, **remote.direct_options))
        if not peers and remote.route[-1:] != (ANY,):
            return await _listed(session, remote, prefix)
        before = remote.route if peers else remote.route[:-1]
        return await _offers(session, remote, before, prefix)


async def _listed(session: CallSession, remote: Remote, prefix: str) -> bytes:
    """Return what the node at the end of the route lists, as ``services/list`` does."""
    from alknet.call.codes import CallError, ErrorCode

    try:
        return bytes(await session.call("services/list", {"prefix": prefix}, **remote.options))
    except CallError as exc:
        if not remote.route or exc.code != ErrorCode.NOT_FOUND:
            raise
    # Nodes pass this on for their owners alone; to others they tell what they pass on.
    *before, last = remote.route
    offers = await _offers(session, remote, tuple(before), prefix)
    names = [name for name, who in offers.items() if last in who]
    return await _described(session, remote, names)


async def _described(session: CallSession, remote: Remote, names: Sequence[str]) -> bytes:
    """Ask for each of *names*, some at a time; what is gone meanwhile is left out."""
    import msgspec
    import trio

    from alknet.call.codes import CallError

    found: dict[str, dict[str, Any]] = {}
    turns = trio.CapacityLimiter(ASKED_AT_ONCE)

    async def ask(name: str) -> None:
        about = {"name": name, "peer": remote.route}
        try:
            async with turns:
                output = await session.call("services/schema", about, **remote.direct_options)
        except CallError:
            return
        schema = msgspec.json.decode(output, type=dict[str, Any])
        found[name] = {key: schema[key] for key in LISTED_KEYS if key in schema}

    async with trio.open_nursery() as nursery:
        for name in names:
            nursery.start_soon(ask, name)
    return msgspec.json.encode({"operations": [found[name] for name in sorted(found)]})


async def _offers(
    session: CallSession, remote: Remote, before: tuple[str, ...], prefix: str
) -> dict[str, list[str]]:
    """Return who offers each operation, of the peers of the node at the end of *before*."""
    found = await listed_peers(session, **remote.direct_options, peer=before or None)
    offers: dict[str, list[str]] = {}
    for one in found:
        for name in one["operations"]:
            if name.startswith(prefix):
                offers.setdefault(name, []).append(one["name"])
    return dict(sorted(offers.items()))


def _list_offers(offers: Mapping[str, Sequence[str]], target: str | None) -> None:
    if is_json():
        emit({"operations": [{"name": name, "peers": who} for name, who in offers.items()]})
        return
    rows = [(name, len(who), ", ".join(who)) for name, who in offers.items()]
    empty = "no operations of peers that you may call"
    if target is not None:  # [federation] list_peers there
        empty = f"{target}: {empty}, or none that are told of"
    table(("operation", "peers", "offered by"), rows, empty=empty)


def _list(output: bytes, target: str | None) -> None:
    import msgspec

    found = msgspec.json.decode(output, type=dict[str, Any])["operations"]
    rows = [(one["name"], one["op_type"], _first_line(one)) for one in found]
    empty = "no operations that you may call"
    if target is not None and "/" in target:  # [federation] list_peers there
        empty = f"{target}: {empty}, or none that are told of"
    table(("operation", "type", "description"), rows, empty=empty)


def _first_line(one: Mapping[str, Any]) -> str:
    """Return what of an operation's description fits a table."""
    return next(iter(str(one.get("description", "")).splitlines()), "")

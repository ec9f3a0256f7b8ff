"""``alknet peers``: who can be called through a node, as a tree, and how they are."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import click

from alknet.cli.dialled import short_error
from alknet.cli.failures import CommandError
from alknet.cli.options import Command, is_json
from alknet.cli.output import emit, note, table
from alknet.cli.remote import TARGET, Remote, make_remote, remote_options
from alknet.cli.table import printable
from alknet.cli.units import duration

if TYPE_CHECKING:
    from alknet.call.session import CallSession

__all__ = ["listed_peers", "peers"]

DEPTH = 2
MAX_DEPTH = 8
# A peer that does not answer within this is shown without its own peers.
ANSWER_S = 3.0

Listed = dict[str, Any]


@click.command(
    cls=Command,
    examples=[
        "alknet peers                     those that this home's node is connected to, and theirs",
        "alknet peers --depth 1           its own alone",
        "alknet peers --connected         without those that are away",
        "alknet peers @hub                those that hub lets this node reach",
        "alknet peers --json | jq '.peers[].name'",
    ],
)
@click.argument("target", required=False, metavar=TARGET)
@click.option(
    "--depth",
    type=click.IntRange(1, MAX_DEPTH),
    default=DEPTH,
    show_default=True,
    help="1: the node's own peers; 2: theirs too, as far as they tell …",
)
@click.option("--connected", is_flag=True, help="Leave out the node's peers that are not.")
@remote_options
def peers(target: str | None, depth: int, connected: bool, **options: Any) -> None:
    """Show which peers can be called through a node, and how they are.

    First come those that are connected and serve operations, with the path to each ('by') and its
    round-trip time, how long small calls took of late, their work included, the calls in flight,
    and how many of its operations you may call. Of this home's node all other peers follow:
    'away', and for how long if they were here since it started; 'serves none' while connected; or
    'disabled'. Those that it dials and does not reach stand below, with the reason.

    Of other nodes you see what they re-export to you, if they list their peers at all.
    """
    from alknet.cli.running import run

    remote = make_remote(target, **options)
    found = run(lambda: _ask(remote, depth))
    if connected:
        found["others"] = []
    if is_json():
        emit(found)
        return
    rows = [_row(*one) for one in _flat([*found["peers"], *found["others"]])]
    table(_HEADERS, rows, empty=_empty(target, connected))
    for one in found["not_connected"]:
        wait = one["next_try_in_s"]
        then = "" if wait is None else f", next try in {duration(wait)}"
        why = short_error(one["last_error"] or one["state"])
        note(f"{one['peer']} is not connected: {printable(why)}{then}")


def _empty(target: str | None, connected: bool) -> str:
    if target is not None:
        return f"{target} tells of no peers that you may call; it may keep them to itself"
    if connected:
        return "no peers are connected"
    return "no peers; 'alknet peer invite NAME' lets one join, 'alknet peer add' adds one"


async def listed_peers(session: CallSession, **options: Any) -> list[Listed]:
    """Return all that ``services/list-peers`` tells, page by page."""
    import msgspec

    found: list[Listed] = []
    after = ""
    while True:
        wanted = {"with_operations": True, "after": after}
        output = await session.call("services/list-peers", wanted, **options)
        page = msgspec.json.decode(output, type=dict[str, Any])
        found += page["peers"]
        if not page["next"]:
            return found
        after = page["next"]


async def _ask(remote: Remote, depth: int) -> dict[str, Any]:
    import msgspec

    async with remote.session() as session:
        found = await _own_peers(session, remote)
        state: dict[str, Any] = {}
        if remote.target is None:  # as its owner we see more
            state = msgspec.json.decode(await session.call("node/status"), type=dict[str, Any])
            _add_paths(found, state["connections"])
        await _add_theirs(session, remote, found, (), depth)
    connected = {one["name"] for one in found}
    outbound = [one for one in state.get("outbound", ()) if one["peer"] not in connected]
    others = [one for one in state.get("peers", ()) if one["name"] not in connected]
    return {
        "peers": found,
        "others": [_other(one, state["connections"]) for one in others],
        "not_connected": outbound,
    }


async def _own_peers(session: CallSession, remote: Remote) -> list[Listed]:
    from alknet.call.codes import CallError, ErrorCode

    try:
        return await listed_peers(session, **remote.options)
    except CallError as exc:
        if not remote.route or exc.code != ErrorCode.NOT_FOUND:
            raise
        hint = "only the owner of a node is passed on to its peers for this: ask the node itself"
        raise CommandError("NOT_FOUND", f"cannot ask {remote.target}", hint=hint) from exc


def _other(known: Mapping[str, Any], connections: Sequence[Mapping[str, Any]]) -> Listed:
    """Return a peer that cannot be called now: it is not here, or serves nothing."""
    other: Listed = {"name": known["name"]}
    _add_paths([other], connections)
    state = "serves none" if other["paths"] else "away" if known["enabled"] else "disabled"
    away_for_s = None if other["paths"] else known.get("away_for_s")
    return {**other, "state": state, "away_for_s": away_for_s}


def _add_paths(found: Sequence[Listed], connections: Sequence[Mapping[str, Any]]) -> None:
    for one in found:
        mine = [c for c in connections if c["identity"] == f"peer:{one['name']}"]
        one["paths"] = [f"{c['carrier']} {c['address']}" for c in mine]
        known = [(c.get("transport") or {}).get("rtt_s") for c in mine]
        one["path_rtt_ms"] = min((1000 * rtt_s for rtt_s in known if rtt_s), default=None)


async def _add_theirs(
    session: CallSession,
    remote: Remote,
    found: Sequence[Listed],
    route: tuple[str, ...],
    depth: int,
) -> None:
    """Ask each peer for its own, at once; whoever does not tell has none."""
    import trio

    from alknet.call.codes import CallError

    async def ask(one: Listed) -> None:
        way = (*route, one["name"])
        options = {**remote.options, "peer": (*remote.route, *way), "timeout_s": ANSWER_S}
        try:
            one["peers"] = await listed_peers(session, **options)
        except CallError:
            one["peers"] = []
        await _add_theirs(session, remote, one["peers"], way, depth - 1)

    if depth <= 1:
        return
    async with trio.open_nursery() as nursery:
        for one in found:
            nursery.start_soon(ask, one)


_HEADERS = ("peer", "state", "by", "rtt ms", "call ms", "in flight", "operations")


def _flat(found: Sequence[Listed], indent: str = "") -> Iterator[tuple[str, Listed]]:
    for number, one in enumerate(found, 1):
        is_last = number == len(found)
        yield f"{indent}{'└─' if is_last else '├─'} {one['name']}", one
        yield from _flat(one.get("peers", ()), indent + ("   " if is_last else "│  "))


def _row(name: str, one: Listed) -> tuple[object, ...]:
    times_ms = (one.get("path_rtt_ms"), one.get("rtt_ms"))
    return (
        name,
        _state(one),
        ", ".join(one.get("paths", ())) or "-",
        *("-" if time_ms is None else f"{time_ms:.1f}" for time_ms in times_ms),
        one.get("in_flight", "-"),
        "-" if "state" in one else len(one.get("operations", ())),
    )


def _state(one: Listed) -> str:
    if "state" not in one:
        return "up" if one["is_healthy"] else "ejected"
    since = one["away_for_s"]
    return f"{one['state']}{'' if since is None else f' {duration(since)}'}"

"""What to do about a peer that is not connected, or that is not the one that offers something."""

from __future__ import annotations

import re
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

from alknet.cli.dialled import short_error
from alknet.cli.failures import leaves
from alknet.cli.table import printable
from alknet.cli.units import duration

if TYPE_CHECKING:
    from alknet.call.session import CallSession

__all__ = ["advised"]

# A hint is a courtesy: a node that does not answer is not waited for.
ASK_WITHIN_S = 2.0

# As `alknet.call.peers` says it.
_NOT_CONNECTED = re.compile(r"the peer '(?P<name>[^']+)' is not connected")
_NOT_THERE = re.compile(r"no operation named '(?P<name>[^']+)'")


@asynccontextmanager
async def advised(
    session: CallSession, target: str | None, *, is_own: bool
) -> AsyncGenerator[None]:
    """Note on errors of the block what the user can do: where a peer is away, or others offer it.

    Args:
        session: With the node that calls by the route of *target*.
        target: ``@hub/w1``, as the user typed it.
        is_own: That node is the one of this home.
    """
    from alknet.call.codes import CallError

    try:
        yield
    except (CallError, BaseExceptionGroup) as exc:
        for error in leaves(exc):
            if not isinstance(error, CallError):
                continue
            if found := _NOT_CONNECTED.search(error.message):
                error.add_note(await _advice(session, target or "", found["name"], is_own))
            elif found := _NOT_THERE.fullmatch(error.message):
                for advice in await _who_offers(session, target, found["name"]):
                    error.add_note(advice)
        raise


async def _advice(session: CallSession, target: str, name: str, is_own: bool) -> str:
    route = target.removeprefix("@").split("/")
    at = route.index(name) if name in route else 0
    if not is_own or at > 0:
        return f"'alknet peers @{'/'.join(route[:at] or route[:1])}' shows whom that node reaches"
    status = await _status(session)
    for one in status.get("outbound", ()):
        if one["peer"] == name:
            why = printable(short_error(one["last_error"] or one["state"]))
            return f"this node dials it: {why}; 'alknet worker list' shows all attempts"
    for one in status.get("peers", ()):
        if one["name"] == name:
            if not one["enabled"]:
                return f"this node has disabled it: 'alknet peer enable {name}'"
            since = one["away_for_s"]
            last = "not since this node started" if since is None else f"{duration(since)} ago"
            return (
                f"it dials this node, and was last here: {last}; is 'alknet up' running there? "
                "'alknet peers' shows who is here"
            )
    return "'alknet peers' shows who is here"


async def _status(session: CallSession) -> dict[str, Any]:
    import msgspec
    import trio

    from alknet.errors import AlknetError

    with trio.move_on_after(ASK_WITHIN_S):
        try:
            output = await session.call("node/status", {})
        except AlknetError:
            return {}
        return msgspec.json.decode(output, type=dict[str, Any])
    return {}


async def _who_offers(session: CallSession, target: str | None, operation: str) -> list[str]:
    """Return an advice if peers of the node at *target* offer *operation*."""
    import trio

    from alknet.cli.peers import listed_peers
    from alknet.errors import AlknetError

    if target is not None and ("/" in target or not target.startswith("@")):
        return []
    who: list[str] = []
    with trio.move_on_after(ASK_WITHIN_S):
        try:
            found = await listed_peers(session)
        except AlknetError:
            return []
        who = [one["name"] for one in found if operation in one["operations"]]
    if not who:
        return []
    prefix = "@" if target is None else f"{target}/"
    names = f"{who[0]}{f' and {len(who) - 1} more peers' if len(who) > 1 else ''}"
    do = f"name it as {prefix}{who[0]}, or any that does as {prefix}any"
    return [f"{names} offer{'s' if len(who) == 1 else ''} it: {do}"]

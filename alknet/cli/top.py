"""``alknet top``: the connections of a running node, as they are from second to second."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import click

from alknet.cli.options import Command, Duration, is_json
from alknet.cli.output import emit, paint, say
from alknet.cli.peers import listed_peers
from alknet.cli.remote import TARGET, Remote, make_remote, remote_options
from alknet.cli.table import render
from alknet.cli.units import amount, duration, milliseconds

__all__ = ["top"]

# To the upper left corner, and clear from there on: no flicker as from clearing before.
HOME, CLEAR_LINE, CLEAR_BELOW = "\x1b[H", "\x1b[K", "\x1b[J"
ALTERNATE, USUAL = "\x1b[?1049h\x1b[?25l", "\x1b[?25h\x1b[?1049l"


@click.command(
    cls=Command,
    examples=[
        "alknet top",
        "alknet top --interval 5s",
        "alknet top --count 1             once, for a report",
        "alknet top --json | jq .peers    a line of JSON each time",
    ],
)
@click.argument("target", required=False, metavar=TARGET)
@click.option("--interval", type=Duration(), default="1s", show_default=True, help="Between looks.")
@click.option("--count", type=click.IntRange(1), metavar="N", help="Stop after N looks.")
@remote_options
def top(target: str | None, interval: float, count: int | None, **options: Any) -> None:
    """Watch a running node: its peers, connections, calls and traffic. Ctrl-C ends it.

    Busiest connections come first. Rates are since the last look. Of another node only who was
    granted the scope admin:node there sees this.
    """
    from alknet.cli.running import run

    remote = make_remote(target, **options)
    is_live = sys.stdout.isatty() and not is_json() and count != 1
    try:
        if is_live:
            sys.stdout.write(ALTERNATE)
        run(lambda: _watch(remote, interval, count, is_live))
    finally:
        if is_live:
            sys.stdout.write(USUAL)
            sys.stdout.flush()


async def _watch(remote: Remote, interval: float, count: int | None, is_live: bool) -> None:
    import trio

    before: Mapping[str, Any] | None = None
    looks = 0
    async with remote.session() as session:
        while True:
            now = await _look(session, remote)
            _show(now, before, interval, is_live)
            before = now
            looks += 1
            if looks == count:
                return
            await trio.sleep(interval)


async def _look(session: Any, remote: Remote) -> Mapping[str, Any]:
    import msgspec

    output = await session.call("node/status", {}, **remote.options)
    state = msgspec.json.decode(output, type=dict[str, Any])
    state["callable_peers"] = await listed_peers(session, **remote.options)
    return state


def _show(
    now: Mapping[str, Any], before: Mapping[str, Any] | None, interval: float, is_live: bool
) -> None:
    if is_json():
        names = ("id", "uptime_s", "calls", "handshakes", "connections")
        emit({**{name: now[name] for name in names}, "peers": now["callable_peers"]})
        return
    size = shutil.get_terminal_size()
    width = size.columns if sys.stdout.isatty() else None
    lines = _lines(now, before, interval, width)
    if not is_live:
        say("\n".join(lines))
        return
    shown = lines[: size.lines - 1]
    sys.stdout.write(HOME + "".join(f"{line}{CLEAR_LINE}\n" for line in shown) + CLEAR_BELOW)
    sys.stdout.flush()


def _lines(
    now: Mapping[str, Any], before: Mapping[str, Any] | None, interval: float, width: int | None
) -> list[str]:
    peers = now["callable_peers"]
    ejected = sum(not one["is_healthy"] for one in peers)
    head = (
        f"{now['id'][:10]}  up {duration(now['uptime_s'])}  calls {now['calls']}  "
        f"connections {len(now['connections'])}  handshakes {now['handshakes']}  "
        f"peers {len(peers)}{f' ({ejected} ejected)' if ejected else ''}"
    )
    rows = sorted(_rows(now, before, interval), key=lambda row: row[0], reverse=True)
    shown = render(_HEADERS, [row[1] for row in rows], width=width).splitlines()
    return [head, "", paint(shown[0], bold=True), *shown[1:]]


_HEADERS = (
    *("IDENTITY", "BY", "ADDRESS", "ALPN", "AGE", "CALLS", "RTT MS", "OUT/S", "IN/S", "LOST"),
)


def _rows(
    now: Mapping[str, Any], before: Mapping[str, Any] | None, interval: float
) -> Sequence[tuple[tuple[float, float], tuple[object, ...]]]:
    """Return the rows, each after what it is sorted by: calls, then bytes."""
    known = {} if before is None else {one["id"]: one for one in before["connections"]}
    rows = []
    for one in now["connections"]:
        transport = one.get("transport") or {}
        earlier = (known.get(one["id"]) or {}).get("transport") or {}
        out, came = (
            _rate(transport, earlier, name, interval) for name in ("sent_bytes", "received_bytes")
        )
        calls = one.get("calls") or 0
        rtt_s, lost = transport.get("rtt_s"), transport.get("packets_lost")
        cells = (
            *(one["identity"], one["carrier"], one["address"], one["alpn"]),
            *(duration(one["age_s"]), calls, "-" if rtt_s is None else milliseconds(rtt_s)),
            *("-" if rate is None else amount(int(rate)) for rate in (out, came)),
            "-" if lost is None else lost,
        )
        rows.append(((calls, (out or 0.0) + (came or 0.0)), cells))
    return rows


def _rate(
    now: Mapping[str, Any], earlier: Mapping[str, Any], name: str, interval: float
) -> float | None:
    if now.get(name) is None or earlier.get(name) is None:
        return None
    return float(now[name] - earlier[name]) / interval

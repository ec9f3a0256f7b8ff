"""``alknet ping``: round trips of the call protocol."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from alknet.cli.failures import CommandError
from alknet.cli.options import Command, is_json
from alknet.cli.output import emit, say
from alknet.cli.remote import ANY, TARGET, Remote, make_remote, remote_options
from alknet.cli.table import printable

if TYPE_CHECKING:
    from alknet.call.session import CallSession

__all__ = ["ping", "shown_id"]

# A node that does not answer a ping within this time is not there for a person.
DEFAULT_TIMEOUT_S = 5.0
INSTEAD = (
    "ping speaks to neighbours only: 'alknet ping {near}' measures the way there, "
    "'alknet peers {near}' shows how fast its peers answer it"
)


@click.command(
    cls=Command,
    examples=[
        "alknet ping @bob",
        "alknet ping @bob -c 100 -i 0 --transport tcp",
        "alknet ping alknet://ybndr…@192.0.2.7:4433 --json",
    ],
)
@click.argument("target", required=False, metavar=TARGET)
@click.option("-c", "--count", type=click.IntRange(1), default=4, show_default=True, metavar="N")
@click.option(
    "-i",
    "--interval",
    type=click.FloatRange(0, 3600),
    default=0.2,
    show_default=True,
    metavar="S",
    help="Seconds between two pings.",
)
@remote_options
def ping(target: str | None, count: int, interval: float, **options: Any) -> None:
    """Measure round trips to a node, by calls of node/ping on one connection.

    The node is one that this machine or the node of this home has a connection to: of peers of
    other nodes, as @hub/w1, 'alknet peers @hub' shows how fast they answer there.

    Says also how long the connection took, by which transport, and who answered. Exits with 5 if
    no ping was answered in time (--timeout, 5 s).
    """
    from alknet.cli.running import run

    options["timeout"] = options["timeout"] or DEFAULT_TIMEOUT_S
    if target is not None and target.startswith("@") and ANY in target[1:].split("/"):
        raise click.UsageError(f"'{ANY}' is no node to measure the way to: name a peer")
    remote = make_remote(target, **options)
    run(lambda: _ping(remote, count, interval))


async def _ping(remote: Remote, count: int, interval: float) -> None:
    import trio

    import alknet.client  # noqa: F401  loading it is no part of the time to connect

    began = trio.current_time()
    async with remote.session() as session:
        connect_ms = (trio.current_time() - began) * 1000
        connection = session.connection
        where = f"{connection.carrier.name} {connection.remote_address}"
        if not is_json():
            say(f"connected by {where} in {connect_ms:.1f} ms")
        rtts, node_id = [], ""
        for number in range(count):
            await trio.sleep(interval if number else 0)
            answer = await _once(session, remote)
            if answer is None:
                if not is_json():
                    say(f"{number + 1}: no answer in time")
                continue
            rtt_ms, node_id = answer
            rtts.append(rtt_ms)
            if not is_json():
                say(f"{number + 1}: {shown_id(node_id)}  {rtt_ms:.2f} ms")
    _sum_up(rtts, count, node_id, connection.carrier.name, connection.remote_address, connect_ms)


def shown_id(text: str) -> str:
    """Shorten what a node says is its id."""
    return printable(text[:10])


async def _once(session: CallSession, remote: Remote) -> tuple[float, str] | None:
    """Return the milliseconds and who answered, or None if nobody did in time."""
    import msgspec
    import trio

    from alknet.call.codes import CallError, ErrorCode

    sent_at = trio.current_time()
    try:
        output = await session.call("node/ping", {}, **remote.options)
    except CallError as exc:
        if exc.code == ErrorCode.NOT_FOUND and remote.route:
            raise remote.not_passed_on("node/ping", INSTEAD) from exc
        if exc.code != ErrorCode.TIMEOUT:
            raise
        return None
    rtt_ms = (trio.current_time() - sent_at) * 1000
    return rtt_ms, str(msgspec.json.decode(output, type=dict[str, Any]).get("id", ""))


def _sum_up(
    rtts: list[float], sent: int, node_id: str, transport: str, address: str, connect_ms: float
) -> None:
    summary = {}
    if rtts:
        mean = sum(rtts) / len(rtts)
        summary = {"min": min(rtts), "avg": mean, "max": max(rtts)}
    if is_json():
        emit(
            {
                "id": node_id or None,
                "transport": transport,
                "address": address,
                "connect_ms": round(connect_ms, 3),
                "sent": sent,
                "received": len(rtts),
                "rtt_ms": {name: round(value, 3) for name, value in summary.items()},
            }
        )
    elif summary:
        times = "/".join(f"{value:.2f}" for value in summary.values())
        say(f"{len(rtts)} of {sent} answered, min/avg/max {times} ms")
    if not rtts:
        raise CommandError("TIMEOUT", f"none of {sent} pings was answered in time", status=5)

"""``alknet status``: what a running node does now."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import click

from alknet.cli import transport
from alknet.cli.dialled import short_error
from alknet.cli.options import Command, is_json
from alknet.cli.output import emit_raw, fields, say, table
from alknet.cli.remote import TARGET, ask_node, make_remote, remote_options
from alknet.cli.rights import listed
from alknet.cli.table import printable
from alknet.cli.units import duration

if TYPE_CHECKING:
    from alknet.core.endpoint.tasks import TaskNode

__all__ = ["status", "task_lines"]


@click.command(
    cls=Command,
    examples=[
        "alknet status",
        "alknet status --connections      how each connection's transport is doing",
        "alknet status --tasks            the tree of running tasks",
        "alknet status --json | jq .connections",
    ],
)
@click.argument("target", required=False, metavar=TARGET)
@click.option("--tasks", is_flag=True, help="Show the tree of running tasks instead.")
@click.option(
    "--connections",
    is_flag=True,
    help="Show how the transport of each connection is doing instead: round-trip time (smoothed, "
    "shortest, latest), congestion window, bytes in flight, packets lost and sent, MTU, bytes out "
    "and in, streams, running calls. A dash stands where the transport cannot tell.",
)
@remote_options
def status(target: str | None, tasks: bool, connections: bool, **options: Any) -> None:
    """Show listeners, peers, connections and calls of the running node.

    Of another node only who was granted the scope admin:node there sees them.
    """
    from alknet.cli.running import run

    if tasks and connections:
        raise click.UsageError("--tasks and --connections exclude each other")
    remote = make_remote(target, **options)
    operation = "node/tasks" if tasks else "node/status"

    async def ask() -> bytes:
        async with remote.session() as session:
            return await ask_node(session, remote, operation)

    output = run(ask)
    if connections:
        transport.show(output)
    elif is_json():
        emit_raw(output)
    elif tasks:
        say(task_lines(output))
    else:
        _show(output)


def task_lines(output: bytes) -> str:
    """Draw the tree of tasks in *output*; its names may be another node's choice."""
    import msgspec

    from alknet.core.endpoint.tasks import TaskNode, render

    return render(_printable_tree(msgspec.json.decode(output, type=TaskNode)))


def _printable_tree(tree: TaskNode) -> TaskNode:
    import msgspec

    return msgspec.structs.replace(
        tree,
        name=printable(tree.name),
        waits_in=None if tree.waits_in is None else printable(tree.waits_in),
        nurseries=tuple(tuple(map(_printable_tree, one)) for one in tree.nurseries),
    )


def _show(output: bytes) -> None:
    import msgspec

    found = msgspec.json.decode(output, type=dict[str, Any])
    fields(
        {
            "node": found["id"],
            "ticket": found["ticket"],
            "version": found["version"],
            "up for": duration(found["uptime_s"]),
            "state": "draining" if found["is_draining"] else "running",
            "calls": found["calls"],
            **_resources(found.get("resources", {})),
        }
    )
    say()
    listeners = [
        (one["transport"], one["address"], listed(one["alpns"])) for one in found["listen"]
    ]
    table(("listens", "address", "alpns"), listeners, empty="listens nowhere")
    say()
    _show_store(found["store"])
    say()
    _show_connections(found)
    say()
    _show_peers(found)
    if found.get("outbound"):
        say()
        _show_outbound(found["outbound"])


def _resources(counts: Mapping[str, int]) -> dict[str, str]:
    shown = ", ".join(f"{count} {printable(kind)}" for kind, count in sorted(counts.items()))
    return {"resources": shown} if shown else {}


def _show_outbound(kept: Sequence[Mapping[str, Any]]) -> None:
    rows = [
        (
            one["peer"],
            one["state"] + (", not called" if one.get("is_called") is False else ""),
            one["attempts"] or "-",
            "-" if one["next_try_in_s"] is None else duration(one["next_try_in_s"]),
            short_error(one["last_error"] or "-"),
        )
        for one in kept
    ]
    table(("dials", "state", "tries", "next in", "last error"), rows, empty="")


def _show_store(store: Mapping[str, Any]) -> None:
    is_stale = store["staleness_s"] > store["max_staleness_s"]
    size = store["size_bytes"]
    shown = {
        "store": f"{store['kind']} {store['where'] or ''}".strip(),
        "state": "OUT OF REACH: nobody is let in" if is_stale else "in reach",
        "seen": f"{duration(store['staleness_s'])} ago, version {store['version']}",
    }
    if size is not None:
        shown["size"] = f"{size / 1024:,.0f} KiB"
    if store["conflicts"]:
        shown["conflicts"] = "; ".join(store["conflicts"])
    fields(shown)


def _show_connections(found: Mapping[str, Any]) -> None:
    rows = [
        (
            one["id"],
            one["identity"],
            one["carrier"],
            one["address"],
            one["alpn"],
            "out" if one["is_dialer"] else "in",
            duration(one["age_s"]),
        )
        for one in found["connections"]
    ]
    headers = ("connection", "identity", "by", "address", "alpn", "way", "age")
    table(headers, rows, empty="no connections")


def _show_peers(found: Mapping[str, Any]) -> None:
    from alknet.cli.follow import say_what_waits

    paths: dict[str, list[str]] = {}
    for one in found["connections"]:
        paths.setdefault(one["identity"], []).append(f"{one['carrier']} {one['address']}")
    rows = [
        (
            one["name"],
            "enabled" if one["enabled"] else "disabled",
            listed(paths.get(f"peer:{one['name']}", ())),
            listed(one["scopes"]),
        )
        for one in found["peers"]
    ]
    table(("peer", "state", "connected by", "scopes"), rows, empty="no peers")
    say_what_waits({one["name"]: keys for one in found["peers"] if (keys := one["waiting_keys"])})
    if untold := found["not_told_of_new_key"]:
        say(f"not yet told of this node's new key: {listed(untold)}")

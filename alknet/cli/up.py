"""``alknet up``: run the node of a home."""

from __future__ import annotations

import signal
import sys
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TextIO, cast

import click

from alknet.cli.auditing import command_name
from alknet.cli.interrupts import Interrupted
from alknet.cli.lines import LineWriter
from alknet.cli.options import Command, is_json, usage_errors
from alknet.cli.output import note, paint
from alknet.cli.unlocking import unlock_options

if TYPE_CHECKING:
    import trio

    from alknet.core.address import Address
    from alknet.node import Node
    from alknet.vault.vault import Vault

__all__ = ["up"]


@click.command(
    cls=Command,
    examples=[
        "alknet up",
        "alknet up --listen 0.0.0.0:4433 --listen [::1]:4433",
        "alknet up --listen 127.0.0.1:0 --json      any free port; the first line says which",
        "alknet up --qlog /tmp/qlog      files to be looked at with qvis",
    ],
)
@click.option(
    "--listen",
    metavar="ADDR:PORT",
    multiple=True,
    help="Listen here instead of where node.toml says; port 0 is any free one. Repeatable.",
)
@click.option(
    "--qlog",
    metavar="DIR",
    type=click.Path(file_okay=False, path_type=Path),
    envvar="ALKNET_QLOG",
    show_envvar=True,
    help="Write a qlog file of each QUIC connection into DIR, for qvis. For finding faults: "
    "connections take the slow way through the transport meanwhile.",
)
@unlock_options
def up(listen: Sequence[str], qlog: Path | None, **unlock: Any) -> None:
    """Run the node until it is told to stop.

    Prints its ticket and what listens with which ALPNs, then a line for each event of its life.
    With --json all are JSON lines, and the first is {"event":"ready","id":…,"ticket":…,
    "listen":[{"transport":…,"address":…,"alpns":[…]}]}.

    SIGTERM or Ctrl-C drain it: it accepts nothing more, lets running calls end, and exits with 0;
    a second one hurries. SIGHUP, and edits of node.toml, take over what can change while running.
    """
    import trio

    from alknet.cli.home import need_node
    from alknet.core.collector import calm_collector
    from alknet.node import Node

    addresses = _addresses(listen)
    home = need_node()
    _harden()
    vault = _unlocked(home, unlock)
    calm_collector()
    make_node = partial(Node.from_home, home, listen=addresses, qlog=qlog, vault=vault)
    opened = {"by": vault.opened_by, "command": command_name()}
    with LineWriter(sys.stdout) as out:
        trio.run(_run, make_node, out, is_json(), opened)


def _harden() -> None:
    """Keep keys out of core dumps and from other processes of this user."""
    from alknet.vault.locked import harden_process

    if refused := harden_process():
        note(f"This system does not protect the node's memory: no {' and no '.join(refused)}.")


def _unlocked(home: Path, unlock: Mapping[str, Any]) -> Vault:
    """Open the vault before the loop begins, for it may take a second, or a person's answer."""
    from alknet.cli.opening import open_vault_apart
    from alknet.core.clock import wall_clock
    from alknet.vault.homevault import home_vault, needs_vault

    if needs_vault(home):
        vault = home_vault(home, now=wall_clock())
        note(f"This home has a vault now; its former key is in {home / 'backup'}.")
        return vault
    return open_vault_apart(**unlock)


def _addresses(listen: Sequence[str]) -> list[Address] | None:
    from alknet.core.address import Address

    with usage_errors("--listen"):
        parsed = [Address.parse(text, allow_any_port=True) for text in listen]
    return parsed or None


async def _run(
    make_node: Callable[[], Node], out: LineWriter, as_json: bool, opened: Mapping[str, str]
) -> None:
    """Start and serve. A signal before the node is ready ends it at once.

    Args:
        opened: What the audit log shall say of the unlock.
    """
    import trio

    from alknet.cli.notify import feed_watchdog, notify
    from alknet.cli.running import ENDING
    from alknet.core.log import configure

    node = make_node()
    style = "json" if as_json else _style(node.config.log.format)
    configure(node.config.log.level, style, sys.stderr)  # standard output is for the first line
    starting = trio.CancelScope()
    caught: list[int] = []
    has_drained = False
    with trio.open_signal_receiver(*ENDING, signal.SIGHUP) as signals:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_cancel_on_signal, signals, starting, caught)
            with starting:
                async with node:
                    async with trio.open_nursery() as serving:
                        # First: whoever reads that it is ready may stop it the next moment.
                        await serving.start(node.run_until_stopped)
                        _say_ready(node, out, as_json)
                        configure(node.config.log.level, style, cast("TextIO", out))
                        notify("READY=1")
                        nursery.start_soon(feed_watchdog)
                        nursery.start_soon(_announce_drain, node)
                        # Not before: nothing that the node logs comes before its first line.
                        await node.identities.audit.note("owner", "vault.unlock", "", opened)
                    has_drained = True  # a signal that comes now hurries, and is no failure
            nursery.cancel_scope.cancel()
    if caught and not has_drained:
        raise Interrupted(128 + caught[0])
    _say_stopped(out, as_json)


async def _cancel_on_signal(
    signals: AsyncIterator[int], starting: trio.CancelScope, caught: list[int]
) -> None:
    # Once it serves, the node itself takes the signals, and none comes here any more.
    async for number in signals:
        if number != signal.SIGHUP:  # what it asks for is being read anyway
            caught.append(number)
            starting.cancel()


async def _announce_drain(node: Node) -> None:
    from alknet.cli.notify import notify

    await node.endpoint.draining.wait()
    notify("STOPPING=1")
    if sys.stderr.isatty():
        note("Stopping: running calls may end; Ctrl-C again hurries.")


def _style(wanted: Literal["auto", "human", "json"]) -> Literal["human", "json"]:
    if wanted == "auto":
        return "human" if sys.stdout.isatty() else "json"
    return wanted


def _say_stopped(out: LineWriter, as_json: bool) -> None:
    out.write('{"event":"stopped"}\n' if as_json else "stopped\n")


def _say_ready(node: Node, out: LineWriter, as_json: bool) -> None:
    import msgspec

    if as_json:
        ready = {
            "event": "ready",
            "id": str(node.id),
            "ticket": str(node.ticket),
            "listen": node.listening,
        }
        out.write(msgspec.json.encode(ready).decode() + "\n")
        return
    lines = [f"{paint('node', bold=True)}    {node.id}", f"ticket  {node.ticket}"]
    lines += [
        f"listens {one.transport:<4} {one.address}  {', '.join(one.alpns)}"
        for one in node.listening
    ]
    out.write("\n".join(lines) + "\n")

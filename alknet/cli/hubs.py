"""``alknet worker list``: the hubs that a node dials, as far as they can be told."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import click

from alknet.cli.dialled import error_lines, short_error
from alknet.cli.options import Command, is_json
from alknet.cli.output import emit, say, table
from alknet.cli.rights import listed
from alknet.cli.units import duration

if TYPE_CHECKING:
    from alknet.core.config import NodeConfig
    from alknet.core.outbound import OutboundTarget
    from alknet.errors import AlknetError
    from alknet.stores.identities import StoredIdentities
    from alknet.stores.outbound import StoredOutbound

__all__ = ["list_hubs", "own_outbound", "running_outbound"]

# What a running node says of its connections is a courtesy: one that hangs is not waited for.
ASK_WITHIN_S = 2.0

Hub = dict[str, Any]


@click.command("list", cls=Command, examples=["alknet worker list", "alknet worker list --json"])
def list_hubs() -> None:
    """List the hubs that this node dials, and how the connections are doing if it runs.

    Where node.toml cannot be used, those are listed that 'alknet worker join' has made and that
    the running node knows; what is wrong is said below, and it exits with 1.
    """
    targets, problem = _targets()
    running = running_outbound()
    hubs = _hubs(targets, running or {})
    if is_json():
        emit({"running": running is not None, "hubs": hubs})
    else:
        _show(hubs, running is not None, empty="" if problem else _EMPTY)
    if problem is not None:
        raise problem


_NOT_CALLED = "it takes no operations from this node"
_EMPTY = "no hubs; 'alknet worker join' reads an invitation and adds one"


def own_outbound(identities: StoredIdentities, config: NodeConfig | None = None) -> StoredOutbound:
    """Return whom the node of the home dials.

    Args:
        config: Instead of that of the home.
    """
    from alknet.cli.home import load_home_config, need_node
    from alknet.core.nodeid import NodeId
    from alknet.stores.outbound import StoredOutbound
    from alknet.stores.succession import read_succession
    from alknet.vault.homevault import home_public_key

    home = need_node()
    key = home_public_key(home)
    former = [NodeId(one.old) for one in read_succession(home, key)]
    outbound = (config or load_home_config()).outbound
    return StoredOutbound(identities, NodeId(key), outbound, former=former)


def running_outbound() -> dict[str, Any] | None:
    """Return how the connections of the running node are doing, by name; None if none runs."""
    from alknet.cli.options import the_home
    from alknet.cli.running import run

    if not (the_home() / "control.sock").exists():
        return None

    async def ask() -> dict[str, Any] | None:
        import msgspec
        import trio

        from alknet.client import open_control_session
        from alknet.errors import AlknetError

        try:
            with trio.move_on_after(ASK_WITHIN_S):
                async with open_control_session(the_home()) as session:
                    found = msgspec.json.decode(await session.call("node/status", {}))
                    return {one["peer"]: one for one in found["outbound"]}
        except (AlknetError, OSError):
            return None  # `alknet status` says what is wrong with it
        return None

    return run(ask)


def _targets() -> tuple[Sequence[OutboundTarget], AlknetError | None]:
    """Return whom the node dials, and what keeps some of them from being told."""
    from alknet.cli.home import load_home_config, need_node, read_store
    from alknet.core.config_errors import ConfigError

    need_node()
    try:
        load_home_config()
    except ConfigError as exc:
        return _joined(), exc
    return read_store(lambda identities: own_outbound(identities).targets()), None


def _joined() -> Sequence[OutboundTarget]:
    """Return those of the database in the home, if there is one, whatever node.toml says."""
    from alknet.cli.options import the_home
    from alknet.cli.running import run
    from alknet.core.config import NodeConfig
    from alknet.stores.home import HomeStore, open_home_identities

    defaults = NodeConfig()
    home = the_home()
    path = HomeStore(home, defaults).path
    if path is None or not path.exists():
        return ()

    async def read() -> Sequence[OutboundTarget]:
        async with open_home_identities(home, defaults) as identities:
            return own_outbound(identities, defaults).targets()

    return run(read)


def _hubs(targets: Sequence[OutboundTarget], running: Mapping[str, Any]) -> list[Hub]:
    """Return the hubs by name; a node that runs with an older node.toml may know more."""
    known = {
        target.name: {
            "peer": target.name,
            "addresses": list(map(str, target.addresses)),
            "in_config": target.in_config,
            "problem": target.problem or None,
        }
        for target in targets
    }
    of_node = {
        name: {
            "peer": name,
            "addresses": one["addresses"],
            "in_config": one["in_config"],
            "problem": None,
        }
        for name, one in running.items()
    }
    return [
        {**one, "connection": running.get(name)}
        for name, one in sorted({**of_node, **known}.items())
    ]


def _show(hubs: Sequence[Hub], is_running: bool, *, empty: str) -> None:
    lines = [(hub["peer"], *_condition(hub, is_running), listed(hub["addresses"])) for hub in hubs]
    if hubs or empty:
        table(("hub", "state", "tries", "last error", "addresses"), lines, empty=empty)
    for hub in hubs:
        error = (hub["connection"] or {}).get("last_error")
        if error and short_error(error) != error:
            say("\n".join(error_lines(hub["peer"], error)))


def _condition(hub: Hub, is_running: bool) -> tuple[str, str, str]:
    """Return state, tries and last error of a hub, for a table."""
    found = hub["connection"]
    if found is None:
        return ("-" if is_running else "the node does not run"), "-", hub["problem"] or "-"
    state = found["state"]
    if state == "connected":
        state += f" for {duration(found['connected_for_s'])}"
        if found.get("is_called") is False:
            return f"{state}, not called", found["attempts"] or "-", _NOT_CALLED
    elif found["next_try_in_s"] is not None:
        state += f" {duration(found['next_try_in_s'])}"
    return state, found["attempts"] or "-", short_error(found["last_error"] or "-")

"""The ticket of this home's node: of what it listens on if it runs, else of its configuration."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from alknet.cli.options import the_home

if TYPE_CHECKING:
    from alknet.core.nodeid import NodeId

__all__ = ["configured_ticket", "running_ticket"]

# The ticket of a running node is a courtesy: one that hangs must not keep a command from answering.
ASK_WITHIN_S = 2.0


def running_ticket() -> str | None:
    """Return the ticket that the running node gives itself; None if none runs."""
    from alknet.cli.running import run

    if not (the_home() / "control.sock").exists():
        return None

    async def ask() -> str | None:
        import msgspec
        import trio

        from alknet.client import open_control_session
        from alknet.errors import AlknetError

        try:
            with trio.move_on_after(ASK_WITHIN_S):
                async with open_control_session(the_home()) as session:
                    status = await session.call("node/status", {})
                    return str(msgspec.json.decode(status, type=dict[str, Any])["ticket"])
        except (AlknetError, OSError):
            return None  # `alknet status` says what is wrong with it
        return None

    return run(ask)


def configured_ticket(node_id: NodeId) -> str:
    """Return the ticket of a node that listens on what ``node.toml`` says."""
    from alknet.cli.home import load_home_config
    from alknet.core.endpoint.interfaces import reachable_addresses
    from alknet.core.ticket import Ticket

    config = load_home_config()
    fixed = [address for address in config.listen if address.port]
    return str(Ticket(node_id, config.advertise or reachable_addresses(fixed)))

"""alknet as a head that calls some worker: it keeps connections to nodes of `alknet_node`."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Any

from alknet.call.peers import PeerEnvironment, PeerRef
from alknet.core.address import Address
from alknet.core.collector import calm_collector
from alknet.core.config import NodeConfig
from alknet.core.identity import Peer
from alknet.core.outbound import OutboundConfig
from alknet.core.ticket import Ticket
from alknet.node import Node
from benchmarks.driver import Link
from benchmarks.peers import alknet_node

RUNTIME = "trio"
OPERATION = "bench/ping"
serve = alknet_node.serve


@asynccontextmanager
async def dial(address: dict[str, Any], _option: str) -> AsyncGenerator[Link]:
    calm_collector()
    tickets = [Ticket.parse(one["ticket"]) for one in address["workers"]]
    workers = {f"w{number}": ticket for number, ticket in enumerate(tickets)}
    config = NodeConfig(
        listen=(Address("127.0.0.1", 0),),
        limits=alknet_node.LIMITS,
        peers=tuple(
            Peer(
                name=name,
                fingerprints=(ticket.node_id.fingerprint,),
                addresses=tuple(map(str, ticket.addresses)),
            )
            for name, ticket in workers.items()
        ),
        outbound=tuple(OutboundConfig(name) for name in workers),
    )
    async with Node(alknet_node.KEY, config=config) as head:
        while len(head.peers.offering(OPERATION)) < len(workers):
            await head.peers.wait_changed(head.peers.version)
        yield HeadLink(head.peers)


class HeadLink(Link):
    """Calls of whichever worker has the fewest."""

    def __init__(self, peers: PeerEnvironment) -> None:
        self._peers = peers

    async def call(self) -> None:
        await self._peers.call(PeerRef.any(), OPERATION, {})

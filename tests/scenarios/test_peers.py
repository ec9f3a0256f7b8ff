"""A head node and its workers, as whole nodes over QUIC: workers stop, and the work goes on."""

from __future__ import annotations

from collections import Counter
from contextlib import AsyncExitStack

import msgspec
import trio
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from alknet.call.context import Context
from alknet.call.operations import operation, public
from alknet.call.peers import PeerRef, RoundRobin
from alknet.core.address import Address
from alknet.core.config import NodeConfig
from alknet.core.identity import NodeId, Peer
from alknet.core.outbound import OutboundConfig
from alknet.node import Node
from alknet.testing.nodes import open_node, open_peer_session
from tests.scenarios.rig import eventually

LOOPBACK = Address("127.0.0.1", 0)
CALLERS = 8


@operation("head/sum", access=public(), calls=["@any/math/double"])
async def total(ctx: Context, numbers: list[int]) -> int:
    """Have workers double the numbers, and add them up."""
    asked = [("math/double", number) for number in numbers]
    outputs = await ctx.batch(asked, peer=PeerRef.any(RoundRobin()))
    return sum(msgspec.json.decode(output, type=int) for output in outputs)


class Worker:
    """A node that keeps a connection to the head, and counts what it does."""

    def __init__(self, head: Node, name: str, done: Counter[str]) -> None:
        self.name = name
        self.key = Ed25519PrivateKey.generate()
        record = Peer(
            name="head",
            fingerprints=(head.id.fingerprint,),
            addresses=tuple(map(str, head.ticket.addresses)),
        )
        config = NodeConfig(listen=(LOOPBACK,), peers=(record,), outbound=(OutboundConfig("head"),))

        @operation("math/double", access=public())
        async def double(number: int) -> int:
            done[name] += 1
            return 2 * number

        self.node = Node(self.key, config=config, operations=[double])

    @property
    def peer(self) -> Peer:
        fingerprint = NodeId.from_public_key(self.key.public_key()).fingerprint
        return Peer(name=self.name, fingerprints=(fingerprint,), may_offer=True)


def offering(head: Node) -> list[str]:
    return sorted(peer.name for peer in head.peers.offering("math/double"))


async def test_no_call_fails_or_runs_twice_while_workers_stop_one_after_the_other() -> None:
    done: Counter[str] = Counter()
    async with open_node(operations=[total]) as head, AsyncExitStack() as stack:
        workers = [Worker(head, name, done) for name in ("w1", "w2", "w3")]
        for worker in workers:
            await head.identities.put_peer(worker.peer)
            await stack.enter_async_context(worker.node)
        await eventually(lambda: offering(head) == ["w1", "w2", "w3"], 10)
        session = await stack.enter_async_context(open_peer_session(head))
        asked = 0
        has_stopped = trio.Event()

        async def call() -> None:
            nonlocal asked
            while not has_stopped.is_set():
                asked += 3
                assert await session.call_as(int, "head/sum", [1, 2, 3]) == 12

        async with trio.open_nursery() as nursery:
            for _ in range(CALLERS):
                nursery.start_soon(call)
            for worker in workers[:2]:
                before = done.total()
                await eventually(lambda before=before: done.total() > before + 60, 10)
                with trio.fail_after(60):
                    await worker.node.endpoint.drain()
            await eventually(lambda: offering(head) == ["w3"], 10)
            has_stopped.set()
        assert done.total() == asked
        assert set(done) == {"w1", "w2", "w3"}


async def test_a_head_that_stops_lets_handlers_go_on_calling_until_they_end() -> None:
    done: Counter[str] = Counter()
    begun, go_on = trio.Event(), trio.Event()

    @operation("head/twice", access=public(), calls=["@any/math/double"])
    async def twice(ctx: Context, number: int) -> int:
        once = msgspec.json.decode(
            await ctx.call("math/double", number, peer=PeerRef.any()), type=int
        )
        begun.set()
        await go_on.wait()
        output = await ctx.call("math/double", once, peer=PeerRef.any())
        return msgspec.json.decode(output, type=int)

    async with open_node(operations=[twice]) as head, AsyncExitStack() as stack:
        worker = Worker(head, "w1", done)
        await head.identities.put_peer(worker.peer)
        await stack.enter_async_context(worker.node)
        await eventually(lambda: offering(head) == ["w1"], 10)
        session = await stack.enter_async_context(open_peer_session(head))
        outputs: list[int] = []

        async def call() -> None:
            outputs.append(await session.call_as(int, "head/twice", 5))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(call)
            await begun.wait()
            nursery.start_soon(head.endpoint.drain)
            await trio.sleep(0.2)  # as long as a session without calls takes to end, and longer
            go_on.set()
        assert outputs == [20]
        assert done["w1"] == 2

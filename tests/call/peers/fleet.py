"""Peers in memory: some that can only be chosen, and some that run calls."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Iterable, Mapping
from contextlib import ExitStack, asynccontextmanager

import msgspec
import trio

from alknet.call.peers import AttachedPeer, PeerEnvironment
from alknet.call.peers.imports import ImportedOperation
from alknet.call.session import CallSession
from alknet.call.spec import OpType
from alknet.core.limits import Limits
from tests.call.sessions import Operations, session_pair

ECHO = ("echo/unary", "echo/slow", "echo/stream", "echo/endless", "echo/total", "echo/each")


def offers(names: Iterable[str], *, large_output: bool = False) -> Mapping[str, ImportedOperation]:
    """Return what a peer offers under *names*; of no kind in particular."""
    return {
        name: ImportedOperation(
            name=name,
            remote_name=name,
            op_type=OpType.QUERY,
            title="",
            description="",
            input_schema=msgspec.Raw(b"{}"),
            item_schema=None,
            output_schema=msgspec.Raw(b"{}"),
            errors=(),
            access=msgspec.Raw(b"{}"),
            resource_id_path=None,
            max_duration_s=None,
            large_output=large_output,
            idempotent=False,
        )
        for name in names
    }


def bare_peer(order: int, name: str | None = None) -> AttachedPeer:
    """Return a peer without a session, to be chosen and not called."""
    return AttachedPeer(name or f"w{order}", order, lambda _peer, _operations: None)


class Worker:
    """One peer of a `Fleet`.

    Attributes:
        operations: What it runs.
        ours: The session by which it is called.
        theirs: Its own end of that.
        peer: What the environment knows of it.
    """

    def __init__(
        self, name: str, operations: Operations, ours: CallSession, theirs: CallSession
    ) -> None:
        self.name = name
        self.operations = operations
        self.ours = ours
        self.theirs = theirs
        self.peer = bare_peer(0)
        self.attachment = ExitStack()

    def vanish(self) -> None:
        """End its connection without a word."""
        self.theirs.connection.close(1, "gone")


class Fleet:
    """An environment and the workers that are connected to its node."""

    def __init__(
        self,
        environment: PeerEnvironment,
        nursery: trio.Nursery,
        limits: Limits | None,
        carrier: str,
    ) -> None:
        self.environment = environment
        self.nursery = nursery
        self.workers: list[Worker] = []
        self._limits = limits
        self._carrier = carrier

    async def connect(self, name: str, operations: Operations | None = None) -> Worker:
        """Return a worker that has a session and is not attached."""
        operations = operations or Operations()
        operations.queries.setdefault("node/ping", _pong)
        ours, theirs = await self.nursery.start(self._hold, operations)
        worker = Worker(name, operations, ours, theirs)
        self.workers.append(worker)  # what attaches it lives as long
        return worker

    async def add(
        self, name: str, operations: Operations | None = None, names: Iterable[str] = ECHO
    ) -> Worker:
        """Return a worker that is attached and offers *names*."""
        worker = await self.connect(name, operations)
        self.attach(worker, names)
        return worker

    def attach(self, worker: Worker, names: Iterable[str] = ECHO) -> None:
        """Attach *worker*, which offers *names*."""
        attaching = self.environment.attach(worker.name, worker.ours)
        worker.peer = worker.attachment.enter_context(attaching)
        worker.peer.set_operations(worker.ours, offers(names), "1")

    def detach(self, worker: Worker) -> None:
        """Detach *worker*; its session goes on."""
        worker.attachment.close()

    async def _hold(
        self,
        operations: Operations,
        *,
        task_status: trio.TaskStatus[tuple[CallSession, CallSession]],
    ) -> None:
        async with session_pair(self._carrier, operations, limits=self._limits) as sessions:
            task_status.started(sessions)
            await trio.sleep_forever()


@asynccontextmanager
async def open_fleet(
    *names: str, limits: Limits | None = None, carrier: str = "memory"
) -> AsyncGenerator[Fleet]:
    """Run an environment with a worker for each of *names*."""
    environment = PeerEnvironment()
    async with trio.open_nursery() as nursery:
        await nursery.start(environment.run)
        fleet = Fleet(environment, nursery, limits, carrier)
        for name in names:
            await fleet.add(name)
        yield fleet
        nursery.cancel_scope.cancel()


async def _pong(_given: msgspec.Raw) -> object:
    return {"id": "test", "time": 0}

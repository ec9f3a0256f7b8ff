"""What it costs to have a peer chosen, with 1 to 10,000 of them attached.

All is in one process. Up to 32 peers have a connection each, real QUIC or in memory; more share
those in memory, so that what grows is the number of peers and nothing else.
"""

from __future__ import annotations

import gc
import itertools
import time
from collections.abc import Awaitable, Callable, Sequence
from contextlib import ExitStack
from typing import Any, TypeAlias

import msgspec
import trio

from alknet.call.discovery import discovery_operations
from alknet.call.dispatch import OperationDispatcher
from alknet.call.operations import Operation, operation, public
from alknet.call.peers import (
    First,
    LatencyWeighted,
    LeastInFlight,
    PeerEnvironment,
    PeerRef,
    Policy,
    RoundRobin,
    Sticky,
)
from alknet.call.peers.attached import Listing
from alknet.call.peers.forwarding import Forwarder
from alknet.call.peers.imports import from_call
from alknet.call.peers.listing import list_peers_operation
from alknet.call.registry import Registry
from alknet.call.session import CallSession, open_session
from alknet.core.identity import OWNER, Identity, NodeId
from alknet.testing.memory import memory_connection_pair
from alknet.testing.nodes import open_node, open_peer_session
from alknet.testing.operations import FixedIdentities, FixedOwnership
from benchmarks.bench_session import INPUT, LIMITS, Sum, add
from benchmarks.table import Aim, Row, Table, row_of

DIRECT = "session.call"
SPECIFIC = "alknet specific"
POLICIES: dict[str, Policy] = {
    "alknet any, round robin": RoundRobin(),
    "alknet any, least in flight": LeastInFlight(),
    "alknet any, latency weighted": LatencyWeighted(),
}
ALONE = "alknet choice alone"
ATTACH, DETACH = "alknet attach", "alknet detach"
IMPORT = "alknet import"
LIST = "alknet services/list-peers"
COUNTS = (1, 10, 100, 1_000, 10_000)
QUIC_COUNTS = (1, 8, 32)
CONNECTIONS = 32
IN_FLIGHT = 64
OPERATIONS = 20
IMPORTED = 1_000
CPU = "CPU us"
NOTES = [
    "CPU is of both sides together, for each call, peer or import; the machine may be shared.",
    f"Calls: {IN_FLIGHT} in flight, spread over the same connections with and without a choice.",
    f"`{ALONE}`: the call of a peer whose session answers at once, less that of the session.",
    f"Each peer offers {OPERATIONS} operations; what is imported has {IMPORTED:,}, with schemas.",
]
AIMS = [
    *(Aim(f"{name} / {DIRECT}, {count:,} attached, {CPU}", 1.10, is_at_least=False)
      for count in COUNTS for name in (SPECIFIC, *POLICIES)),
    *(Aim(f"{name} / {DIRECT}, {count} attached, by QUIC, {CPU}", 1.10, is_at_least=False)
      for count in QUIC_COUNTS for name in (SPECIFIC, *POLICIES)),
]  # fmt: skip

Call: TypeAlias = Callable[[], Awaitable[object]]
RAW = msgspec.Raw(INPUT)


def run(is_quick: bool) -> Table:
    if is_quick:
        rows = trio.run(measure, (1, 100), (8,), 1_000, 2)
    else:
        rows = trio.run(measure, COUNTS, QUIC_COUNTS, 2_000, 15)
    return Table("routing", "Choosing a peer", DIRECT, rows, NOTES, AIMS)


async def measure(
    counts: Sequence[int], quic_counts: Sequence[int], calls: int, rounds: int
) -> list[Row]:
    """Measure calls with each number of peers, and then what else grows with them."""
    rows: list[Row] = []
    async with trio.open_nursery() as nursery:
        served = [*_operations(OPERATIONS - 1), add]
        sessions = [await nursery.start(_hold, served) for _ in range(CONNECTIONS)]
        listing = (await from_call(sessions[0])).operations
        for count in counts:
            rows += await _calls(sessions, listing, count, f"{count:,} attached", calls, rounds)
            rows += await _choice_alone(listing, count, calls, rounds)
            rows += await _grows(sessions, listing, count, rounds)
        rows.append(await _import(nursery, rounds))
        nursery.cancel_scope.cancel()
    for count in quic_counts:
        rows += await _calls_by_quic(listing, count, calls // 4, rounds)
    return rows


class Attached:
    """An environment with *count* peers, which share *sessions*."""

    def __init__(self, sessions: Sequence[CallSession], listing: Listing, count: int) -> None:
        self.environment = PeerEnvironment()
        self._sessions = sessions
        self._listing = listing
        self._count = count
        self._stack = ExitStack()

    def __enter__(self) -> PeerEnvironment:
        for number in range(self._count):
            session = self._sessions[number % len(self._sessions)]
            attaching = self.environment.attach(f"w{number}", session)
            self._stack.enter_context(attaching).set_operations(session, self._listing, "1")
        return self.environment

    def __exit__(self, *exc: object) -> None:
        self._stack.close()


async def _calls(
    sessions: Sequence[CallSession],
    listing: Listing,
    count: int,
    case: str,
    calls: int,
    rounds: int,
) -> list[Row]:
    with Attached(sessions, listing, count) as environment:
        turn = itertools.cycle(sessions[: min(count, len(sessions))])
        names = itertools.cycle([PeerRef.specific(peer.name) for peer in environment])
        kinds: dict[str, Call] = {
            DIRECT: lambda: next(turn).call("math/add", RAW),
            SPECIFIC: lambda: environment.call(next(names), "math/add", RAW),
        }
        for name, policy in POLICIES.items():
            kinds[name] = _any(environment, PeerRef.any(policy))
        found: dict[str, list[dict[str, float]]] = {name: [] for name in kinds}
        for _ in range(rounds):
            for name, call in kinds.items():
                found[name].append({CPU: await _timed(call, calls, IN_FLIGHT)})
    return [row_of(name, case, figures) for name, figures in found.items()]


async def _choice_alone(listing: Listing, count: int, calls: int, rounds: int) -> list[Row]:
    session = _AnswersAtOnce()
    found: dict[str, list[dict[str, float]]] = {}
    with Attached([session], listing, count) as environment:
        refs = {"specific": PeerRef.specific("w0"), "first": PeerRef.any(First())}
        refs |= {name.split(", ")[1]: PeerRef.any(policy) for name, policy in POLICIES.items()}
        refs["sticky"] = PeerRef.any(Sticky("some-user"))
        for _ in range(rounds):
            floor = await _timed(lambda: session.call("math/add", RAW), calls, 1)
            for name, ref in refs.items():
                took = await _timed(_any(environment, ref), calls, 1)
                found.setdefault(name, []).append({CPU: took - floor})
    return [
        row_of(f"{ALONE}: {name}", f"{count:,} attached", figures)
        for name, figures in found.items()
    ]


async def _grows(
    sessions: Sequence[CallSession], listing: Listing, count: int, rounds: int
) -> list[Row]:
    found: dict[str, list[dict[str, float]]] = {ATTACH: [], DETACH: [], LIST: []}
    case = f"{count:,} attached"
    for _ in range(rounds):
        attached = Attached(sessions, listing, count)
        began = time.process_time()
        environment = attached.__enter__()
        found[ATTACH].append({CPU: (time.process_time() - began) / count * 1e6})
        found[LIST].append({CPU: await _listed(environment)})
        began = time.process_time()
        attached.__exit__()
        found[DETACH].append({CPU: (time.process_time() - began) / count * 1e6})
    rows = [row_of(name, f"{case}, for each", found[name]) for name in (ATTACH, DETACH)]
    return [*rows, row_of(LIST, f"{case}, a page of 1,000 at most", found[LIST])]


async def _listed(environment: PeerEnvironment) -> float:
    forwarder = Forwarder(environment, node_id=NodeId(bytes(32)), limits=lambda: LIMITS)
    listing = list_peers_operation(environment, forwarder, is_enabled=lambda: True)
    async with trio.open_nursery() as nursery:
        session = await nursery.start(_hold, [listing], OWNER)
        await session.call("services/list-peers", large_output=True)
        times = max(1, 1_000 // len(environment))
        call = lambda: session.call("services/list-peers", large_output=True)  # noqa: E731
        took = await _timed(call, times, 1)
        nursery.cancel_scope.cancel()
    return took


async def _import(nursery: trio.Nursery, rounds: int) -> Row:
    session = await nursery.start(_hold, _operations(IMPORTED))
    figures = []
    for _ in range(rounds):
        gc.collect()  # what was imported before must not be remembered
        figures.append({CPU: await _timed(lambda: from_call(session), 1, 1)})
    return row_of(IMPORT, f"{IMPORTED:,} operations", figures)


async def _calls_by_quic(listing: Listing, count: int, calls: int, rounds: int) -> list[Row]:
    async with open_node(operations=[add], limits=LIMITS) as node, trio.open_nursery() as nursery:

        async def hold(name: str, *, task_status: trio.TaskStatus[CallSession]) -> None:
            opening = open_peer_session(
                node, name=name, scopes=["math:add"], transports=["quic"], limits=LIMITS
            )
            async with opening as session:
                task_status.started(session)
                await trio.sleep_forever()

        sessions = [await nursery.start(hold, f"w{number}") for number in range(count)]
        rows = await _calls(sessions, listing, count, f"{count} attached, by QUIC", calls, rounds)
        nursery.cancel_scope.cancel()
    return rows


async def _timed(call: Call, calls: int, in_flight: int) -> float:
    """Return the microseconds of CPU of one of *calls*."""
    remaining = iter(range(calls))

    async def worker() -> None:
        for _ in remaining:
            await call()

    gc.collect()
    began = time.process_time()
    if in_flight == 1:
        await worker()
    else:
        async with trio.open_nursery() as nursery:
            for _ in range(in_flight):
                nursery.start_soon(worker)
    return (time.process_time() - began) / calls * 1e6


def _any(environment: PeerEnvironment, ref: PeerRef) -> Call:
    return lambda: environment.call(ref, "math/add", RAW)


async def _hold(
    operations: Sequence[Operation[..., Any]],
    identity: Identity | None = None,
    *,
    task_status: trio.TaskStatus[CallSession],
) -> None:
    """Serve *operations* in memory to a session until cancelled."""
    registry = Registry()
    registry.extend(discovery_operations(registry), builtin=True)
    registry.extend(operations, builtin=True)
    dispatcher = OperationDispatcher(
        registry, identities=FixedIdentities(), ownership=FixedOwnership(), limits=LIMITS
    )
    async with (
        memory_connection_pair(alpn="alknet/call", limits=LIMITS) as (dialer, acceptor),
        trio.open_nursery() as nursery,
    ):
        acceptor.identity = identity or Identity("peer:bench", ("math:*",))
        nursery.start_soon(CallSession(acceptor, dispatcher, limits=LIMITS).run)
        async with open_session(dialer, limits=LIMITS) as session:
            task_status.started(session)
            await trio.sleep_forever()


def _operations(count: int) -> list[Operation[..., Any]]:
    return [_operation(f"bench/op{number}") for number in range(count)]


def _operation(name: str) -> Operation[..., Any]:
    @operation(name, access=public())
    async def run(numbers: Sum) -> Sum:
        """Return what was given."""
        return numbers

    return run


class _AnswersAtOnce(CallSession):
    """A session without a connection, that has the answer of all calls."""

    def __init__(self) -> None:
        self._close_reason = None
        self.is_leaving = False
        self.calling = self  # type: ignore[assignment]  # it does all that a call needs

    async def call(  # type: ignore[override]  # the caller's side of it
        self,
        operation: str,
        input: object = None,  # noqa: A002
        options: object = None,
    ) -> msgspec.Raw:
        return RAW

"""A head that calls one of four workers, whichever: routing by peers, beside Ray, gRPC and NATS.

Workers are processes of their own on the first core, the head is one on the last. The CPU time of
a call is that of all processes which a system needs for it: the nats-server's too, and all of
Ray's.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import NamedTuple

from benchmarks.certificates import write_certificates
from benchmarks.table import Aim, Row, Table, row_of
from benchmarks.workers import Peer, Worker, left_out

OURS = "alknet over QUIC, least in flight"
RAY = "Ray actors, in turn"
GRPC = "grpc.aio over TLS, round robin"
PEERS = (
    Peer(OURS, "alknet_head"),
    Peer(RAY, "ray_actors", venv="ray"),
    Peer(GRPC, "grpc_round_robin", needs="grpc"),
    Peer("NATS queue group, TLS", "nats_queue", needs="nats", program="nats-server"),
)
WORKERS = 4
IN_FLIGHT = (1, 64)
NOTES = [
    (
        "alknet does the full path at each worker: the head's key is looked up, each call has its "
        "access check, schema, scope and deadline; the head checks which peers offer the "
        "operation. Ray proves no identity and encrypts nothing here."
    ),
    "One core for four workers: what they gain by being four is not seen, what it costs is.",
]
AIMS = [
    Aim(f"{OURS} / {RAY}, 64 in flight, calls/s", 3),
    Aim(f"{OURS} / {GRPC}, 64 in flight, calls/s", 2),
]


class Fleet(NamedTuple):
    """A head, connected to its workers, and all processes of both."""

    peer: Peer
    head: Worker
    workers: Sequence[Worker]

    def cpu_s(self) -> float:
        return sum(worker.family_cpu_s() for worker in (self.head, *self.workers))


def run(is_quick: bool) -> Table:
    seconds, rounds = (0.2, 1) if is_quick else (1.0, 5)
    rows: list[Row] = []
    with _fleets(PEERS) as fleets:
        for in_flight in IN_FLIGHT:
            found: dict[str, list[dict[str, float]]] = {}
            for _ in range(rounds):
                for fleet in fleets:
                    result = _round(fleet, seconds, in_flight)
                    found.setdefault(fleet.peer.name, []).append(result)
            rows += [row_of(name, f"{in_flight} in flight", f) for name, f in found.items()]
    title = f"A head and {WORKERS} workers"
    return Table("peers", title, GRPC, rows, NOTES + left_out(PEERS), AIMS)


@contextmanager
def _fleets(peers: Sequence[Peer]) -> Iterator[list[Fleet]]:
    cores = sorted(os.sched_getaffinity(0))
    with ExitStack() as stack:
        directory = stack.enter_context(tempfile.TemporaryDirectory())
        write_certificates(Path(directory))
        fleets = []
        for peer in peers:
            if not peer.is_installed:
                continue
            workers = []
            for number in range(WORKERS):
                worker = Worker(peer._replace(option=str(number)), "server", cores[0])
                stack.callback(worker.stop)
                worker.begin("serve", directory=directory)
                workers.append(worker)
            head = Worker(peer, "client", cores[-1])
            stack.callback(head.stop)
            address = {"workers": [worker.finish() for worker in workers], "core": cores[0]}
            head.ask("open", address=address, links=1, parallel=1)
            stack.callback(head.ask, "close")
            fleets.append(Fleet(peer, head, workers))
        yield fleets


def _round(fleet: Fleet, seconds: float, in_flight: int) -> dict[str, float]:
    before = fleet.cpu_s()
    found = fleet.head.ask("calls", seconds=seconds, in_flight=in_flight)
    return {
        "calls/s": found["calls"] / found["seconds"],
        "p50 us": found["p50"] * 1e6,
        "p99 us": found["p99"] * 1e6,
        "CPU us/call, all processes": (fleet.cpu_s() - before) / found["calls"] * 1e6,
    }

"""Connecting: handshakes/s, CPU per handshake, memory per idle connection.

A connection counts when the other side has answered one small call on it, so that on both sides
nothing of it is left to do. All stay open until memory was read.
"""

from __future__ import annotations

import time
from collections.abc import Sequence

from benchmarks.bench_call import FLOOR, OURS, QUIC
from benchmarks.table import Aim, Row, Table
from benchmarks.workers import Bench, Peer, left_out, running

REFERENCE = FLOOR.name
AIOQUIC = "aioquic asyncio"
PEERS = (
    *OURS,
    FLOOR,
    Peer(AIOQUIC, "asyncio_quic", "aioquic"),
    Peer("grpc.aio over TLS", "grpc_aio", needs="grpc"),
)
PARALLEL = 8
# Before it memory is read: what the first connections load and cache belongs to none of them.
WARM_UP = 16
SETTLE_S = 0.3
NOTES = [
    (
        f"{PARALLEL} at a time, each with one call; the client's core limits most of them, so "
        "the server's CPU time says what a server can take."
    ),
    (
        "alknet: both sides prove their keys, the client is looked up and becomes a peer with its "
        "scopes, and gets a call session. The others verify the server's certificate alone."
    ),
    "Memory is the growth of the server's proportional set size.",
]


def run(is_quick: bool) -> Table:
    count = 100 if is_quick else 1_000
    case = _case(count)
    aims = [
        Aim(f"{QUIC} / {REFERENCE}, {case}, server CPU ms", 2.8, is_at_least=False),
        Aim(f"{QUIC} / {AIOQUIC}, {case}, KiB per idle connection", 1.1, is_at_least=False),
    ]
    rows = measure(PEERS, count=count)
    notes = NOTES + left_out(PEERS)
    return Table("connect", "Connecting", REFERENCE, rows, notes, aims)


def measure(peers: Sequence[Peer], *, count: int) -> list[Row]:
    with running(peers) as benches:
        return [Row(bench.peer.name, _case(count), _measure(bench, count)) for bench in benches]


def _measure(bench: Bench, count: int) -> dict[str, float]:
    bench.open(WARM_UP)
    memory, server, client = bench.server.memory_bytes(), bench.server.cpu_s(), bench.client.cpu_s()
    opened = bench.open(count, parallel=PARALLEL)
    server_s, client_s = bench.server.cpu_s() - server, bench.client.cpu_s() - client
    time.sleep(SETTLE_S)
    grown = bench.server.memory_bytes() - memory
    bench.close()
    return {
        "handshakes/s": count / opened["seconds"],
        "server CPU ms": server_s / count * 1e3,
        "client CPU ms": client_s / count * 1e3,
        "KiB per idle connection": grown / count / 1024,
    }


def _case(count: int) -> str:
    return f"{count:,} connections"

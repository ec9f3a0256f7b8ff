"""Small calls: calls/s, latency, and what a call costs the server, beside other RPC stacks.

The floors have no operations, no access check, no deadlines and no identities: they decode a
frame, build the same answer and send it. What lies between is what the framework costs.
"""

from __future__ import annotations

from collections.abc import Sequence

from benchmarks.table import Aim, Row, Table, row_of
from benchmarks.workers import Bench, Peer, left_out, running

REFERENCE = "asyncio TLS + msgspec frames"
QUIC, TCP = "alknet over QUIC", "alknet over TCP"
OURS = (Peer(QUIC, "alknet_node", "quic"), Peer(TCP, "alknet_node", "tcp"))
NATS = "nats-py through nats-server, TLS"
FLOOR = Peer("trio.SSLStream + msgspec frames", "trio_tls")
PEERS = (
    *OURS,
    FLOOR,
    Peer(REFERENCE, "asyncio_tls"),
    Peer("aioquic asyncio, one stream", "asyncio_quic", "aioquic"),
    Peer("grpc.aio over TLS", "grpc_aio", needs="grpc"),
    Peer(NATS, "nats_service", needs="nats", program="nats-server"),
    Peer("iroh (Python), one stream", "iroh_quic", needs="iroh"),
    Peer("py-libp2p, one stream", "libp2p_host", venv="libp2p"),
)
# Connections, and calls in flight over all of them.
CASES = ((1, 1), (1, 64), (1, 512), (64, 64))
NOTES = [
    (
        "alknet does the full path: the client's key is looked up, each call has its access check, "
        "schema, scope and deadline. The others authenticate the server alone and dispatch nothing "
        "(gRPC: by method name)."
    ),
    "nats-server shares the core of its service; the server's CPU time is the service's alone.",
    "py-libp2p proves both keys (noise, yamux, TCP), and sends the floor's frames on one stream.",
]
AIMS = [
    Aim(f"{QUIC} / grpc.aio over TLS, 64 in flight, calls/s", 5),
    Aim(f"{QUIC} / {NATS}, 64 in flight, calls/s", 1),
    Aim(f"{QUIC} / grpc.aio over TLS, 64 connections x 1 in flight, calls/s", 3),
    Aim(f"{QUIC} / grpc.aio over TLS, 1 in flight, p50 us", 0.55, is_at_least=False),
]


def run(is_quick: bool) -> Table:
    seconds, rounds = (0.2, 1) if is_quick else (0.6, 9)
    rows = measure(PEERS, CASES, seconds=seconds, rounds=rounds)
    notes = NOTES + left_out(PEERS)
    return Table("call", "Small calls", REFERENCE, rows, notes, AIMS)


def measure(
    peers: Sequence[Peer], cases: Sequence[tuple[int, int]], *, seconds: float, rounds: int
) -> list[Row]:
    """Alternate rounds of all peers, *seconds* each, for each case."""
    rows = []
    with running(peers) as benches:
        for links, in_flight in cases:
            found: dict[str, list[dict[str, float]]] = {}
            for bench in benches:
                bench.open(links)
            for _ in range(rounds):
                for bench in benches:
                    found.setdefault(bench.peer.name, []).append(_round(bench, seconds, in_flight))
            for bench in benches:
                bench.close()
            rows += [row_of(name, case_name(links, in_flight), f) for name, f in found.items()]
    return rows


def case_name(links: int, in_flight: int) -> str:
    if links == 1:
        return f"{in_flight} in flight"
    return f"{links} connections x {in_flight // links} in flight"


def _round(bench: Bench, seconds: float, in_flight: int) -> dict[str, float]:
    server, client = bench.server.cpu_s(), bench.client.cpu_s()
    found = bench.client.ask("calls", seconds=seconds, in_flight=in_flight)
    calls = found["calls"]
    return {
        "calls/s": calls / found["seconds"],
        "p50 us": found["p50"] * 1e6,
        "p99 us": found["p99"] * 1e6,
        "server CPU us/call": (bench.server.cpu_s() - server) / calls * 1e6,
        "client CPU us/call": (bench.client.cpu_s() - client) / calls * 1e6,
    }

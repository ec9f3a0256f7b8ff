"""Bulk: many bytes each way over one stream."""

from __future__ import annotations

from collections.abc import Sequence

from benchmarks.table import Aim, Row, Table, row_of
from benchmarks.workers import Bench, Peer, left_out, running

MIB = 1024 * 1024
REFERENCE = "trio.SSLStream"
QUIC, TCP = "alknet over QUIC", "alknet over TCP"
SHORT = "alknet over QUIC, 1200-byte datagrams"
OURS = (
    Peer(QUIC, "alknet_node", "quic-bulk"),
    Peer(SHORT, "alknet_node", "quic-bulk-1200"),
    Peer(TCP, "alknet_node", "tcp-bulk"),
)
FLOOR = Peer(REFERENCE, "trio_tls", "bulk")
IROH = "iroh (Python)"
PEERS = (
    *OURS,
    FLOOR,
    Peer("aioquic asyncio", "asyncio_quic", "aioquic-bulk"),
    Peer("qh3 asyncio", "asyncio_quic", "qh3-bulk", needs="qh3"),
    Peer(IROH, "iroh_quic", "bulk", needs="iroh"),
)
DOWN, UP = "download", "upload"
NOTES = [
    "Decimal megabytes, CPU in seconds per GiB; an upload ends when the server has everything.",
    (
        f"{IROH}: its binding copies outgoing bytes one by one. This is the binding's speed, not "
        "iroh's."
    ),
    (
        f"{QUIC}: path MTU discovery finds 16,000 bytes on loopback. Over Ethernet it finds 1,472: "
        "there the row with 1200 bytes tells more."
    ),
    (
        "aioquic and qh3 run as they come: datagrams of 1200 bytes and the kernel's default socket "
        "buffers."
    ),
]
AIMS = [
    *(Aim(f"{SHORT} / aioquic asyncio, {way}, MB/s", 5) for way in (DOWN, UP)),
    *(Aim(f"{SHORT} / qh3 asyncio, {way}, MB/s", 1.5) for way in (DOWN, UP)),
    *(Aim(f"{QUIC} / {REFERENCE}, {way}, MB/s", 1) for way in (DOWN, UP)),
    *(Aim(f"{TCP} / {REFERENCE}, {way}, MB/s", 0.9) for way in (DOWN, UP)),
]


def run(is_quick: bool) -> Table:
    size, limit_s, rounds = (16 * MIB, 0.8, 1) if is_quick else (256 * MIB, 4.0, 2)
    rows = measure(PEERS, size=size, limit_s=limit_s, rounds=rounds)
    notes = [
        f"{size // MIB} MiB each way, of slow peers what passed in {limit_s:g} s.",
        *NOTES,
        *left_out(PEERS),
    ]
    return Table("bulk", "Bulk on one stream", REFERENCE, rows, notes, AIMS)


def measure(peers: Sequence[Peer], *, size: int, limit_s: float, rounds: int) -> list[Row]:
    """Alternate rounds of all peers."""
    found: dict[tuple[str, str], list[dict[str, float]]] = {}
    with running(peers) as benches:
        for bench in benches:
            bench.open(1)
        for _ in range(rounds):
            for bench in benches:
                for way in (DOWN, UP):
                    figures = _round(bench, way, size, limit_s)
                    found.setdefault((bench.peer.name, way), []).append(figures)
    ways = sorted(found.items(), key=lambda item: item[0][1])
    return [row_of(name, way, figures) for (name, way), figures in ways]


def _round(bench: Bench, way: str, size: int, limit_s: float) -> dict[str, float]:
    server, client = bench.server.cpu_s(), bench.client.cpu_s()
    found = bench.client.ask("transfer", direction=way, size=size, limit_s=limit_s)
    gib = found["moved"] / 2**30
    return {
        "MB/s": found["moved"] / found["seconds"] / 1e6,
        "server CPU s/GiB": (bench.server.cpu_s() - server) / gib,
        "client CPU s/GiB": (bench.client.cpu_s() - client) / gib,
    }

"""Calls beside bulk: on the same connection, and on 100 connections of which one is bulk.

Bulk is a subscription that yields as fast as its caller takes it.
"""

from __future__ import annotations

from collections.abc import Sequence

from benchmarks.bench_call import OURS, QUIC, TCP
from benchmarks.table import Aim, Row, Table, row_of
from benchmarks.workers import Bench, Peer, running

IN_FLIGHT = 8
ALONE, BULK, BESIDE = "calls alone", "bulk alone", "calls and bulk, one connection"
NOTES = [
    f"{IN_FLIGHT} calls in flight. Bulk is a subscription to items of 64 KiB of JSON text.",
    "Over TCP, all share one stream: calls wait for the bytes before them.",
]
AIMS = [
    *(
        aim
        for peer in (QUIC, TCP)
        for aim in (
            Aim(f"{BESIDE} / {ALONE}, {peer}, p50 us", 3, is_at_least=False),
            Aim(f"{BESIDE} / {BULK}, {peer}, bulk MB/s", 0.7),
        )
    ),
]


def run(is_quick: bool) -> Table:
    seconds, rounds, links = (0.3, 1, 20) if is_quick else (2.0, 3, 100)
    rows = measure(OURS, seconds=seconds, rounds=rounds, links=links)
    return Table("mix", "Calls beside bulk", ALONE, rows, NOTES, AIMS, is_by_case=True)


def measure(peers: Sequence[Peer], *, seconds: float, rounds: int, links: int) -> list[Row]:
    """Alternate rounds of all peers; *links* is how many connections the second half has."""
    found: dict[tuple[str, str], list[dict[str, float]]] = {}
    with running(peers) as benches:
        for count in (1, links):
            for bench in benches:
                bench.open(count)
            for _ in range(rounds):
                for bench in benches:
                    for case, figures in _round(bench, count, seconds).items():
                        found.setdefault((bench.peer.name, case), []).append(figures)
            for bench in benches:
                bench.close()
    by_peer = sorted(found.items(), key=lambda item: item[0][0])
    return [row_of(name, case, figures) for (name, case), figures in by_peer]


def _round(bench: Bench, links: int, seconds: float) -> dict[str, dict[str, float]]:
    """Return the figures of each case."""

    def calls() -> dict[str, float]:
        return _calls(bench.client.ask("calls", seconds=seconds, in_flight=IN_FLIGHT))

    def mix(in_flight: int, *, is_apart: bool = False) -> dict[str, float]:
        found = bench.client.ask("mix", seconds=seconds, in_flight=in_flight, is_apart=is_apart)
        bulk = {"bulk MB/s": found["received"] / found["seconds"] / 1e6}
        return (_calls(found) if in_flight else {}) | bulk

    if links == 1:
        return {ALONE: calls(), BULK: mix(0), BESIDE: mix(IN_FLIGHT)}
    return {
        f"calls alone, {links} connections": calls(),
        f"calls on {links - 1} connections, bulk on one": mix(IN_FLIGHT, is_apart=True),
    }


def _calls(found: dict[str, float]) -> dict[str, float]:
    return {
        "p50 us": found["p50"] * 1e6,
        "p99 us": found["p99"] * 1e6,
        "calls/s": found["calls"] / found["seconds"],
    }

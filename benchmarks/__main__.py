"""Run benchmarks: ``python -m benchmarks [NAME ...] [--quick] [--json FILE]``.

Without a name all are run and, unless quick, written to benchmarks/RESULTS.md.
"""

from __future__ import annotations

import argparse
import datetime as dt
import os
import shlex
import sys
from collections.abc import Callable
from pathlib import Path

from benchmarks import (
    bench_bulk,
    bench_call,
    bench_congestion,
    bench_connect,
    bench_hostile,
    bench_mix,
    bench_packet,
    bench_peers,
    bench_routing,
    bench_session,
    bench_store,
    bench_vault,
)
from benchmarks.table import RESULTS, Table, as_json, machine

BENCHES: dict[str, Callable[[bool], Table]] = {
    "call": bench_call.run,
    "bulk": bench_bulk.run,
    "connect": bench_connect.run,
    "mix": bench_mix.run,
    "session": bench_session.run,
    "hostile": bench_hostile.run,
    "packet": bench_packet.run,
    "congestion": bench_congestion.run,
    "store": bench_store.run,
    "vault": bench_vault.run,
    "routing": bench_routing.run,
    "peers": bench_peers.run,
}


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=", ".join(BENCHES))
    parser.add_argument("--quick", action="store_true", help="less of everything: < 30 s each")
    parser.add_argument("--json", metavar="FILE", help="also write one JSON object there")
    options = parser.parse_args()
    unknown = set(options.names) - set(BENCHES)
    if unknown:
        parser.error(
            f"no such benchmark: {', '.join(sorted(unknown))}; there are {', '.join(BENCHES)}"
        )
    head = heading([*options.names, *(["--quick"] if options.quick else [])])
    sys.stdout.write(head)
    tables = []
    for name in options.names or BENCHES:
        tables.append(BENCHES[name](options.quick))
        sys.stdout.write("\n" + tables[-1].markdown())
        sys.stdout.flush()
        # After each: what is measured stays, should a later one fail.
        if options.json:
            Path(options.json).write_bytes(as_json(tables))
        if not options.names and not options.quick:
            RESULTS.write_text("\n".join([head, *(table.markdown() for table in tables)]))


def heading(arguments: list[str]) -> str:
    """Say what the figures depend on, and by which *arguments* they can be had."""
    now = dt.datetime.now(dt.UTC)
    load = os.getloadavg()[0]
    command = shlex.join(["python", "-m", "benchmarks", *arguments])
    return (
        "# Results\n\n"
        f"Made by `{command}`; `make bench` does it with all peers installed.\n\n"
        f"Machine: {machine()}. Date: {now:%Y-%m-%d}. Load average when it began: {load:.2f}.\n"
        "Server and client run in two processes, pinned to two cores. Other work on the machine\n"
        "disturbs them: a load average well above 1 means that it did, and much. Rounds of all\n"
        "peers alternate and figures are medians; `spread` is the largest less the smallest round\n"
        "of the first metric, as a part of the median. Compare ratios, not figures of different\n"
        "runs. Aims are those of the project's plan.\n"
    )


if __name__ == "__main__":
    main()

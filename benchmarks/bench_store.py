"""The SQLite store: writes in groups, reads from memory, wakes across processes, loading.

Beside it stands what one would do with apsw alone: one commit for each write, a select for each
read, and a look at ``PRAGMA data_version`` every millisecond.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import apsw
import trio

from alknet.core.storage import Put
from alknet.stores.sqlite.bell import VERSION_BYTES
from alknet.stores.sqlite.place import Place
from alknet.stores.sqlite.reading import newest_change
from alknet.stores.sqlite.worker import WAL_PAGES
from alknet.stores.tables import PEERS, PeerRow
from benchmarks.store_listener import CELLS, KEY, SELECT, Cell, open_store
from benchmarks.table import Aim, Row, Table, row_of
from tests.stores.postgres.server import has_server, open_server

OURS, ALONE, SERVER = "alknet sqlite", "apsw alone", "alknet postgresql"
WRITERS = (1, 16, 256)
READS, WAKES = "read a row by key", "wake another process"
TEXT = "x" * 200
NOTES = [
    "Rows of 200 bytes, `synchronous=FULL`. A write counts once it is durable and answered.",
    "apsw alone: one connection, a commit for each write and a select for each read.",
    "It writes the same rows to the same tables, triggers included, and checks and tells nothing.",
    "More writers of that kind would only wait for one another, so its rate is the same for all.",
    "What 256 writers gain follows the disk: the longer a flush takes, the more share it.",
    "To notice what another process wrote, it looks at `PRAGMA data_version` every millisecond.",
    "Wakes last from the end of a commit to the row read in the other process, the ring included.",
    "Both hear the same commits, which are made as the store makes them, with a knock before.",
    "PostgreSQL, where it is installed: a server here as it comes, over a Unix socket.",
    "Its own CPU time is not counted.",
    "Loading is CPU time and resident memory of a new process.",
]
AIMS = [
    Aim(f"{OURS} / {ALONE}, 256 writers, writes/s", 8),
    Aim(f"{OURS} / {ALONE}, {READS}, ns", 0.05, is_at_least=False),
    Aim(f"{OURS} / {ALONE}, {WAKES}, p50 us", 0.35, is_at_least=False),
]


def run(is_quick: bool) -> Table:
    seconds, rounds, wakes, peers = (0.3, 1, 30, 10_000) if is_quick else (2.0, 3, 300, 100_000)
    rows = measure(seconds=seconds, rounds=rounds, wakes=wakes, peers=peers)
    return Table("store", "Stores", ALONE, rows, NOTES, AIMS)


def measure(*, seconds: float, rounds: int, wakes: int, peers: int) -> list[Row]:
    """Alternate rounds of both; *wakes* are commits, *peers* are loaded."""
    found: dict[tuple[str, str], list[dict[str, float]]] = {}
    with TemporaryDirectory() as home:
        for n in range(rounds):
            for writers in WRITERS:
                case = f"{writers} writers"
                path = Path(home) / f"{n}-{writers}.db"
                ours = trio.run(_write_ours, str(path), writers, seconds)
                found.setdefault((OURS, case), []).append(ours)
                found.setdefault((ALONE, case), []).append(_write_alone(path, seconds))
            path = Path(home) / "reads.db"
            found.setdefault((OURS, READS), []).append(trio.run(_read_ours, str(path)))
            found.setdefault((ALONE, READS), []).append(_read_alone(path))
            for name, how in ((OURS, "follow"), (ALONE, "poll")):
                found.setdefault((name, WAKES), []).append(_wake(path, how, wakes))
        path = Path(home) / "peers.db"
        trio.run(_fill, str(path), peers)
        found[OURS, f"load {peers:,} peers"] = [_load(str(path)) for _ in range(rounds)]
    if has_server():
        found |= _measure_server(seconds=seconds, rounds=rounds, wakes=wakes, peers=peers)
    return [row_of(name, case, figures) for (name, case), figures in found.items()]


def _measure_server(
    *, seconds: float, rounds: int, wakes: int, peers: int
) -> dict[tuple[str, str], list[dict[str, float]]]:
    found: dict[tuple[str, str], list[dict[str, float]]] = {}
    with open_server(fsync="on", full_page_writes="on", autovacuum="on") as server:
        for _ in range(rounds):
            where = server.url(server.new_database())
            for writers in WRITERS:
                ours = trio.run(_write_ours, where, writers, seconds)
                found.setdefault((SERVER, f"{writers} writers"), []).append(ours)
            found.setdefault((SERVER, READS), []).append(trio.run(_read_ours, where))
            found.setdefault((SERVER, WAKES), []).append(trio.run(_wake_by_store, where, wakes))
        where = server.url(server.new_database())
        trio.run(_fill, where, peers)
        found[SERVER, f"load {peers:,} peers"] = [_load(where) for _ in range(rounds)]
    return found


async def _write_ours(where: str, writers: int, seconds: float) -> dict[str, float]:
    count = 0

    async def write(n: int) -> None:
        nonlocal count
        while True:  # each writes once, however short the time: a rate of nothing is no figure
            await store.write(Put(CELLS, f"{n}", Cell(count, TEXT)))
            count += 1
            if time.perf_counter() >= end:
                return

    async with open_store(where, [CELLS]) as store:
        began, cpu = time.perf_counter(), time.process_time()
        end = began + seconds
        async with trio.open_nursery() as nursery:
            for n in range(writers):
                nursery.start_soon(write, n)
        took = time.perf_counter() - began
        return {
            "writes/s": count / took,
            "CPU us/write": (time.process_time() - cpu) / count * 1e6,
        }


def _write_alone(path: Path, seconds: float) -> dict[str, float]:
    """Write the same rows; more writers would only wait for one another."""
    connection = _connect(path)
    count, began, cpu = 0, time.perf_counter(), time.process_time()
    while count == 0 or time.perf_counter() < began + seconds:
        _put(connection, count, f"{count % 256}")
        count += 1
    took = time.perf_counter() - began
    connection.close()
    return {"writes/s": count / took, "CPU us/write": (time.process_time() - cpu) / count * 1e6}


async def _read_ours(where: str) -> dict[str, float]:
    async with open_store(where, [CELLS]) as store:
        await store.write([Put(CELLS, f"{n}", Cell(n, TEXT)) for n in range(1_000)])
        keys = [f"{n}" for n in range(1_000)] * 20
        began = time.process_time()
        for key in keys:
            store.get(CELLS, key)
        return {"ns": (time.process_time() - began) / len(keys) * 1e9}


def _read_alone(path: Path) -> dict[str, float]:
    connection = _connect(path)
    keys = [f"{n}" for n in range(1_000)] * 5
    began = time.process_time()
    for key in keys:
        connection.execute(SELECT, (key,)).fetchone()
    took = time.process_time() - began
    connection.close()
    return {"ns": took / len(keys) * 1e9}


def _wake(path: Path, how: str, commits: int) -> dict[str, float]:
    """Commit as a store does, a few ms apart, and ask the listener when it saw each."""
    connection, bell_path = _connect(path), Place(path).bell_path
    bell = os.open(bell_path, os.O_RDWR)
    with _listener(how, str(path)) as lines:
        idle = float(next(lines).split()[1])
        assert next(lines) == "ready"
        took = []
        for number in range(1, commits + 1):
            # Not in step with a listener's milliseconds: parts by the golden ratio are even.
            time.sleep(0.005 + number * 0.618 % 1 / 100)
            os.close(os.open(bell_path, os.O_RDONLY))
            connection.execute("BEGIN IMMEDIATE")
            _put(connection, number, KEY)
            os.pwrite(bell, newest_change(connection).to_bytes(VERSION_BYTES, "big"), 0)
            connection.execute("COMMIT")
            committed_at = time.monotonic()
            os.utime(bell)
            took.append((_when(lines, number) - committed_at) * 1e6)
    os.close(bell)
    connection.close()
    return _wakes(took, idle)


async def _wake_by_store(where: str, commits: int) -> dict[str, float]:
    """Do the same with the store's own writes; this process has nothing else to do meanwhile."""
    async with open_store(where, [CELLS]) as store:
        with _listener("follow", where) as lines:
            idle = float(next(lines).split()[1])
            assert next(lines) == "ready"
            took = []
            for number in range(1, commits + 1):
                await trio.sleep(0.005 + number % 7 / 500)
                await store.write(Put(CELLS, KEY, Cell(number, TEXT)))
                committed_at = time.monotonic()
                took.append(max(_when(lines, number) - committed_at, 0.0) * 1e6)
    return _wakes(took, idle)


def _wakes(took: list[float], idle: float) -> dict[str, float]:
    p99 = sorted(took)[int(len(took) * 0.99)]
    return {"p50 us": statistics.median(took), "p99 us": p99, "idle CPU %": idle * 100}


def _when(lines: Iterator[str], number: int) -> float:
    for line in lines:
        seen, at = line.split()
        if int(seen) == number:
            return float(at)
    raise AssertionError("the listener ended")


def _load(where: str) -> dict[str, float]:
    with _listener("load", where) as lines:
        seconds, mib = next(lines).split()
    return {"CPU s": float(seconds), "MiB": float(mib)}


@contextmanager
def _listener(how: str, where: str) -> Iterator[Iterator[str]]:
    command = [sys.executable, "-m", "benchmarks.store_listener", how, where]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            yield (line.rstrip("\n") for line in process.stdout)
        finally:
            process.kill()


async def _fill(where: str, peers: int) -> None:
    async with open_store(where, [PEERS]) as store:
        for begin in range(0, peers, 5_000):
            names = [f"peer-{n}" for n in range(begin, min(begin + 5_000, peers))]
            await store.write([Put(PEERS, name, _peer(name)) for name in names])


def _peer(name: str) -> PeerRow:
    return PeerRow(name=name, fingerprints=(f"ed25519:{name:0>64}",), scopes=("fs:read",))


def _connect(path: Path) -> apsw.Connection:
    connection = apsw.Connection(str(path))
    connection.set_busy_timeout(5_000)
    connection.pragma("synchronous", "FULL")
    connection.wal_autocheckpoint(WAL_PAGES)
    return connection


def _put(connection: apsw.Connection, number: int, key: str) -> None:
    value = f'{{"number":{number},"text":"{TEXT}"}}'
    connection.execute(
        "INSERT INTO row (tab, key, value) VALUES ('cell', ?, ?) "
        "ON CONFLICT DO UPDATE SET value = excluded.value",
        (key, value),
    )

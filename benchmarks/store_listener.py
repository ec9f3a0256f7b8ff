"""The other process of the store benchmark: ``python -m benchmarks.store_listener HOW WHERE``.

``follow`` and ``poll`` write ``idle <share of a core>`` after a while of silence, and then one line
for each number that they see in the row: ``<number> <monotonic seconds>``. ``load`` writes what it
takes to open a store with many peers: ``<CPU seconds> <MiB>``. WHERE is the path of an SQLite
database or the address of one in PostgreSQL.
"""

from __future__ import annotations

import gc
import os
import sys
import time
from collections.abc import Sequence
from contextlib import AbstractAsyncContextManager
from pathlib import Path

import apsw
import msgspec
import trio

from alknet.core.storage import Store, Table
from alknet.stores.postgres import SCHEMES, open_postgres_store
from alknet.stores.sqlite import open_sqlite_store
from alknet.stores.tables import PEERS


class Cell(msgspec.Struct, frozen=True):
    number: int
    text: str = ""


CELLS = Table("cell", Cell)
KEY = "shared"
SELECT = "SELECT value FROM row WHERE tab = 'cell' AND key = ?"
POLL_S = 0.001
IDLE_S = 1.0


def open_store(
    where: str, tables: Sequence[Table[msgspec.Struct]]
) -> AbstractAsyncContextManager[Store]:
    if where.startswith(SCHEMES):
        return open_postgres_store(where, tables)
    return open_sqlite_store(Path(where), tables)


async def follow(where: str) -> None:
    async with open_store(where, [CELLS]) as store:
        await _idle()
        feed = store.changes()
        _say("ready")
        async for _ in feed:
            row = store.get(CELLS, KEY)
            if row is not None:
                _seen(row.value.number)


async def poll(where: str) -> None:
    """Do what libraries do that know nothing of one another: ask SQLite every millisecond."""
    connection = apsw.Connection(where)
    before = connection.pragma("data_version")

    async def ticks() -> None:
        nonlocal before
        while True:
            await trio.sleep(POLL_S)
            found = connection.pragma("data_version")
            if found != before:
                before = found
                value = connection.execute(SELECT, (KEY,)).get
                if value is not None:
                    _seen(msgspec.json.decode(str(value), type=Cell).number)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(ticks)
        await _idle()
        _say("ready")


async def load(where: str) -> None:
    gc.collect()
    before, began = _resident_mib(), time.process_time()
    async with open_store(where, [PEERS]):
        _say(f"{time.process_time() - began} {_resident_mib() - before}")


async def _idle() -> None:
    await trio.sleep(IDLE_S / 4)
    began = time.process_time()
    await trio.sleep(IDLE_S)
    _say(f"idle {(time.process_time() - began) / IDLE_S}")


def _seen(number: int) -> None:
    _say(f"{number} {time.monotonic()}")


def _say(line: str) -> None:
    os.write(1, f"{line}\n".encode())


def _resident_mib() -> float:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


if __name__ == "__main__":
    how = {"follow": follow, "poll": poll, "load": load}[sys.argv[1]]
    trio.run(how, sys.argv[2])

"""Checks with a second process, which is killed."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

import trio

from alknet.core.storage import Put, Store
from alknet.testing.store_contract.harness import (
    NOTES,
    Note,
    StoreCheck,
    StoreHarness,
    until,
)

__all__ = ["PROCESS_CHECKS"]

# Enough acknowledged writes that the kill falls anywhere in a batch.
WRITES_BEFORE_THE_KILL = 200


@asynccontextmanager
async def child(harness: StoreHarness, mode: str) -> AsyncGenerator[trio.Process]:
    """Run another process on the same data for the block; it is killed at the end (SIGKILL)."""
    module = "alknet.testing.store_contract.child"
    command = [sys.executable, "-m", module, *harness.child, mode]
    process = await trio.lowlevel.open_process(command, stdout=subprocess.PIPE)
    try:
        yield process
    finally:
        process.kill()
        with trio.CancelScope(shield=True):
            await process.wait()
            if process.stdout is not None:
                await process.stdout.aclose()


async def what_was_acknowledged_outlives_kill_9(harness: StoreHarness) -> None:
    """A process is killed amid 32 writers: every write that it said was done is there, whole."""
    async with harness.open() as watching:
        async with child(harness, "write") as process:
            said = await _lines(process, WRITES_BEFORE_THE_KILL)
            process.kill()
            assert process.stdout is not None
            async for more in process.stdout:
                said += more
        acknowledged = set(said.decode().splitlines())
        assert len(acknowledged) >= WRITES_BEFORE_THE_KILL
        async with harness.open() as store:
            found = _whole(store)
            assert acknowledged <= found
            await store.write(Put(NOTES, "after", Note("1")))
            await until(lambda: watching.get(NOTES, "after") is not None)
            assert watching.rows(NOTES) == store.rows(NOTES)


async def processes_answer_one_another(harness: StoreHarness) -> None:
    """Each sees what the other wrote, again and again."""
    async with harness.open() as store, child(harness, "answer") as process:
        await _lines(process, 1)
        for n in range(20):
            await store.write(Put(NOTES, f"ping {n}", Note(str(n))))
            while store.get(NOTES, f"pong {n}") is None:
                await store.wait_changed(store.version)


async def _lines(process: trio.Process, count: int) -> bytes:
    """Read until *count* lines were said."""
    assert process.stdout is not None
    said = b""
    while said.count(b"\n") < count:
        more = await process.stdout.receive_some()
        assert more, "the other process ended"
        said += more
    return said


def _whole(store: Store) -> set[str]:
    """Return the keys of the child's writes; each has two rows, or none."""
    parts = {part: set[str]() for part in "ab"}
    for row in store.rows(NOTES):
        if row.key[-2:] in {" a", " b"}:
            parts[row.key[-1]].add(row.key[:-2])
    assert parts["a"] == parts["b"]
    return parts["a"]


PROCESS_CHECKS: tuple[StoreCheck, ...] = (
    what_was_acknowledged_outlives_kill_9,
    processes_answer_one_another,
)

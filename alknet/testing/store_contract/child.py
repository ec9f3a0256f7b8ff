"""The other process of `PROCESS_CHECKS`: ``python -m … OPENER ARGUMENT write|answer``.

``write``: 32 tasks write rows for ever, two at a time, and the keys are written to standard output
once they were acknowledged. ``answer``: each row ``ping …`` is answered by a row ``pong …``.
"""

from __future__ import annotations

import os
import sys
from contextlib import AbstractAsyncContextManager
from importlib import import_module

import trio

from alknet.core.storage import Changed, Put, Store
from alknet.testing.store_contract.harness import NOTES, Note

__all__ = ["main"]

WRITERS = 32


def main(opener: str, argument: str, mode: str) -> None:
    """Open the store that *opener* (``module:function``) makes of *argument*, and do *mode*."""
    module, _, function = opener.partition(":")
    opened = getattr(import_module(module), function)(argument)
    trio.run(_run, opened, mode)


async def _run(opened: AbstractAsyncContextManager[Store], mode: str) -> None:
    async with opened as store:
        if mode == "answer":
            await _answer(store)
        async with trio.open_nursery() as nursery:
            for n in range(WRITERS):
                nursery.start_soon(_write, store, n)


async def _write(store: Store, n: int) -> None:
    count = 0
    while True:
        count += 1
        key = f"{n} {count}"
        await store.write([Put(NOTES, f"{key} a", Note(key)), Put(NOTES, f"{key} b", Note(key))])
        _say(key)


async def _answer(store: Store) -> None:
    feed = store.changes()
    _say("ready")
    async for change in feed:
        if isinstance(change, Changed) and change.key.startswith("ping "):
            row = store.get(NOTES, change.key)
            assert row is not None
            await store.write(Put(NOTES, change.key.replace("ping", "pong"), row.value))


def _say(line: str) -> None:
    # One system call a line: what was said before the process is killed stays said.
    os.write(sys.stdout.fileno(), f"{line}\n".encode())


if __name__ == "__main__":
    main(*sys.argv[1:])

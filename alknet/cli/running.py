"""From a command, which is synchronous, into Trio; and how Ctrl-C ends what runs there."""

from __future__ import annotations

import logging
import signal
import sys
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

import trio

from alknet.cli.interrupts import Interrupted
from alknet.core.log import configure

__all__ = ["run", "uninterrupted"]

T = TypeVar("T")

# Set to work until they can tell the other side; a second Ctrl-C does not wait for that.
ENDING = (signal.SIGINT, signal.SIGTERM)


def run(main: Callable[[], Awaitable[T]]) -> T:
    """Run *main* to its end.

    SIGINT or SIGTERM cancel it, so that it can tell the other side, and a second one does not
    wait for that.

    Raises:
        Interrupted: A signal came; its status is what a shell expects.
    """
    configure("warning", "human", sys.stderr)
    # Its warnings are of attempts whose outcome the command itself reports.
    logging.getLogger("quic").setLevel(logging.CRITICAL)
    return trio.run(_until_signal, main)


async def _until_signal(main: Callable[[], Awaitable[T]]) -> T:
    result: list[T] = []
    caught: list[int] = []
    with trio.open_signal_receiver(*ENDING) as signals:
        async with trio.open_nursery() as nursery:

            async def watch() -> None:
                async for number in signals:
                    caught.append(number)
                    if len(caught) > 1:
                        raise Interrupted(128 + number)
                    work.cancel()

            work = trio.CancelScope()
            nursery.start_soon(watch)
            with work:
                result.append(await main())
            nursery.cancel_scope.cancel()
    if caught and not result:
        raise Interrupted(128 + caught[0])
    return result[0]


@contextmanager
def uninterrupted() -> Iterator[None]:
    """Hold back SIGINT and SIGTERM while the block runs, so that it happens whole or not at all.

    For blocks of milliseconds. A signal that came acts when the block ends.
    """
    caught: list[int] = []
    before = {s: signal.signal(s, lambda number, _frame: caught.append(number)) for s in ENDING}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        if caught:
            signal.raise_signal(signal.Signals(caught[0]))

"""Processes that end with the one that started them, however that ended."""

from __future__ import annotations

import os
import signal

import trio


async def cancel_with_parent(scope: trio.CancelScope) -> None:
    """Cancel *scope* when standard input ends, which the parent holds open."""
    async with trio.lowlevel.FdStream(os.dup(0)) as stream:
        while await stream.receive_some():
            pass
    scope.cancel()


async def cancel_on_signal(scope: trio.CancelScope) -> None:
    """Cancel *scope* on SIGINT and SIGTERM, so that all is cleared away."""
    with trio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as arrived:
        async for _ in arrived:
            scope.cancel()

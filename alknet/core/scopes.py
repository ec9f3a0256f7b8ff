"""A nursery for what runs beside a block, out of which the block's own errors come unwrapped."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

import trio

__all__ = ["open_background"]


@asynccontextmanager
async def open_background() -> AsyncGenerator[trio.Nursery]:
    """Run tasks beside the block; they are cancelled when it ends.

    An exception of the block leaves as it is, not inside an `ExceptionGroup`: that tasks run
    beside is a detail that its user's ``except`` need not know. A task that crashes cancels the
    block, and its error leaves in a group. Cancelled, the tasks are cancelled and waited for.
    """
    error: Exception | None = None
    async with trio.open_nursery() as nursery:
        try:
            yield nursery
        except Exception as exc:  # noqa: BLE001  boundary: raised again below, outside the nursery
            error = exc
        nursery.cancel_scope.cancel()
    if error is not None:
        raise error

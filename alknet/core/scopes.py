"""A nursery for what runs beside a block, out of which the block's own errors come unwrapped."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager

import trio

__all__ = ["open_background"]


@asynccontextmanager
async def open_background(
    *, end: Callable[[], object] | None = None
) -> AsyncGenerator[trio.Nursery]:
    """Run tasks beside the block; they are cancelled when it ends.

    An exception of the block leaves as it is, not inside an `ExceptionGroup`: that tasks run
    beside is a detail that its user's ``except`` need not know. A task that crashes cancels the
    block, and its error leaves in a group. Cancelled, the tasks are cancelled and waited for.

    Args:
        end: Called when the block ends, in place of the cancel: it makes the tasks end in their
            own time, and they are waited for.
    """
    error: Exception | None = None
    async with trio.open_nursery() as nursery:
        try:
            yield nursery
        except Exception as exc:  # noqa: BLE001  boundary: raised again below, outside the nursery
            error = exc
        if end is None:
            nursery.cancel_scope.cancel()
        else:
            end()
    if error is not None:
        raise error

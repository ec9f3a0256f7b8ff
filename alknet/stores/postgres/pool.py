"""A few connections that are opened when they are needed and kept."""

from __future__ import annotations

from collections import deque
from collections.abc import Awaitable, Callable
from typing import TypeVar

import psycopg
import trio

from alknet.stores.postgres.link import Link

__all__ = ["Pool"]

T = TypeVar("T")


class Pool:
    """Up to *size* connections; who wants one more waits.

    Args:
        open_link: Connects.
    """

    def __init__(self, open_link: Callable[[], Awaitable[Link]], size: int) -> None:
        self._open_link = open_link
        self._limiter = trio.CapacityLimiter(size)
        self._idle: deque[Link] = deque()
        self._is_closed = False

    async def run(self, work: Callable[[Link], Awaitable[T]]) -> T:
        """Run *work* with a connection of its own.

        A kept connection may have died unseen, with the server: if it turns out to be lost, *work*
        is run again on a new one, so it must be what can be repeated. Cancelled, *work* is, and
        its transaction is rolled back.

        Raises:
            trio.ClosedResourceError: The pool was closed.
            psycopg.Error: Also that of connecting.
        """
        async with self._limiter:
            link = self._kept()
            if link is not None:
                try:
                    return await self._use(link, work)
                except psycopg.OperationalError:
                    if not link.closed:
                        raise
            return await self._use(await self._open_link(), work)

    def close(self) -> None:
        """Close what is idle now, and the others as they come back. Idempotent."""
        self._is_closed = True
        while self._idle:
            self._idle.pop().drop()

    async def _use(self, link: Link, work: Callable[[Link], Awaitable[T]]) -> T:
        try:
            if self._is_closed:
                raise trio.ClosedResourceError("this store was closed")
            return await work(link)
        finally:
            if link.is_idle and not self._is_closed:
                self._idle.append(link)
            else:
                link.drop()

    def _kept(self) -> Link | None:
        while self._idle:
            link = self._idle.pop()
            if link.is_idle:
                return link
            link.drop()
        return None

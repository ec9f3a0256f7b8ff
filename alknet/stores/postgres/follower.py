"""How a handle learns what others wrote, and knows for how long it has not.

One connection listens, and reads when something was announced and every half second besides: what
was announced while nobody listened is found then, and a server that does not answer is noticed.
Order: listen, then read. Lost, it is opened anew, and reading goes on from the cursor.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable

import trio

from alknet.errors import AlknetError
from alknet.stores.postgres.failures import explained
from alknet.stores.postgres.layout import CHANNEL
from alknet.stores.postgres.link import Link
from alknet.stores.postgres.reading import Tables, read_since, snapshot
from alknet.stores.postgres.schema import in_transaction
from alknet.stores.postgres.target import Target
from alknet.stores.resident import Resident

__all__ = ["Follower"]

log = logging.getLogger(__name__)

# The look without a bell, which is also the heartbeat: four before reads fail closed.
LOOK_INTERVAL_S = 0.5
# How long a ring waits for a batch of ours, which may be what rang; one that waits itself for
# another node's lock must not keep us from looking.
OWN_BATCH_S = 0.02
# Between attempts to connect again, doubled each time: a restart takes a second or two, and all
# nodes come back at once.
RETRY_S, RETRY_MAX_S = 0.05, 2.0
VERSION_DIGITS = 19  # of 2^63
_BEGIN_READING = "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY"


class Follower:
    """Looks into the database whenever something is announced, and twice a second.

    Args:
        open_link: Connects.
        resident: Where what is found goes.
        own_batch: Waits until the batch that this handle commits, if any, was delivered.

    Attributes:
        fresh_at: When memory was last known to be current, on Trio's clock.
        history: Of which `Link.history` memory is.
    """

    def __init__(
        self,
        target: Target,
        open_link: Callable[[], Awaitable[Link]],
        tables: Tables,
        layout: int,
        resident: Resident,
        own_batch: Callable[[], Awaitable[None]],
    ) -> None:
        self._target = target
        self._open_link = open_link
        self._tables = tables
        self._layout = layout
        self._resident = resident
        self._own_batch = own_batch
        self._link: Link | None = None
        self._has_failed = False
        self._scope = trio.CancelScope()
        self._ended = trio.Event()
        self.history = ""
        self.fresh_at = trio.current_time()

    async def load(self) -> None:
        """Connect, listen, and read all that is resident. Cancelled, nothing is left open.

        Raises:
            StoreError: It cannot be read, or a row is damaged.
            Unavailable: The server cannot be reached.
        """
        with explained("read", self._target):
            self._link = await self._connect(is_strict=True)

    async def run(self) -> None:
        """Follow, until `aclose` or a cancel. What is known stays."""
        delay = RETRY_S
        try:
            with self._scope:
                while True:
                    try:
                        await self._follow()
                    except AlknetError as exc:
                        if self._link is not None:  # it had worked
                            delay = RETRY_S
                        self._note_failure(exc)
                    finally:
                        self.drop()
                    await trio.sleep(delay)
                    delay = min(2 * delay, RETRY_MAX_S)
        finally:
            self._ended.set()

    def note_fresh(self, moment: float) -> None:
        """Note that memory holds all that was written before *moment*."""
        self.fresh_at = max(self.fresh_at, moment)
        if self._has_failed and self._link is not None:
            self._has_failed = False
            log.info("store.readable_again", extra={"store": str(self._target)})

    def drop(self) -> None:
        """Close the connection. Idempotent; `run` opens another."""
        if self._link is not None:
            self._link.drop()
            self._link = None

    async def aclose(self) -> None:
        """End `run`. Never cancelled, and never long."""
        self._scope.cancel()
        with trio.CancelScope(shield=True):
            await self._ended.wait()

    async def _follow(self) -> None:
        with explained("follow", self._target):
            if self._link is None:
                self._link = await self._connect()
                self.note_fresh(self.fresh_at)
            link = self._link
            while True:
                with trio.move_on_after(LOOK_INTERVAL_S) as silence:
                    await link.wait_bell()
                # Our own rings, and those whose news a batch of ours brings, tell nothing.
                with trio.move_on_after(OWN_BATCH_S):
                    await self._own_batch()
                rings, link.bells = link.bells, []
                # Nor does whoever rings for nothing, and must not put off the look for ever.
                is_due = trio.current_time() - self.fresh_at >= LOOK_INTERVAL_S
                if silence.cancelled_caught or is_due or any(map(self._is_news, rings)):
                    await self._look(link)

    def _is_news(self, payload: str) -> bool:
        # Whoever can connect to the database can ring, with whatever payload.
        is_number = payload.isdecimal() and len(payload) <= VERSION_DIGITS
        return not is_number or int(payload) > self._resident.version

    async def _connect(self, *, is_strict: bool = False) -> Link:
        link = await self._open_link()
        link.stop_timeout_s = 0.0  # cancelled only by `aclose`
        try:
            await link.execute(f"LISTEN {CHANNEL}".encode())
            if link.history == self.history:
                await self._look(link)
            else:
                await self._reload(link, is_strict=is_strict)
        except BaseException:
            link.drop()
            raise
        return link

    async def _look(self, link: Link) -> None:
        started = trio.current_time()
        news = await read_since(link, self._resident.version, self._tables, self._layout)
        if news is None:
            await self._reload(link)
        else:
            self._resident.apply(news)
            self.note_fresh(started)

    async def _reload(self, link: Link, *, is_strict: bool = False) -> None:
        """Read everything.

        A server that was restored, or a standby that lagged, may have less than we have seen. Its
        numbers are made to go on after ours, so that none is given twice.
        """
        if self.history:
            await link.execute("SELECT alknet.pass_by(%s::bigint)", (self._resident.version,))
            log.warning("store.reloaded", extra={"store": str(self._target)})
        started = trio.current_time()
        async with in_transaction(link, _BEGIN_READING):
            found = await snapshot(link, self._tables, self._layout, is_strict=is_strict)
        self._resident.replace(found)
        self.history = link.history
        self.note_fresh(started)

    def _note_failure(self, exc: AlknetError) -> None:
        if not self._has_failed:
            self._has_failed = True
            log.error("store.unreadable", extra={"reason": str(exc)})

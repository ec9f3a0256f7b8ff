"""A connection to a PostgreSQL server, driven by Trio.

psycopg's protocol code is generators that say which readiness of the socket they need; its
asynchronous connection waits by asyncio in one method, `wait`, and holds one asyncio lock. Both are
replaced here, and connecting with them. Everything else is psycopg's own.
"""

from __future__ import annotations

import math
import select
from collections.abc import Awaitable, Callable
from typing import TypeVar

import psycopg
import trio
from psycopg import pq
from psycopg.abc import PQGen, PQGenConn
from psycopg.rows import AsyncRowFactory, TupleRow, tuple_row
from psycopg.waiting import Ready, Wait

from alknet.errors import StoreError, Unavailable
from alknet.stores.postgres import seams
from alknet.stores.postgres.target import Target

__all__ = ["Link", "dial"]

seams.require()

T = TypeVar("T")

# The oldest release that the community still repairs for years, and that tests run on.
OLDEST_SERVER = 150_000
# A server that says nothing for so long while it owes an answer is taken for lost. A busy one
# needs a second for the longest row.
SILENCE_S = 10.0
# How long a cancelled caller waits; then the connection is closed, and the server notices later.
STOP_TIMEOUT_S = 5.0
# Locks are held for a batch, milliseconds; less than SILENCE_S, so that the server says so itself.
LOCK_TIMEOUT_S = 4.0
# A node that is cut off between its batch and the commit must not keep all others from writing.
IDLE_IN_TRANSACTION_S = 5.0
# Every query here is a few steps along an index. Statistics that are missing or old, as they are
# after a restore, must not suggest to read whole tables twice a second, or to compile code.
_SETUP = b"""
SELECT set_config('jit', 'off', false),
    set_config('enable_seqscan', 'off', false),
    set_config('enable_bitmapscan', 'off', false),
    set_config('enable_hashjoin', 'off', false),
    set_config('enable_mergejoin', 'off', false),
    set_config('lock_timeout', %s, false),
    set_config('idle_in_transaction_session_timeout', %s, false),
    set_config('default_transaction_isolation', 'read committed', false),
    set_config('synchronous_commit',
        replace(current_setting('synchronous_commit'), 'off', 'on'), false),
    (SELECT system_identifier FROM pg_control_system())::text
        || '/' || left(pg_walfile_name(pg_current_wal_insert_lsn()), 8)
        || '/' || (SELECT oid FROM pg_database WHERE datname = current_database())
"""


class Link(psycopg.AsyncConnection[TupleRow]):
    """A connection, in autocommit mode; made by `dial`.

    Attributes:
        history: Differs when the server's data may have gone another way: another server or
            database, or one that was promoted or restored.
        silence_s: How long the server may say nothing while it owes an answer.
        stop_timeout_s: How long a cancelled caller waits for the server to stop; after 0 s the
            connection is closed at once.
        bells: Payloads of the notifications that came and nobody has taken yet.
    """

    history: str = ""

    def __init__(
        self, pgconn: pq.abc.PGconn, row_factory: AsyncRowFactory[TupleRow] = tuple_row
    ) -> None:
        super().__init__(pgconn, row_factory)
        self.lock = trio.Lock()  # type: ignore[assignment]  # used as a context manager alone
        self._autocommit = True
        self.silence_s = SILENCE_S
        self.stop_timeout_s = STOP_TIMEOUT_S
        self.bells: list[str] = []
        self.add_notify_handler(lambda notice: self.bells.append(notice.payload))

    @property
    def is_idle(self) -> bool:
        """Whether it is open, outside a transaction, and the server has said nothing unasked."""
        if self.closed or self.pgconn.transaction_status != pq.TransactionStatus.IDLE:
            return False
        poll = select.poll()
        poll.register(self.pgconn.socket, select.POLLIN)
        return not poll.poll(0)

    async def wait(
        self,
        gen: PQGen[T],
        interval: float = 0.0,
        timeout: float | None = None,  # noqa: ASYNC109
    ) -> T:
        """Run one of psycopg's generators.

        Cancelled while the server works, it asks the server to stop and waits until it has; the
        connection can be used again, unless that takes too long: then it is closed.

        Raises:
            psycopg.OperationalError: The server said nothing for `silence_s`, or the connection
                is lost. It is closed.
        """
        try:
            return await self._drive(gen, self.silence_s if timeout is None else timeout)
        except trio.Cancelled:
            if self.stop_timeout_s <= 0:
                self.drop()
            elif self.pgconn.transaction_status == pq.TransactionStatus.ACTIVE:
                with trio.CancelScope(shield=True):
                    await self._stop(gen)
            raise

    async def wait_bell(self) -> None:
        """Wait until `bells` holds something. Cancelled, nothing is lost.

        Raises:
            psycopg.OperationalError: The connection is lost.
        """
        while not self.bells:
            await trio.lowlevel.wait_readable(self.fileno())
            self.pgconn.consume_input()
            while (notice := self.pgconn.notifies()) is not None:
                self.bells.append(notice.extra.decode())
            await trio.lowlevel.checkpoint()

    def drop(self) -> None:
        """Close it at once; the server rolls back what was not committed. Idempotent."""
        if not self.closed:
            trio.lowlevel.notify_closing(self.pgconn.socket)
            self._closed = True
            self.pgconn.finish()

    async def _drive(self, gen: PQGen[T], silence_s: float, first: Ready | None = None) -> T:
        try:
            wanted = gen.send(first)  # type: ignore[arg-type]  # None begins a generator
            while True:
                with trio.move_on_after(silence_s) as scope:
                    ready = await _ready(self.fileno(), wanted)
                if scope.cancelled_caught:
                    self.drop()
                    raise psycopg.OperationalError(f"the server said nothing for {silence_s:g} s")
                wanted = gen.send(ready)
        except StopIteration as done:
            await trio.lowlevel.checkpoint_if_cancelled()
            result: T = done.value
            return result

    async def _stop(self, gen: PQGen[T]) -> None:
        """Make the server end what it does, or drop the connection."""
        try:
            with trio.fail_after(self.stop_timeout_s):
                await _connected(self._cancel_gen())
                await self._drive(gen, math.inf, Ready.NONE)
        except psycopg.errors.QueryCanceled:
            return
        except (psycopg.Error, trio.TooSlowError, OSError):
            self.drop()


async def dial(target: Target) -> Link:
    """Connect. Cancelled, nothing is left open.

    Raises:
        psycopg.Error: No address answered, or the server refused.
        StoreError: The server cannot be used: too old, read-only, not in UTF-8.
        Unavailable: The name of the host cannot be looked up.
    """
    failure: psycopg.Error | StoreError | None = None
    try:
        attempts = await target.attempts()
    except OSError as exc:
        raise Unavailable(
            f"cannot connect to {target}: the name of the host cannot be looked up "
            f"({exc.strerror or exc}): check the name and the network"
        ) from exc
    for attempt in attempts:
        try:
            return await _dial_one(attempt, target)
        except (psycopg.Error, StoreError) as exc:
            failure = exc
    assert failure is not None
    raise failure


async def _dial_one(attempt: str, target: Target) -> Link:
    with trio.move_on_after(target.connect_timeout_s):
        link = await _connected(Link._connect_gen(attempt))
        try:
            _check(link, target)
            link.stop_timeout_s = 0.0  # there is nothing yet to be kept
            limits = (f"{LOCK_TIMEOUT_S:g}s", f"{IDLE_IN_TRANSACTION_S:g}s")
            found = await (await link.execute(_SETUP, limits)).fetchone()
            assert found is not None
            link.history = str(found[-1])
            link.stop_timeout_s = STOP_TIMEOUT_S
        except BaseException:
            link.drop()
            raise
        return link
    raise psycopg.OperationalError(f"no answer within {target.connect_timeout_s:g} s")


def _check(link: Link, target: Target) -> None:
    version = link.pgconn.server_version
    what = f"cannot use {target}"
    if version < OLDEST_SERVER:
        raise StoreError(
            f"{what}: the server is PostgreSQL {version // 10_000}; alknet needs "
            f"{OLDEST_SERVER // 10_000} or newer: upgrade it"
        )
    if b"on" in {link.pgconn.parameter_status(name) for name in _READ_ONLY}:
        raise StoreError(
            f"{what}: the server is read-only, as a standby is: name the primary, or all servers "
            "with target_session_attrs=read-write"
        )
    encoding = link.pgconn.parameter_status(b"server_encoding") or b""
    if encoding != b"UTF8":
        raise StoreError(
            f"{what}: the database's encoding is {encoding.decode()}: make one with "
            "createdb --encoding UTF8 --template template0"
        )


async def _connected(gen: PQGenConn[T]) -> T:
    """Run a generator that opens sockets of its own."""
    try:
        descriptor, wanted = next(gen)
        while True:
            descriptor, wanted = gen.send(await _ready(descriptor, wanted))
    except StopIteration as done:
        result: T = done.value
        return result
    finally:
        gen.close()


async def _ready(descriptor: int, wanted: Wait) -> Ready:
    """Wait for what psycopg wants, and say what there is."""
    if wanted == Wait.R:
        await trio.lowlevel.wait_readable(descriptor)
        return Ready.R
    if wanted == Wait.W:
        await trio.lowlevel.wait_writable(descriptor)
        return Ready.W
    return await _any_ready(descriptor)


async def _any_ready(descriptor: int) -> Ready:
    poll = select.poll()
    poll.register(descriptor, select.POLLIN | select.POLLOUT)
    found = poll.poll(0)
    if found:
        await trio.lowlevel.checkpoint()
        events = found[0][1]
        readable = Ready.R if events & ~select.POLLOUT else Ready.NONE
        return Ready(readable | (Ready.W if events & select.POLLOUT else Ready.NONE))
    ready = Ready.NONE

    async def note(wait: Callable[[int], Awaitable[None]], state: Ready) -> None:
        nonlocal ready
        await wait(descriptor)
        ready = Ready(ready | state)
        nursery.cancel_scope.cancel()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(note, trio.lowlevel.wait_readable, Ready.R)
        nursery.start_soon(note, trio.lowlevel.wait_writable, Ready.W)
    return ready


_READ_ONLY = (b"in_hot_standby", b"default_transaction_read_only")

"""A session: both sides' calls on one connection of any carrier.

Tasks: one that accepts streams and one that watches for those of the wrong kind, one that waits for
the end of the connection, and `CallSession.run` for draining; per stream a reader and a writer; for
each request of the peer that has to wait one, in which the operation runs (`alknet.call.workers`).
Our own calls run in the tasks that make them, and one ends those that time out. All of them end
before `CallSession.run` returns.
"""

from __future__ import annotations

import logging
import math
import re
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from functools import cached_property
from typing import TYPE_CHECKING, Any, TypeVar, Unpack

import msgspec
import trio

from alknet.call.calling import Calling
from alknet.call.contracts import Dispatcher
from alknet.call.handles import Bidi, CallOptions, Subscription, TypedSubscription, Upload
from alknet.call.inbound import SHUTDOWN, InboundCall
from alknet.call.lanes import Lanes
from alknet.call.outbox import Budget
from alknet.call.pending import ended
from alknet.call.retrying import Retrier, RetryOptions, RetryPolicy
from alknet.call.serving import Serving
from alknet.core.contracts import CloseCode, CloseReason, Connection
from alknet.core.identity import ANONYMOUS, Identity
from alknet.core.limits import Limits
from alknet.core.scopes import open_background
from alknet.errors import LocalError, Malformed

if TYPE_CHECKING:
    from alknet.call.overlay import Layer

__all__ = [
    "Bidi",
    "CallOptions",
    "CallSession",
    "RetryPolicy",
    "Subscription",
    "TypedSubscription",
    "Upload",
    "open_session",
]

log = logging.getLogger(__name__)

T = TypeVar("T")

FAREWELL_S = 1.0
"""How long the last answers and the reason of a close may take to leave."""


@asynccontextmanager
async def open_session(
    connection: Connection, dispatcher: Dispatcher | None = None, *, limits: Limits | None = None
) -> AsyncGenerator[CallSession]:
    """Run a session on *connection* for as long as the block; leaving it closes the connection.

    What the block raises comes out as it is, not in a group. Cancelled, the session is cancelled
    too, and the connection is left to its owner.

    Args:
        dispatcher: Serves the peer's calls; without one they are answered NOT_FOUND.
    """
    session = CallSession(connection, dispatcher, limits=limits or Limits())
    async with open_background(end=lambda: session.end(CloseCode.OK)) as nursery:
        await nursery.start(session.run)
        yield session


class CallSession:
    """Calls in both directions over one connection.

    Attributes:
        connection: What carries it.
        dispatcher: Serves the peer's requests; None refuses them.
        limits: Of frames, calls, buffers and time.
        serving: The peer's requests.
        calling: Ours.
        lanes: The streams.
        budget: The bytes held for this connection.
        wait_unneeded: A drain waits for this first, if it is there: until nothing that runs here
            may still call by this session.
        is_leaving: The peer has finished the stream that requests go by: it shuts down.
        layer: The operations that this session alone has, of the peer's calls; None for none.
    """

    def __init__(
        self,
        connection: Connection,
        dispatcher: Dispatcher | None,
        *,
        limits: Limits,
        on_failed_authentication: Callable[[Connection], object] | None = None,
        token_ends_at: Callable[[Identity], float] | None = None,
    ) -> None:
        """Make a session; `run` starts it.

        Args:
            on_failed_authentication: Called for each refused token; returns True if it was one too
                many (for its address), so that the session must end.
            token_ends_at: When the token behind an identity expires, in `trio.current_time`.
        """
        self.connection = connection
        self.dispatcher = dispatcher
        self.limits = limits
        self.budget = Budget(limits.buffered_bytes_per_connection, self._over_budget)
        self.serving = Serving(self)
        self.calling = Calling(self)
        self.lanes = Lanes(self)
        self._on_failed_authentication = on_failed_authentication
        self._token_ends_at = token_ends_at
        self._failed_authentications = 0
        # We chose whom to dial, and the handshake has proven that it is them.
        self._is_proven = connection.is_dialer
        self._nursery: trio.Nursery | None = None
        self._close_reason: CloseReason | None = None
        self._until_end = trio.CancelScope()
        self._quiet = trio.lowlevel.ParkingLot()
        self.wait_unneeded: Callable[[], Awaitable[None]] | None = None
        self.is_leaving = False
        self.layer: Layer | None = None

    def __repr__(self) -> str:
        served, made = len(self.serving.calls), len(self.calling.pending)
        return f"<CallSession over {self.connection!r}, {served} served, {made} made>"

    # --- for users

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Serve until the connection ends, a drain completes or `end` is called.

        Returns with the connection closed, and never raises because of the peer or the network:
        `close_reason` says how it ended. Cancelled, all calls of both sides end, and the
        connection is left to its owner.

        Raises:
            LocalError: It runs already, or did.
        """
        if self._nursery is not None:
            raise LocalError("a session runs once")
        try:
            async with trio.open_nursery() as nursery:
                self._nursery = nursery
                try:
                    self._start_tasks()
                    task_status.started()
                    with self._until_end:
                        await self._drain()
                    await self._farewell()
                finally:
                    # Cancelled, too: who calls from here on is told so, and starts no task.
                    self._set_reason(_STOPPED)
                # Before the streams go, so that the peer learns why they do.
                reason = self._close_reason
                assert reason is not None
                self.connection.close(reason.code, reason.reason)
                nursery.cancel_scope.cancel()
        finally:
            if self.layer is not None:
                self.layer.close()
        with trio.move_on_after(FAREWELL_S):
            await self.connection.wait_closed()

    async def call(
        self,
        operation: str,
        input: object = None,  # noqa: A002  the wire's word
        **options: Unpack[RetryOptions],
    ) -> msgspec.Raw:
        """Run a query or mutation of the peer and return its output as JSON.

        Cancelled, the peer is told to abort, and nothing of the call is left here.

        Args:
            operation: With or without the leading slash.
            input: Anything msgspec encodes as JSON, or JSON in a `msgspec.Raw`; None is ``{}``.
            **options: See `CallOptions`; and ``retry``, a `RetryPolicy`, to try again what fails
                in a way that may pass. Without it nothing is tried again.

        Raises:
            CallError: What the peer answered; TIMEOUT or UNAVAILABLE if it did not.
        """
        if "retry" in options:
            return await self.retrier.call(operation, input, **options)
        return await self.calling.call(operation, input, options)

    async def call_as(
        self,
        type: type[T],  # noqa: A002  as in msgspec.json.decode
        operation: str,
        input: object = None,  # noqa: A002
        **options: Unpack[RetryOptions],
    ) -> T:
        """`call`, and decode the output.

        Raises:
            CallError: As `call`.
            Malformed: The output is not what *type* says.
        """
        output = await self.call(operation, input, **options)
        try:
            return msgspec.json.decode(output, type=type)
        except msgspec.DecodeError as exc:
            raise Malformed(f"the output of {operation} is not as expected: {exc}") from None

    def subscribe(
        self,
        operation: str,
        input: object = None,  # noqa: A002
        **options: Unpack[CallOptions],
    ) -> AbstractAsyncContextManager[Subscription]:
        """Run a subscription of the peer: ``async with`` gives its items, an async iterator.

        Items that are not taken hold the peer back. Leaving the block early, by a cancel too, tells
        the peer to abort. Arguments and errors are those of `call`; errors of the operation are
        raised by the iteration.
        """
        return self.calling.subscribe(operation, input, options)

    def upload(
        self,
        operation: str,
        input: object = None,  # noqa: A002
        **options: Unpack[CallOptions],
    ) -> AbstractAsyncContextManager[Upload]:
        """Run an upload to the peer: send it items inside the block, then take its output.

        ```python
        async with session.upload("files/put", {"name": "a.txt"}) as upload:
            for chunk in chunks:
                await upload.send(chunk)
            output = await upload.finish()
        ```

        Leaving the block without `Upload.finish`, by a cancel too, tells the peer to abort.
        Arguments and errors are those of `call`.
        """
        return self.calling.upload(operation, input, options)

    def bidi(
        self,
        operation: str,
        input: object = None,  # noqa: A002
        **options: Unpack[CallOptions],
    ) -> AbstractAsyncContextManager[Bidi]:
        """Run a bidirectional operation of the peer: send it items and iterate over what it sends.

        Otherwise it is like `subscribe`; `Bidi.finish` says that no more is sent.
        """
        return self.calling.bidi(operation, input, options)

    @asynccontextmanager
    async def subscribe_as(
        self,
        type: type[T],  # noqa: A002  as in msgspec.json.decode
        operation: str,
        input: object = None,  # noqa: A002
        **options: Unpack[CallOptions],
    ) -> AsyncGenerator[TypedSubscription[T]]:
        """`subscribe`, with each item decoded."""
        async with self.calling.subscribe(operation, input, options) as items:
            yield TypedSubscription(items, type)

    def abort_calls(self, predicate: Callable[[InboundCall], bool], reason: str) -> int:
        """End those of the peer's calls that *predicate* picks; return how many.

        Their handlers are cancelled and the caller gets ``call.aborted`` with *reason*.
        """
        return self.serving.abort_calls(predicate, reason)

    def end(self, code: int, reason: str = "") -> None:
        """End the session and close the connection with *code*; never waits; the first counts."""
        self._set_reason(CloseReason(code, reason, by_peer=False))

    @property
    def close_reason(self) -> CloseReason | None:
        """Why the session ended or is about to; None while it lives."""
        return self._close_reason

    @cached_property
    def retrier(self) -> Retrier:
        """What tries calls again, with the budget that all calls of this session share."""
        return Retrier(self.call, is_over=lambda: self._close_reason is not None)

    # --- for its parts

    @property
    def frame_limit(self) -> int:
        """The longest frame that the peer may send now."""
        if self._is_proven or self.connection.identity.id != ANONYMOUS.id:
            return self.limits.frame_bytes
        return self.limits.frame_bytes_unproven

    def spawn(self, task: Callable[..., Any], *args: object, name: str) -> None:
        """Start a task that ends with the session."""
        assert self._nursery is not None
        self._nursery.start_soon(task, *args, name=name)

    def check_live(self) -> None:
        """Raise unless calls can be made."""
        if self._close_reason is not None:
            raise ended(self._close_reason)
        if self._nursery is None:
            raise LocalError("the session does not run yet")

    def is_others_id(self, call_id: str) -> bool:
        """Return whether *call_id*, of the peer's, is of the form of ours or in use by us."""
        if call_id in self.calling.pending:
            return True
        is_like_ours = call_id[0] == "a" and _ACCEPTORS_IDS.fullmatch(call_id) is not None
        return is_like_ours and not self.connection.is_dialer

    def call_ended(self) -> None:
        """Note that one call less is running; a drain waits for the last."""
        if self.serving.is_draining and not self.serving.calls and not self.calling.pending:
            self._quiet.unpark_all()

    def token_accepted(self) -> None:
        """Note that the peer has proven an identity by a token."""
        self._is_proven = True

    def token_ends_at(self, identity: Identity) -> float:
        """Return when the token behind *identity* expires, in `trio.current_time`."""
        return math.inf if self._token_ends_at is None else self._token_ends_at(identity)

    def authentication_failed(self) -> None:
        """Count a refused token; too many end the session."""
        self._failed_authentications += 1
        tell = self._on_failed_authentication
        is_too_many = tell is not None and tell(self.connection) is True
        most = self.limits.failed_authentications_per_connection
        if is_too_many or self._failed_authentications >= most:
            self.end(CloseCode.LIMIT, "too many failed authentications")

    def end_by_peer(self, reason: str, code: int = CloseCode.OK) -> None:
        """Note that the peer is gone, or said that it goes."""
        self._set_reason(CloseReason(code, reason, by_peer=True))

    # --- its life

    def _start_tasks(self) -> None:
        if self.connection.carrier.many_streams:
            self.spawn(self.lanes.accept, name="call streams")
            self.spawn(self.lanes.refuse_unidirectional, name="call streams, one way")
        else:
            self.spawn(self.lanes.run_only, name="call stream")
        self.spawn(self._watch_connection, name="call connection")

    async def _watch_connection(self) -> None:
        reason = await self.connection.wait_closed()
        if reason.by_peer and not reason.is_transport:
            # Answers that came before the close may lie unread; the readers take them, and end.
            with trio.move_on_after(FAREWELL_S):
                await self.lanes.wait_gone()
        self._set_reason(reason)

    async def _drain(self) -> None:
        await self.connection.draining.wait()
        self.serving.is_draining = True
        # Leave the last of the time for telling what is cut off that it is.
        with trio.move_on_after(max(0.0, self.limits.drain_timeout_s - 2 * FAREWELL_S)):
            if self.wait_unneeded is not None:
                await self.wait_unneeded()
            await self._wait_quiet()
        self.abort_calls(lambda _call: True, SHUTDOWN)
        with trio.move_on_after(FAREWELL_S):
            await self._wait_quiet()
        self.end(CloseCode.SHUTDOWN, "shutting down")

    async def _wait_quiet(self) -> None:
        while self.serving.calls or self.calling.pending:
            await self._quiet.park()

    async def _farewell(self) -> None:
        reason = self._close_reason
        assert reason is not None
        if reason.by_peer or self.connection.close_reason is not None:
            return
        carrier = self.connection.carrier
        with trio.move_on_after(FAREWELL_S):
            if not carrier.close_code:
                self.serving.give_up(reason)
                self.lanes.send_close(reason)
                await self.lanes.flush()
            elif reason.code in _TOLD_AFTER_ANSWERS and self.budget.used <= self.budget.cap:
                self.serving.give_up(reason)
                await self.lanes.finish_served()

    def _set_reason(self, reason: CloseReason) -> None:
        if self._close_reason is not None:
            return
        self._close_reason = reason
        self._until_end.cancel()
        self.lanes.wake()
        self.calling.fail_all(ended(reason))

    def _over_budget(self) -> None:
        self.end(CloseCode.LIMIT, "too many bytes wait to be sent or read")


_STOPPED = CloseReason(CloseCode.OK, "the session was stopped", by_peer=False)
_TOLD_AFTER_ANSWERS = frozenset({CloseCode.SHUTDOWN, CloseCode.LIMIT})
_ACCEPTORS_IDS = re.compile("a[0-9]+")

"""What a caller holds: the options of a call, and the handles of those that last."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Generic, TypedDict, TypeVar

import msgspec
import trio

from alknet.call.codes import CallError
from alknet.call.pending import PendingCall, PendingItems, too_slow
from alknet.call.uploading import InputSender
from alknet.core.identity import Identity
from alknet.errors import Malformed

if TYPE_CHECKING:
    from alknet.call.calling import Calling

__all__ = ["Bidi", "CallOptions", "Subscription", "TypedSubscription", "Upload"]

T = TypeVar("T")


class CallOptions(TypedDict, total=False):
    """What may be said about a call besides its operation and input.

    Attributes:
        token: Run it as this token's identity, not as the connection's.
        timeout_s: Deadline, enforced by both sides; None leaves it to the operation.
        forwarded_for: For whom we ask.
        traceparent: W3C trace context.
        idempotency_key: The same for a retry of the same request.
        peer: Route: names of peers still to pass.
        path: Node ids passed so far.
        large_output: The operation is known to declare it: takes a stream of its own.
    """

    token: str | None
    timeout_s: float | None
    forwarded_for: Identity | None
    traceparent: str | None
    idempotency_key: str | None
    peer: tuple[str, ...] | None
    path: tuple[str, ...]
    large_output: bool


class Subscription:
    """The items of a subscription, as an async iterator of JSON values.

    Iteration ends after the last item and raises `CallError` if the subscription failed. One task
    iterates. Cancelled, no item is lost.
    """

    def __init__(self, calling: Calling, pending: PendingItems) -> None:
        self._calling = calling
        self._pending = pending

    @property
    def error(self) -> CallError | None:
        """Why it failed; None if it did not, or not yet."""
        return self._pending.error

    def __aiter__(self) -> Subscription:
        return self

    async def __anext__(self) -> msgspec.Raw:
        deadline = self._pending.deadline
        if deadline == math.inf:
            item = await self._pending.take()
        else:
            with trio.CancelScope(deadline=deadline) as scope:
                item = await self._pending.take()
            if scope.cancelled_caught:
                raise too_slow()
        if item is None:
            raise StopAsyncIteration
        self._calling.item_taken(self._pending)
        return item


class TypedSubscription(Generic[T]):
    """The items of a `Subscription`, decoded; otherwise the same.

    An item that does not fit raises `alknet.errors.Malformed`; the one after it can be taken.
    """

    def __init__(self, items: Subscription, type: type[T]) -> None:  # noqa: A002  msgspec's word
        self._items = items
        self._decoder = msgspec.json.Decoder(type)

    def __aiter__(self) -> TypedSubscription[T]:
        return self

    async def __anext__(self) -> T:
        item = await self._items.__anext__()
        try:
            return self._decoder.decode(item)
        except msgspec.DecodeError as exc:
            raise Malformed(f"an item is not as expected: {exc}") from None


class Upload:
    """An upload of ours: items go out, and one output comes back."""

    def __init__(self, pending: PendingCall, sender: InputSender) -> None:
        self._pending = pending
        self._sender = sender

    @property
    def error(self) -> CallError | None:
        """Why it failed; None if it did not, or not yet."""
        return self._pending.error

    async def send(self, item: object) -> None:
        """Send one input item, once the callee has room for it. Cancelled, it was not sent.

        Args:
            item: Anything msgspec encodes as JSON, or JSON in a `msgspec.Raw`.

        Raises:
            CallError: How the call failed; INVALID_INPUT if the item is over the frame limit,
                and the call goes on.
            trio.BrokenResourceError: The callee has answered, and takes no more: see `finish`.
        """
        await self._sender.send(item)

    async def finish(self) -> msgspec.Raw:
        """Say that the input is whole and return the output, once.

        Cancelled, the call goes on until the block of `CallSession.upload` is left.

        Raises:
            CallError: What the peer answered; TIMEOUT or UNAVAILABLE if it did not.
        """
        self._sender.finish()
        return await self._pending.wait()


class Bidi(Subscription):
    """A bidirectional call of ours: items go out, and items come back, in any order of both.

    Iterate and send in different tasks, unless the operation answers each item with one.
    """

    def __init__(self, calling: Calling, pending: PendingItems, sender: InputSender) -> None:
        super().__init__(calling, pending)
        self._sender = sender

    async def send(self, item: object) -> None:
        """Send one input item; see `Upload.send`."""
        await self._sender.send(item)

    async def finish(self) -> None:
        """Say that the input is whole; items still come. The second time has no effect."""
        await trio.lowlevel.checkpoint()
        self._sender.finish()

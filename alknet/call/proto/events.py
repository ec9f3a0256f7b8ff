"""What the two sides of a call tell each other, one struct per message type.

`id` is the request id everywhere. JSON of the application stays encoded (`msgspec.Raw`) until
someone who knows its type decodes it.
"""

from __future__ import annotations

from typing import Any, TypeAlias

import msgspec

from alknet.call.codes import CallError
from alknet.core.identity import Identity

__all__ = [
    "MAX_CREDIT",
    "MAX_ID_BYTES",
    "NOT_STARTED",
    "MAX_KEY_BYTES",
    "Aborted",
    "Completed",
    "ConnectionClose",
    "Credit",
    "Event",
    "Failed",
    "Faulty",
    "InputEnd",
    "InputItem",
    "Requested",
    "Responded",
    "Unknown",
]

MAX_ID_BYTES = 128
"""Room for a UUID, a trace id or a path of them; ids are kept per call in flight."""

MAX_KEY_BYTES = 128
"""Of an idempotency key: the same room, and the same use."""

NOT_STARTED = "not_started"
"""The detail by which a callee says that it refused a request before any handler saw it."""

MAX_CREDIT = 2**31 - 1
"""The largest window and credit, and what a call may hold: fits every language's int."""


class Requested(msgspec.Struct, frozen=True, kw_only=True):
    """Please run an operation.

    Attributes:
        operation: Registry name, without the leading slash of the wire.
        input: JSON, ``{}`` if the caller sent none.
        auth_token: Replaces the connection's identity for this call. Secret: not in the repr.
        forwarded_for: Whom the caller acts for; for logs and handlers, never for access.
        timeout_ms: Deadline counted from the arrival of the frame, >= 1.
        traceparent: W3C trace context, as it came.
        window: Items that may be sent before the first credit, 1 … `MAX_CREDIT`; None leaves it
            to the carrier's flow control.
        peer: Route: names of peers still to pass.
        path: Texts of the node ids that the request has passed.
        has_input_items: The caller will send input items: said where there is a route, for nodes
            on the way that do not know the operation.
        idempotency_key: The same key means the same request, sent again; 1 to 128 bytes.
    """

    id: str
    operation: str
    input: msgspec.Raw = msgspec.Raw(b"{}")
    auth_token: str | None = None
    forwarded_for: Identity | None = None
    timeout_ms: int | None = None
    traceparent: str | None = None
    window: int | None = None
    peer: tuple[str, ...] | None = None
    path: tuple[str, ...] = ()
    has_input_items: bool = False
    idempotency_key: str | None = None

    def __repr__(self) -> str:
        token = ", with a token" if self.auth_token is not None else ""
        return f"<Requested {self.id} {self.operation}, {len(bytes(self.input))} bytes{token}>"


class Responded(msgspec.Struct, frozen=True):
    """The output of a query or mutation, or one item of a subscription.

    Attributes:
        more: It is an item, and not the end: said where the request had no ``window``, so that who
            meant to call a query finds out.
    """

    id: str
    output: msgspec.Raw
    more: bool = False


class Completed(msgspec.Struct, frozen=True):
    """A subscription came to its end."""

    id: str


class Aborted(msgspec.Struct, frozen=True):
    """The caller wants no more, or (from the callee, for *reason*) there will be no more."""

    id: str
    reason: str | None = None


class Failed(msgspec.Struct, frozen=True):
    """The call ended with an error.

    Attributes:
        by: The peers on the way from who sends this to who has said it; see `CallError.by`.
    """

    id: str
    code: str
    message: str
    retryable: bool
    details: dict[str, Any] | None = None
    by: tuple[str, ...] = ()

    @classmethod
    def of(cls, call_id: str, error: CallError) -> Failed:
        """Return what to send for *error*."""
        # Whom a handler has asked is nobody else's business.
        by = (error.by or ()) if error.is_passed_on else ()
        return cls(call_id, error.code, error.message, error.retryable, error.details, by)

    @classmethod
    def refusal(cls, call_id: str, error: CallError) -> Failed:
        """Return what to send for *error* where no handler has seen the request.

        If it may be tried again, it says so: then it may be tried elsewhere too, at once.
        """
        details = error.details
        if error.retryable:
            details = {**(details or {}), NOT_STARTED: True}
        return cls(call_id, error.code, error.message, error.retryable, details)

    def to_error(self) -> CallError:
        """Return the error to raise where the call was made."""
        details = self.details
        is_refused = details is not None and details.get(NOT_STARTED) is True
        if details is not None and is_refused:  # passed on, it would be untrue
            details = {key: value for key, value in details.items() if key != NOT_STARTED}
        error = CallError(self.code, self.message, retryable=self.retryable, details=details)
        error.is_refused = is_refused
        error.by = self.by
        return error


class InputItem(msgspec.Struct, frozen=True):
    """One item of an upload."""

    id: str
    item: msgspec.Raw


class InputEnd(msgspec.Struct, frozen=True):
    """The upload is whole."""

    id: str


class Credit(msgspec.Struct, frozen=True):
    """*n* more items may be sent, 1 … `MAX_CREDIT`."""

    id: str
    n: int


class ConnectionClose(msgspec.Struct, frozen=True):
    """The sender closes the connection now; the id means nothing."""

    code: int
    reason: str = ""


class Unknown(msgspec.Struct, frozen=True):
    """A message of a type that this version does not know: to be ignored."""

    type: str
    id: str


class Faulty(msgspec.Struct, frozen=True):
    """A message whose envelope is sound and whose payload is not: it ends the call *id* alone."""

    type: str
    id: str
    error: CallError


Event: TypeAlias = (
    Requested
    | Responded
    | Completed
    | Aborted
    | Failed
    | InputItem
    | InputEnd
    | Credit
    | ConnectionClose
    | Unknown
    | Faulty
)

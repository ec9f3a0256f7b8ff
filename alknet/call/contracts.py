"""The seam between the session, which moves calls, and the dispatcher, which knows operations."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager
from typing import TYPE_CHECKING, Protocol

import msgspec

from alknet.call.proto.events import Requested
from alknet.core.contracts import Connection
from alknet.core.identity import Identity

if TYPE_CHECKING:
    from alknet.call.sharing import RepeatedCalls

__all__ = ["AdmittedCall", "Dispatcher"]


class AdmittedCall(Protocol):
    """A request that may run: the name is known, the caller may, and the input fits.

    Attributes:
        op_type: ``query``, ``mutation``, ``subscription``, ``upload`` or ``bidi``.
        timeout_s: The longest that the operation may take; None for no limit of its own.
        identity: Whom it runs for: the token's if one was sent, else the connection's.
        used_token: *identity* came from the request's token, so the call ends when that does.
        large_output: The operation declares that its output may be large.
    """

    @property
    def op_type(self) -> str: ...
    @property
    def timeout_s(self) -> float | None: ...
    @property
    def identity(self) -> Identity: ...
    @property
    def used_token(self) -> bool: ...
    @property
    def large_output(self) -> bool: ...

    def readmit(self, identity: Identity) -> None:
        """Let it go on as *identity*, which is its caller with other rights than before.

        Raises:
            CallError: With these rights it would not be admitted. Nothing was changed.
        """
        ...

    def feed(self, items: AsyncIterator[msgspec.Raw]) -> None:
        """Give an upload or bidirectional call its input items, before `run` or `stream`."""
        ...

    async def run(self) -> bytes:
        """Run a query, mutation or upload and return its output as JSON.

        Cancelled (abort, deadline, disconnect), everything below it is cancelled too.

        Raises:
            CallError: What the caller gets. Anything else is a crash: the session logs it, and
                the caller gets INTERNAL with a correlation id.
        """
        ...

    def stream(self) -> AbstractAsyncContextManager[AsyncIterator[bytes]]:
        """Run what has items: enter, take items (JSON each), leave, whether exhausted or not.

        Entering and each item raise like `run`. The session takes the next item only once
        the last one found room, so a slow caller slows the operation down.
        """
        ...


class Dispatcher(Protocol):
    """Decides which requests run.

    Attributes:
        repeated: The calls with an idempotency key, of all connections that it serves.
    """

    @property
    def repeated(self) -> RepeatedCalls: ...

    def admit(self, request: Requested, *, connection: Connection, session: object) -> AdmittedCall:
        """Check token, name, visibility, access and input, and bind the call.

        Synchronous: nothing that the answer rests on can change in between. *session* is the
        `alknet.call.session.CallSession` that the request came by (for calls back to the peer).

        Raises:
            CallError: What the caller gets instead; with ``is_failed_authentication`` it counts
                against the connection.
        """
        ...

"""What makes the calls of a handler, as the handler's context knows it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import AbstractAsyncContextManager
from typing import TYPE_CHECKING, Any, Protocol

import msgspec

if TYPE_CHECKING:
    from alknet.call.context import Context
    from alknet.call.operations import Operation
    from alknet.call.overlay import Overlay
    from alknet.call.peers.reference import PeerRef
    from alknet.call.retrying import RetryPolicy
    from alknet.call.survivors import Survivors

__all__ = ["BidiCall", "Caller", "Inputs", "LocalCaller", "UploadCall"]


class Inputs(Protocol):
    """Where the items go that a call takes."""

    async def send(self, item: object) -> None:
        """Send one input item, once there is room for it. Cancelled, it was not sent.

        Args:
            item: Anything msgspec encodes as JSON, or JSON in a `msgspec.Raw`.

        Raises:
            CallError: How the call failed.
            trio.BrokenResourceError: The operation has answered, and takes no more.
        """
        ...


class UploadCall(Inputs, Protocol):
    """An upload that runs."""

    async def finish(self) -> msgspec.Raw:
        """Say that the input is whole and return the output, once. Raises CallError."""
        ...


class BidiCall(Inputs, Protocol):
    """A bidirectional call that runs: an async iterator of its items, which raises CallError."""

    def __aiter__(self) -> AsyncIterator[msgspec.Raw]: ...
    async def __anext__(self) -> msgspec.Raw: ...

    async def finish(self) -> None:
        """Say that the input is whole; items still come. The second time has no effect."""
        ...


class Caller(Protocol):
    """What makes the calls of a handler, here or at a peer."""

    async def call(
        self,
        parent: Context,
        operation: str,
        input: object,  # noqa: A002  the wire's word
    ) -> msgspec.Raw:
        """Run a query or mutation."""
        ...

    def subscribe(
        self,
        parent: Context,
        operation: str,
        input: object,  # noqa: A002
    ) -> AbstractAsyncContextManager[AsyncIterator[msgspec.Raw]]:
        """Run a subscription."""
        ...

    def upload(
        self,
        parent: Context,
        operation: str,
        input: object,  # noqa: A002
    ) -> AbstractAsyncContextManager[UploadCall]:
        """Run an upload."""
        ...

    def bidi(
        self,
        parent: Context,
        operation: str,
        input: object,  # noqa: A002
    ) -> AbstractAsyncContextManager[BidiCall]:
        """Run a bidirectional operation."""
        ...


class LocalCaller(Caller, Protocol):
    """What makes the calls of a handler to its own node.

    Attributes:
        survivors: Where those run that may outlive the handler.
    """

    @property
    def survivors(self) -> Survivors: ...

    def at(self, peer: PeerRef, retry: RetryPolicy | None = None) -> Caller:
        """Return what makes its calls to *peer*, and makes them again as *retry* says."""
        ...

    def overlay(
        self, parent: Context, operations: Sequence[Operation[..., Any]]
    ) -> AbstractAsyncContextManager[Overlay]:
        """Add operations for a block."""
        ...

    def session_overlay(self, parent: Context) -> Overlay:
        """Return what adds operations to the session."""
        ...

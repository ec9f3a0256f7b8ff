"""One handler on one connection, in a scope that nothing leaves but a signal.

Whatever a handler does ends its own connection at most: a crash is logged once, and the peer gets
a code and a correlation id to quote. `KeyboardInterrupt`, `SystemExit` and a cancel from outside
pass through.
"""

from __future__ import annotations

import logging
import secrets
from collections.abc import Iterator

import trio

from alknet.core.contracts import CloseCode, Connection, ProtocolHandler
from alknet.errors import PeerError

__all__ = ["close_and_tell", "supervise"]

log = logging.getLogger(__name__)

# After an orderly close a handler may still write down what it knows; one that has not noticed by
# then waits for something that will not come.
CLOSE_GRACE_S = 5.0
# Telling the peer about the close takes one packet or TLS record; a dead peer is not waited for.
TELL_WITHIN_S = 1.0


async def supervise(connection: Connection, handler: ProtocolHandler) -> None:
    """Run *handler* on *connection* and close it: with 0, or with what the handler met.

    The handler is cancelled at once when the transport fails, and after `CLOSE_GRACE_S` when either
    side has closed the connection and it has not noticed.

    A handler that fails because its connection ended has not crashed. One that lets a `PeerError`
    out says that the peer broke the protocol: that closes with the error's code and text.

    Cancelled, the handler is cancelled and the connection closes with `CloseCode.SHUTDOWN`.
    """
    try:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_cancel_when_ended, connection, nursery.cancel_scope)
            try:
                await handler.handle(connection)
            except* Exception as group:  # noqa: BLE001  boundary: it ends this connection only
                _close_for(connection, handler, group)
            nursery.cancel_scope.cancel()
        # Flushes: a handler may return as soon as its last answer is on its way.
        await connection.aclose(CloseCode.OK)
    finally:
        await close_and_tell(connection, CloseCode.SHUTDOWN, "the node stops")


async def close_and_tell(connection: Connection, code: CloseCode, reason: str) -> None:
    """Close, if that has not happened, and give the peer a moment to hear of it.

    Cancelled, it still takes that moment (`TELL_WITHIN_S` at most).
    """
    connection.close(code, reason)
    with trio.move_on_after(TELL_WITHIN_S, shield=True):
        await connection.wait_closed()


async def _cancel_when_ended(connection: Connection, scope: trio.CancelScope) -> None:
    reason = await connection.wait_closed()
    if not reason.is_transport:
        await trio.sleep(CLOSE_GRACE_S)
    scope.cancel()


def _close_for(
    connection: Connection, handler: ProtocolHandler, group: ExceptionGroup[Exception]
) -> None:
    """Close with what *group* means, and log it at the level that it deserves."""
    errors = list(_leaves(group))
    is_over = connection.close_reason is not None
    if is_over and all(isinstance(exc, _ENDINGS) for exc in errors):
        log.debug("handler.ended_with_connection", extra={"reason": str(connection.close_reason)})
    elif all(isinstance(exc, PeerError) for exc in errors):
        first = errors[0]
        assert isinstance(first, PeerError)
        log.warning("handler.protocol_error", extra={"alpn": connection.alpn, "error": str(first)})
        connection.close(first.close_code, str(first))
    else:
        _close_crashed(connection, handler, errors[0] if len(errors) == 1 else group)


_ENDINGS = (trio.BrokenResourceError, trio.ClosedResourceError)


def _close_crashed(connection: Connection, handler: ProtocolHandler, exc: Exception) -> None:
    correlation_id = secrets.token_hex(8)
    log.error(
        "handler.crashed",
        exc_info=exc,
        extra={
            "alpn": connection.alpn,
            "handler": type(handler).__name__,
            "correlation_id": correlation_id,
        },
    )
    # The reason must not say more: exception texts hold paths, queries and other people's data.
    connection.close(CloseCode.HANDLER_ERROR, f"correlation id {correlation_id}")


def _leaves(exc: Exception) -> Iterator[Exception]:
    if isinstance(exc, ExceptionGroup):
        for inner in exc.exceptions:
            yield from _leaves(inner)
    else:
        yield exc

"""An ``http/1.1`` handler that answers 404 to every request, until there is a real one."""

from __future__ import annotations

import h11
import trio

from alknet.core.contracts import Connection, Stream
from alknet.core.scopes import open_background

__all__ = ["NotFoundHandler"]

# A client that has connected and says nothing for this long has no question.
REQUEST_TIMEOUT_S = 10.0
# Browsers reuse connections; beyond this many requests somebody is only passing the time.
MAX_REQUESTS = 100
# Bodies are read and dropped so that the answer gets through; larger ones are cut off.
MAX_BODY_BYTES = 64 * 1024
BODY = b"404: this is an alknet node; it serves no pages\n"


class NotFoundHandler:
    """Answers every request with 404 and one line of text."""

    alpns = ("http/1.1",)
    requires_identity = False

    async def handle(self, connection: Connection) -> None:
        """Answer requests until the client leaves, breaks the protocol or falls silent.

        Cancelled, the request at hand stays unanswered.
        """
        stream = await connection.accept_stream()
        async with open_background() as nursery:
            serving = trio.CancelScope()
            nursery.start_soon(_cancel_when_draining, connection, serving)
            with serving:
                await self._serve(stream)
        await stream.aclose()

    async def _serve(self, stream: Stream) -> None:
        http = h11.Connection(h11.SERVER)
        for _ in range(MAX_REQUESTS):
            with trio.move_on_after(REQUEST_TIMEOUT_S):
                if await self._answer(http, stream):
                    continue
            break

    async def _answer(self, http: h11.Connection, stream: Stream) -> bool:
        """Answer one request; return whether another may follow."""
        try:
            request = await _read_request(http, stream)
        except h11.RemoteProtocolError as exc:
            if http.our_state in {h11.IDLE, h11.SEND_RESPONSE}:
                await _respond(http, stream, exc.error_status_hint or 400, b"bad request\n")
            return False
        if request is None:
            return False
        await _respond(http, stream, 404, b"" if request.method == b"HEAD" else BODY)
        if http.our_state is not h11.DONE or http.their_state is not h11.DONE:
            return False
        http.start_next_cycle()
        return True


async def _cancel_when_draining(connection: Connection, serving: trio.CancelScope) -> None:
    # Nothing here is worth waiting for: a 404 that is not sent will be asked for again.
    await connection.draining.wait()
    serving.cancel()


async def _read_request(http: h11.Connection, stream: Stream) -> h11.Request | None:
    """Read one request and drop its body; None if the client has left or the body is too long."""
    request: h11.Request | None = None
    dropped = 0
    while dropped <= MAX_BODY_BYTES:
        event = http.next_event()
        if event is h11.NEED_DATA:
            if http.they_are_waiting_for_100_continue:
                return request
            http.receive_data(bytes(await stream.receive_some()))
        elif isinstance(event, h11.Request):
            request = event
        elif isinstance(event, h11.Data):
            dropped += len(event.data)
        elif isinstance(event, h11.EndOfMessage):
            return request
        else:
            return None
    return request


async def _respond(http: h11.Connection, stream: Stream, status: int, body: bytes) -> None:
    headers = [
        ("content-type", "text/plain; charset=utf-8"),
        ("content-length", str(len(BODY) if status == 404 else len(body))),
    ]
    data = http.send(h11.Response(status_code=status, headers=headers)) or b""
    if body:
        data += http.send(h11.Data(data=body)) or b""
    data += http.send(h11.EndOfMessage()) or b""
    await stream.send_all(data)

"""Pairs of sessions, a table of operations, and a peer that says what it likes."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Mapping
from contextlib import AbstractAsyncContextManager, aclosing, asynccontextmanager

import msgspec
import trio

from alknet.call.codes import CallError, ErrorCode
from alknet.call.handler import CallHandler
from alknet.call.proto import (
    Event,
    FrameDecoder,
    Requested,
    decode_envelope_untrusted,
    encode_event,
    encode_frame,
)
from alknet.call.session import CallSession, open_session
from alknet.call.sharing import RepeatedCalls
from alknet.core.contracts import CARRIER_UNIX, Connection, Stream
from alknet.core.identity import Identity
from alknet.core.limits import Limits
from alknet.core.tcp.connection import StreamConnection
from alknet.testing.memory import memory_connection_pair
from alknet.testing.operations import FixedIdentities

CARRIERS = ("memory", "unix")
PEER = Identity("peer:w1", ("echo",))

Query = Callable[[msgspec.Raw], Awaitable[object]]
Items = Callable[[msgspec.Raw], AsyncGenerator[object]]
UploadOf = Callable[[msgspec.Raw, AsyncIterator[msgspec.Raw]], Awaitable[object]]
BidiOf = Callable[[msgspec.Raw, AsyncIterator[msgspec.Raw]], AsyncGenerator[object]]


class ChangingIdentities(FixedIdentities):
    """Identities of which those that wait hear when a test has changed them."""

    def __init__(self, tokens: Mapping[str, Identity] | None = None) -> None:
        super().__init__(tokens)
        self._changed = trio.Event()

    def change(self) -> None:
        self.version += 1
        self._changed.set()
        self._changed = trio.Event()

    async def wait_changed(self, version: int) -> int:
        while self.version == version:
            await self._changed.wait()
        return self.version


class Call:
    """An admitted call of `Operations`."""

    def __init__(self, owner: Operations, request: Requested, identity: Identity) -> None:
        self._owner = owner
        self._input = request.input
        self._name = request.operation
        self.op_type = owner.kinds.get(request.operation, "query")
        if request.operation in owner.subscriptions:
            self.op_type = "subscription"
        if request.operation in owner.uploads:
            self.op_type = "upload"
        if request.operation in owner.bidis:
            self.op_type = "bidi"
        self.timeout_s = owner.timeouts.get(request.operation)
        self.identity = identity
        self.used_token = request.auth_token is not None
        self.large_output = False

    def readmit(self, identity: Identity) -> None:
        needed = self._owner.needed_scopes.get(self._name)
        if needed is not None and not identity.has_scope(needed):
            raise CallError(ErrorCode.FORBIDDEN, f"scope {needed!r} missing")
        self.identity = identity

    def feed(self, items: AsyncIterator[msgspec.Raw]) -> None:
        self._items = items

    async def run(self) -> bytes:
        if self.op_type == "upload":
            with self._owner.noting():
                upload = self._owner.uploads[self._name]
                return msgspec.json.encode(await upload(self._input, self._items))
        with self._owner.noting():
            return msgspec.json.encode(await self._owner.queries[self._name](self._input))

    def stream(self) -> AbstractAsyncContextManager[AsyncIterator[bytes]]:
        return self._stream()

    @asynccontextmanager
    async def _stream(self) -> AsyncGenerator[AsyncIterator[bytes]]:
        if self.op_type == "bidi":
            made = self._owner.bidis[self._name](self._input, self._items)
        else:
            made = self._owner.subscriptions[self._name](self._input)
        with self._owner.noting():
            async with (
                aclosing(made) as items,
                aclosing(_encoded(items)) as encoded,
            ):
                yield encoded


async def _encoded(items: AsyncIterator[object]) -> AsyncGenerator[bytes]:
    async for item in items:
        yield msgspec.json.encode(item)


class _Noting:
    def __init__(self, owner: Operations) -> None:
        self._owner = owner

    def __enter__(self) -> None:
        self._owner.running += 1
        self._owner.started += 1

    def __exit__(self, *exc: object) -> None:
        self._owner.running -= 1
        if isinstance(exc[1], trio.Cancelled):
            self._owner.cancelled += 1


class Operations:
    """A `Dispatcher` over two dicts of functions; counts what runs."""

    def __init__(self) -> None:
        self.queries: dict[str, Query] = {"echo/unary": _echo, "echo/slow": _slow}
        self.subscriptions: dict[str, Items] = {"echo/stream": _count, "echo/endless": _endless}
        self.kinds: dict[str, str] = {}
        self.uploads: dict[str, UploadOf] = {"echo/total": _total}
        self.bidis: dict[str, BidiOf] = {"echo/each": _each}
        self.timeouts: dict[str, float] = {}
        self.tokens: dict[str, Identity] = {}
        self.needed_scopes: dict[str, str] = {}
        self.repeated = RepeatedCalls(Limits)
        self.requests: list[Requested] = []
        self.running = self.started = self.cancelled = 0

    def noting(self) -> _Noting:
        return _Noting(self)

    def admit(self, request: Requested, *, connection: Connection, session: object) -> Call:
        self.requests.append(request)
        identity = connection.identity
        if request.auth_token is not None:
            if request.auth_token not in self.tokens:
                raise CallError(ErrorCode.FORBIDDEN, "token refused", is_failed_authentication=True)
            identity = self.tokens[request.auth_token]
        if request.operation not in {
            *self.queries,
            *self.subscriptions,
            *self.kinds,
            *self.uploads,
            *self.bidis,
        }:
            raise CallError(ErrorCode.NOT_FOUND, "no such operation")
        return Call(self, request, identity)


async def _total(_given: msgspec.Raw, items: AsyncIterator[msgspec.Raw]) -> object:
    return sum([msgspec.json.decode(item, type=int) async for item in items])


async def _each(
    _given: msgspec.Raw, items: AsyncIterator[msgspec.Raw]
) -> AsyncGenerator[msgspec.Raw]:
    async for item in items:
        yield item


async def _echo(given: msgspec.Raw) -> object:
    return given


async def _slow(_given: msgspec.Raw) -> object:
    await trio.sleep_forever()


async def _count(given: msgspec.Raw) -> AsyncGenerator[object]:
    for n in range(msgspec.json.decode(given)["count"]):
        yield {"n": n}


async def _endless(_given: msgspec.Raw) -> AsyncGenerator[object]:
    n = 0
    while True:
        yield {"n": n, "fill": "x" * 1000}
        n += 1


@asynccontextmanager
async def connections(
    carrier: str, limits: Limits | None = None, identity: Identity | None = PEER
) -> AsyncGenerator[tuple[Connection, Connection]]:
    """Yield ``(dialer, acceptor)``; the acceptor knows the dialler as *identity*."""
    if carrier == "memory":
        async with memory_connection_pair(alpn="alknet/call", limits=limits) as pair:
            if identity is not None:
                pair[1].identity = identity
            yield pair
        return
    ends = [trio.SocketStream(end) for end in trio.socket.socketpair()]
    dialer, acceptor = (
        StreamConnection(
            end,
            alpn="alknet/call",
            carrier=CARRIER_UNIX,
            is_dialer=is_dialer,
            peer_key=None,
            remote_address="socketpair",
        )
        for end, is_dialer in zip(ends, (True, False), strict=True)
    )
    if identity is not None:
        acceptor.identity = identity
    try:
        yield dialer, acceptor
    finally:
        with trio.CancelScope(shield=True):
            await dialer.aclose()
            await acceptor.aclose()


@asynccontextmanager
async def handled(
    carrier: str, handler: CallHandler, identity: Identity | None
) -> AsyncGenerator[tuple[CallSession, Connection]]:
    """Yield a client, and the connection on which *handler* serves it as *identity*."""
    async with (
        connections(carrier, identity=identity) as (dialer, acceptor),
        handler.lifespan(),
        trio.open_nursery() as nursery,
    ):
        nursery.start_soon(handler.handle, acceptor)
        async with open_session(dialer) as client:
            yield client, acceptor
        nursery.cancel_scope.cancel()


@asynccontextmanager
async def session_pair(
    carrier: str,
    operations: Operations,
    *,
    limits: Limits | None = None,
    back: Operations | None = None,
    identity: Identity | None = PEER,
) -> AsyncGenerator[tuple[CallSession, CallSession]]:
    """Yield ``(client, server)``, both running; *back* is what the client serves."""
    limits = limits or Limits()
    async with (
        connections(carrier, limits, identity) as (dialer, acceptor),
        trio.open_nursery() as nursery,
    ):
        client = CallSession(dialer, back, limits=limits)
        server = CallSession(acceptor, operations, limits=limits)
        await nursery.start(client.run)
        await nursery.start(server.run)
        yield client, server
        nursery.cancel_scope.cancel()


@asynccontextmanager
async def raw_peer(
    carrier: str,
    operations: Operations,
    *,
    limits: Limits | None = None,
    identity: Identity | None = PEER,
) -> AsyncGenerator[tuple[RawPeer, CallSession]]:
    """Yield a dialler that sends bytes of its choice, and the session that meets them."""
    limits = limits or Limits()
    async with (
        connections(carrier, limits, identity) as (dialer, acceptor),
        trio.open_nursery() as nursery,
    ):
        server = CallSession(acceptor, operations, limits=limits)
        await nursery.start(server.run)
        yield RawPeer(dialer, await dialer.open_stream()), server
        nursery.cancel_scope.cancel()


class RawPeer:
    """The far end of a session, by hand."""

    def __init__(self, connection: Connection, stream: Stream) -> None:
        self.connection = connection
        self.stream = stream
        self._decoder = FrameDecoder(2**31)

    async def send(self, *messages: Event | str | bytes) -> None:
        """Send events, or JSON as it stands, each in a frame."""
        await self.stream.send_all(b"".join(encode_frame(_body(message)) for message in messages))

    async def request(self, call_id: str, operation: str, payload: str = "") -> None:
        """Send ``call.requested`` with *payload* inside the braces after the operationId."""
        comma = "," if payload else ""
        await self.send(
            f'{{"type":"call.requested","id":"{call_id}",'
            f'"payload":{{"operationId":"/{operation}"{comma}{payload}}}}}'
        )

    async def receive(self) -> Event | None:
        """Return the next event, None at the end of the stream."""
        while (frame := self._decoder.next_frame()) is None:
            data = await self.stream.receive_some()
            if not data:
                return None
            self._decoder.receive_data_untrusted(data)
        return decode_envelope_untrusted(frame)

    async def open(self) -> RawPeer:
        """Return the same peer on another stream."""
        return RawPeer(self.connection, await self.connection.open_stream())


def _body(message: Event | str | bytes) -> bytes:
    if isinstance(message, bytes):
        return message
    return message.encode() if isinstance(message, str) else encode_event(message)


async def is_idle(*sessions: CallSession) -> bool:
    """Whether, once all is quiet, no call is left in *sessions*, nor a byte that is counted."""
    await trio.testing.wait_all_tasks_blocked()
    return all(
        not session.serving.calls and not session.calling.pending and session.budget.used == 0
        for session in sessions
    )

"""What whole-node scenarios share: friends of a node, a bystander, and a peer without manners."""

from __future__ import annotations

import math
from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import msgspec
import trio
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from alknet.call.codes import CallError
from alknet.call.handler import ALPN
from alknet.call.proto import FrameDecoder, encode_frame
from alknet.call.session import CallSession
from alknet.call.views import FOLLOW_INTERVAL_S
from alknet.client import connect, open_session
from alknet.core.clock import wall_clock
from alknet.core.contracts import CloseReason, Connection, ConnectionEnded, Stream, StreamReset
from alknet.core.endpoint.dial import DialError
from alknet.core.identity import ApiKey, NodeId, Peer
from alknet.core.limits import Limits
from alknet.core.tokens import mint_token
from alknet.node import Node
from alknet.testing.nodes import open_peer_session

TRANSPORTS = ("quic", "tcp")
# How often a claim is looked at.
TICK_S = 0.005


@dataclass(frozen=True)
class Friend:
    """A key and the peer record that a node has of it."""

    key: Ed25519PrivateKey
    peer: Peer


def make_friend(name: str, *scopes: str, enabled: bool = True) -> Friend:
    key = Ed25519PrivateKey.generate()
    fingerprint = NodeId.from_public_key(key.public_key()).fingerprint
    return Friend(key, Peer(name=name, fingerprints=(fingerprint,), scopes=scopes, enabled=enabled))


async def new_token(
    node: Node, *scopes: str, name: str = "a test", expires_in_s: float | None = None
) -> str:
    """Store an API key on *node* and return its token."""
    token = mint_token()
    expires_at = None if expires_in_s is None else wall_clock() + expires_in_s
    key = ApiKey(
        prefix=token.prefix, name=name, hash=token.hash, scopes=scopes, expires_at=expires_at
    )
    await node.identities.put_api_key(key)
    return token.text


@asynccontextmanager
async def bystander(node: Node, transport: str) -> AsyncGenerator[CallSession]:
    """Another client, which calls all the while and must never notice anything."""
    answered = 0
    async with (
        open_peer_session(
            node, name="bystander", scopes=["echo"], transports=[transport]
        ) as session,
        trio.open_nursery() as nursery,
    ):

        async def keep_calling() -> None:
            nonlocal answered
            while True:
                await session.call("echo/unary", {"message": answered}, timeout_s=60)
                answered += 1
                await trio.sleep(0.01)

        # The node has taken it in: a client's handshake is over before the node's is.
        await session.call("echo/unary", {"message": "here"}, timeout_s=60)
        nursery.start_soon(keep_calling)
        yield session
        nursery.cancel_scope.cancel()
        last = await session.call("echo/unary", {"message": "still here"}, timeout_s=60)
        assert bytes(last) == b'{"message":"still here"}'
        assert session.connection.close_reason is None


async def eventually(claim: Any, within_s: float = 4.0) -> None:
    """Wait until ``claim()`` is true.

    The time is counted in ticks, and a tick that comes late counts no more than others: a machine
    that stood still, or has much else to do, is no reason to fail.
    """
    for _ in range(math.ceil(within_s / TICK_S)):
        if claim():
            return
        await trio.sleep(TICK_S)
    assert claim()


async def tasks_at_rest() -> int:
    """Return how many tasks live once that has not changed for longer than any watcher pauses."""
    found, since = trio.lowlevel.current_statistics().tasks_living, trio.current_time()
    while trio.current_time() - since < 2 * FOLLOW_INTERVAL_S:
        await trio.sleep(0.01)
        living = trio.lowlevel.current_statistics().tasks_living
        if living != found:
            found, since = living, trio.current_time()
    return found


async def ended(session: CallSession, within_s: float = 4.0) -> CloseReason:
    """Wait for the end of *session* and return why it ended."""
    await eventually(lambda: session.close_reason is not None, within_s)
    assert session.close_reason is not None
    return session.close_reason


async def refusal_at_the_door(
    node: Node, transport: str, key: Ed25519PrivateKey | None = None
) -> str:
    """Connect and call, in vain; return what the client is told.

    On QUIC the refusal may come in one packet with the end of the handshake: then it is the dial
    that fails, else the first call.
    """
    try:
        async with open_session(node.ticket, key=key, transports=[transport]) as session:
            await session.call("node/ping", timeout_s=30)
    except DialError as exc:
        return str(exc)
    except CallError as exc:
        return f"{exc.code}: {exc.message}"
    raise AssertionError("it was let in")


class RawCaller:
    """Speaks ``alknet/call`` by hand, on one stream, as none of our clients would."""

    def __init__(self, connection: Connection, stream: Stream) -> None:
        self.connection = connection
        self.stream = stream
        self._decoder = FrameDecoder(64 * 1024 * 1024)

    async def send(self, body: bytes) -> None:
        """Send *body* as a frame."""
        await self.stream.send_all(encode_frame(body))

    async def request(
        self, operation: str, value: object = None, *, call_id: str = "x1", **payload: object
    ) -> None:
        payload |= {"operationId": f"/{operation}", "input": {} if value is None else value}
        envelope = {"type": "call.requested", "id": call_id, "payload": payload}
        await self.send(msgspec.json.encode(envelope))

    async def say(self, kind: str, call_id: str = "x1", **payload: object) -> None:
        await self.send(msgspec.json.encode({"type": kind, "id": call_id, "payload": payload}))

    async def next(self) -> dict[str, Any]:
        """Return the next envelope, as it stands on the wire."""
        with trio.fail_after(30):
            while (frame := self._decoder.next_frame()) is None:
                data = await self.stream.receive_some()
                if not data:
                    raise trio.EndOfChannel
                self._decoder.receive_data_untrusted(data)
        found: dict[str, Any] = msgspec.json.decode(frame)
        return found

    async def answer(self, call_id: str = "x1") -> dict[str, Any]:
        """Return the next envelope about *call_id*."""
        while (event := await self.next())["id"] != call_id:
            pass
        return event

    async def fault(self) -> tuple[int, str]:
        """Read to the end; return the code and text with which the node ended it."""
        try:
            while True:
                event = await self.next()
                if event["type"] == "connection.close":
                    return event["payload"]["code"], event["payload"]["reason"]
        except StreamReset as exc:
            return exc.code, ""
        except ConnectionEnded as exc:
            return exc.close.code, exc.close.reason
        except trio.EndOfChannel:  # in good order; where there are streams, the close comes next
            assert self.connection.carrier.many_streams
            await self.stream.send_eof()
            with trio.fail_after(30):
                reason = await self.connection.wait_closed()
            return reason.code, reason.reason


@asynccontextmanager
async def raw_caller(
    node: Node,
    transport: str,
    *,
    key: Ed25519PrivateKey | None = None,
    limits: Limits | None = None,
) -> AsyncGenerator[RawCaller]:
    """Connect to *node*'s call protocol with no session on our side."""
    async with connect(
        node.ticket, alpn=ALPN, key=key, transports=[transport], limits=limits
    ) as connection:
        yield RawCaller(connection, await connection.open_stream())


def codes(errors: Sequence[dict[str, Any]]) -> list[str]:
    return [error["payload"]["code"] for error in errors]

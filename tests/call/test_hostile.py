"""Peers that break the rules: a clear end for them, and another client does not notice."""

from __future__ import annotations

import itertools
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

import msgspec
import pytest
import trio

from alknet.call.codes import CallError
from alknet.call.proto import (
    ConnectionClose,
    Event,
    Failed,
    Requested,
    Responded,
    encode_event,
    encode_frame,
)
from alknet.call.session import CallSession
from alknet.core.contracts import CloseCode, Connection, StreamReset
from alknet.core.identity import Identity
from alknet.core.limits import Limits
from tests.call.sessions import CARRIERS, Operations, RawPeer, raw_peer, session_pair

both = pytest.mark.parametrize("carrier", CARRIERS)


@asynccontextmanager
async def hostile(
    carrier: str, *, limits: Limits | None = None, identity: Identity | None = None
) -> AsyncGenerator[tuple[RawPeer, CallSession]]:
    """Give a raw peer, while another client of the same operations calls them all the time."""
    operations = Operations()
    async with (
        session_pair(carrier, operations) as (client, _),
        raw_peer(carrier, operations, limits=limits, identity=identity) as (peer, server),
        trio.open_nursery() as nursery,
    ):
        nursery.start_soon(_keep_calling, client)
        yield peer, server
        nursery.cancel_scope.cancel()
        assert await client.call_as(str, "echo/unary", "still here") == "still here"


async def _keep_calling(client: CallSession) -> None:
    while True:
        assert await client.call_as(int, "echo/unary", 1) == 1
        await trio.sleep(0.001)


async def _last_words(peer: RawPeer) -> Event | None:
    last = event = None
    with trio.fail_after(30):
        try:
            while (event := await peer.receive()) is not None:
                last = event
            await peer.stream.send_eof()  # as a good caller does; a bad one costs a second
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            pass
    return last


async def _closed(peer: RawPeer, server: CallSession, code: CloseCode) -> str:
    """Check that the connection ends with *code*, and return the reason."""
    last = await _last_words(peer)
    with trio.fail_after(30):
        reason = await server.connection.wait_closed()
    ours = server.close_reason
    assert ours is not None
    assert ours.code == code
    if not server.connection.carrier.close_code:
        assert last == ConnectionClose(code, ours.reason)
    else:
        assert reason.code == code
    return ours.reason


BAD_FRAMES = {
    "empty": b"\x00\x00\x00\x00",
    "over the limit": (65 * 1024).to_bytes(4, "big") + b"{",
    "4 GiB": b"\xff\xff\xff\xff",
    "not JSON": encode_frame(b"GET / HTTP/1.1"),
    "100,000 deep": encode_frame(b"[" * 60_000),
    "deep input": encode_frame(
        b'{"type":"call.requested","id":"x","payload":{"operationId":"/echo/unary","input":'
        + b"[" * 30_000
        + b"]" * 30_000
        + b"}}"
    ),
    "not UTF-8": encode_frame(
        b'{"type":"call.requested","id":"x","payload":{"operationId":"/a/b","input":"\xff"}}'
    ),
    "no id": encode_frame(b'{"type":"call.requested","payload":{"operationId":"/a/b"}}'),
    "duplicate id": encode_frame(
        b'{"type":"call.requested","id":"x","id":"y","payload":{"operationId":"/a/b"}}'
    ),
}


@pytest.mark.parametrize("fault", BAD_FRAMES)
async def test_a_bad_frame_costs_its_stream(fault: str) -> None:
    async with hostile("memory") as (peer, server):
        other = await peer.open()
        await other.request("o1", "echo/slow")
        await peer.request("x1", "echo/slow")
        await trio.testing.wait_all_tasks_blocked()
        await peer.stream.send_all(BAD_FRAMES[fault])
        with pytest.raises(StreamReset) as caught:
            await peer.receive()
        assert caught.value.code == CloseCode.PROTOCOL
        await trio.testing.wait_all_tasks_blocked()
        assert list(server.serving.calls) == ["o1"]
        assert server.close_reason is None
        await other.request("o2", "echo/unary")
        assert isinstance(await other.receive(), Responded)


@pytest.mark.parametrize("fault", BAD_FRAMES)
async def test_a_bad_frame_costs_the_connection_that_is_one_stream(fault: str) -> None:
    async with hostile("unix") as (peer, server):
        await peer.request("x1", "echo/slow")
        await peer.stream.send_all(BAD_FRAMES[fault])
        assert await _closed(peer, server, CloseCode.PROTOCOL)
        assert not server.serving.calls


async def test_a_stream_that_ends_amid_a_frame_is_reset() -> None:
    async with hostile("memory") as (peer, server):
        await peer.stream.send_all(b"\x00\x00\x00\x10{")
        await peer.stream.send_eof()
        with pytest.raises(StreamReset):
            await peer.receive()
        await trio.testing.wait_all_tasks_blocked()
        assert not server.lanes.streams


@both
async def test_bytes_of_a_frame_that_never_ends_are_counted(carrier: str) -> None:
    limits = Limits(frame_bytes_unproven=60_000, buffered_bytes_per_connection=100_000)
    async with hostile(carrier, limits=limits) as (peer, server):
        part = (50_000).to_bytes(4, "big") + b" " * 40_000
        await peer.stream.send_all(part)
        await trio.testing.wait_all_tasks_blocked()
        assert server.budget.used == len(part)
        if carrier == "memory":
            for _ in range(2):
                await (await peer.open()).stream.send_all(part)
            assert "bytes wait" in await _closed(peer, server, CloseCode.LIMIT)
            await trio.testing.wait_all_tasks_blocked()
            assert server.budget.used == 0


# --- ids


@both
@pytest.mark.parametrize("again", ["good", "faulty"])
async def test_an_id_used_again_in_flight_closes_the_connection(carrier: str, again: str) -> None:
    async with hostile(carrier) as (peer, server):
        await peer.request("x1", "echo/slow")
        await trio.testing.wait_all_tasks_blocked()
        await peer.request("x1", "echo/unary", '"window":0' if again == "faulty" else "")
        last = await _last_words(peer)
        assert not isinstance(last, Failed)  # it would settle the first call
        reason = server.close_reason
        assert reason is not None
        assert (reason.code, reason.reason) == (
            CloseCode.PROTOCOL,
            "a request id was used again while in flight",
        )
        await trio.testing.wait_all_tasks_blocked()
        assert not server.serving.calls


@both
async def test_an_id_can_be_used_again_after_its_answer(carrier: str) -> None:
    async with hostile(carrier) as (peer, _server):
        for _ in range(3):
            await peer.request("x1", "echo/unary")
            assert isinstance(await peer.receive(), Responded)


@both
async def test_the_acceptors_ids_are_refused_from_a_dialler(carrier: str) -> None:
    async with hostile(carrier) as (peer, _server):
        await peer.request("a1", "echo/unary")
        event = await peer.receive()
        assert isinstance(event, Failed)
        assert (event.id, event.code) == ("a1", "INVALID_INPUT")
        await peer.request("a1b", "echo/unary")
        assert isinstance(await peer.receive(), Responded)


async def test_our_next_id_steps_over_one_that_the_peer_uses() -> None:
    async with raw_peer("unix", Operations()) as (peer, us), trio.open_nursery() as nursery:
        await peer.request("x", "echo/unary")
        await peer.receive()
        us.serving.calls["a1"] = us.serving.calls["a2"] = None  # type: ignore[assignment]
        nursery.start_soon(us.call, "a/b")
        request = await peer.receive()
        assert isinstance(request, Requested)
        assert request.id == "a3"
        us.serving.calls.clear()
        nursery.cancel_scope.cancel()


# --- the wrong place


async def test_a_request_on_a_stream_that_we_opened_closes_the_connection() -> None:
    async with hostile("memory") as (peer, server), trio.open_nursery() as nursery:

        async def call() -> None:
            with pytest.raises(CallError, match="UNAVAILABLE"):
                await server.call("a/b")

        nursery.start_soon(call)
        ours = RawPeer(peer.connection, await peer.connection.accept_stream())
        await ours.receive()
        await ours.request("x1", "echo/unary")
        assert "opened" in await _closed(peer, server, CloseCode.PROTOCOL)


async def test_an_answer_on_another_stream_closes_the_connection() -> None:
    async with hostile("memory") as (peer, server), trio.open_nursery() as nursery:

        async def call() -> None:
            with pytest.raises(CallError, match="UNAVAILABLE"):
                await server.call("a/b")

        nursery.start_soon(call)
        ours = RawPeer(peer.connection, await peer.connection.accept_stream())
        request = await ours.receive()
        assert isinstance(request, Requested)
        await peer.send(Responded(request.id, msgspec.Raw(b"1")))
        assert "stream of its request" in await _closed(peer, server, CloseCode.PROTOCOL)


async def test_a_unidirectional_stream_closes_the_connection() -> None:
    async with hostile("memory") as (peer, server):
        stream = await peer.connection.open_stream(unidirectional=True)
        await stream.send_all(b"x")
        assert "unidirectional" in await _closed(peer, server, CloseCode.PROTOCOL)


@both
async def test_messages_about_nothing_are_ignored(carrier: str) -> None:
    async with hostile(carrier) as (peer, _server):
        for kind, payload in (
            ("call.responded", '{"output":1}'),
            ("call.responded", '{"output":9007199254740992}'),
            ("call.completed", "{}"),
            ("call.error", "{}"),
            ("call.error", '{"code":"X"}'),
            ("call.aborted", '{"reason":1}'),
            ("call.input", '{"item":1}'),
            ("call.input_end", "{}"),
            ("call.credit", '{"n":-1}'),
            ("call.later", "{}"),
        ):
            await peer.send(f'{{"type":"{kind}","id":"x","payload":{payload}}}')
        await peer.request("x1", "echo/unary")
        assert await peer.receive() == Responded("x1", msgspec.Raw(b"{}"))


# --- limits and authentication


def _request(call_id: str, size: int, token: str | None = None) -> bytes:
    text = msgspec.Raw(b'"' + b"x" * size + b'"')
    return encode_event(Requested(id=call_id, operation="echo/unary", input=text, auth_token=token))


@pytest.mark.parametrize("identity", ["peer:w1", "owner"])
async def test_a_proven_peer_may_send_large_frames(identity: str) -> None:
    async with hostile("unix", identity=Identity(identity)) as (peer, _server):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(peer.send, _request("x1", 1_000_000))
            assert isinstance(await peer.receive(), Responded)


@both
async def test_an_accepted_token_raises_the_frame_limit_at_once(carrier: str) -> None:
    async with hostile(carrier) as (peer, server):
        assert isinstance(server.dispatcher, Operations)
        server.dispatcher.tokens["alk_a_b"] = Identity("key:a")
        async with trio.open_nursery() as nursery:
            nursery.start_soon(peer.send, _request("x1", 10, "alk_a_b"), _request("x2", 200_000))
            first, second = await peer.receive(), await peer.receive()
        assert isinstance(first, Responded)
        assert isinstance(second, Responded)


@both
async def test_refused_tokens_are_told_counted_and_then_end_the_connection(carrier: str) -> None:
    async with hostile(carrier, limits=Limits(failed_authentications_per_connection=3)) as (
        peer,
        server,
    ):
        failures: list[Connection] = []
        server._on_failed_authentication = failures.append
        for n in range(3):
            await peer.send(_request(f"x{n}", 1, "alk_wrong_token"))
            event = await peer.receive()
            assert isinstance(event, Failed)
            assert (event.code, event.details) == ("FORBIDDEN", None)
        assert "authentications" in await _closed(peer, server, CloseCode.LIMIT)
        assert failures == [server.connection] * 3


@both
async def test_a_peer_that_does_not_read_its_answers_is_cut_off(carrier: str) -> None:
    limits = Limits(buffered_bytes_per_connection=500_000, frame_bytes=1_000_000)
    async with hostile(carrier, limits=limits, identity=Identity("peer:w1")) as (peer, server):

        async def flood() -> None:
            for n in itertools.count():
                await peer.send(_request(f"x{n}", 50_000))

        with trio.fail_after(30), pytest.raises(trio.BrokenResourceError):
            await flood()
        reason = server.close_reason
        assert reason is not None
        assert reason.code == CloseCode.LIMIT


@both
async def test_input_in_flight_is_bounded(carrier: str) -> None:
    limits = Limits(buffered_bytes_per_connection=150_000, frame_bytes=100_000)
    async with hostile(carrier, limits=limits, identity=Identity("peer:w1")) as (peer, server):
        for n in range(3):
            body = _request(f"x{n}", 60_000).replace(b"echo/unary", b"echo/slow")
            await peer.send(body)
        event = await peer.receive()
        assert isinstance(event, Failed)
        assert (event.id, event.code) == ("x2", "RESOURCE_EXHAUSTED")
        assert list(server.serving.calls) == ["x0", "x1"]


@both
async def test_tokens_are_in_no_log(carrier: str, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(0)
    async with hostile(carrier) as (peer, server):
        assert isinstance(server.dispatcher, Operations)
        server.dispatcher.tokens["alk_good_token"] = Identity("key:good")
        await peer.send(_request("x1", 1, "alk_wrong_token"))
        await peer.send(_request("x2", 1, "alk_good_token").replace(b"unary", b"slow"))
        await peer.receive()
        await trio.testing.wait_all_tasks_blocked()
        assert "token" not in repr(list(server.serving.calls.values()))
        await peer.stream.send_all(BAD_FRAMES["empty"])
        await _last_words(peer)
    for record in caplog.records:
        assert "_token" not in str(vars(record))


async def test_an_encoded_frame_of_every_event_is_within_the_smallest_limit() -> None:
    event = Failed("i" * 128, "CODE", "m" * 500, False)
    assert len(encode_frame(encode_event(event))) < 1024


async def test_a_peer_that_spoils_stream_after_stream_loses_the_connection() -> None:
    async with hostile("memory") as (peer, server):
        for _ in range(16):
            await (await peer.open()).stream.send_all(BAD_FRAMES["not JSON"])
        await trio.testing.wait_all_tasks_blocked()
        assert server.close_reason is None
        await (await peer.open()).stream.send_all(BAD_FRAMES["not JSON"])
        assert await _closed(peer, server, CloseCode.PROTOCOL)

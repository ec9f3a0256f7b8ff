"""Frames that break the wire: each ends what it must, says why, and nobody else notices."""

from __future__ import annotations

from typing import Any

import pytest
import trio

from alknet.call.codes import CallError
from alknet.client import open_session
from alknet.core.contracts import CloseCode
from alknet.testing.nodes import open_node
from tests.scenarios.rig import (
    TRANSPORTS,
    RawCaller,
    bystander,
    eventually,
    make_friend,
    new_token,
    raw_caller,
)

KIB, MIB = 1024, 1024 * 1024

pytestmark = pytest.mark.parametrize("transport", TRANSPORTS)


def padded_ping(size: int) -> bytes:
    """A `node/ping` whose frame has *size* bytes."""
    start = b'{"type":"call.requested","id":"x1","payload":{"operationId":"/node/ping","pad":"'
    return start + b"p" * (size - len(start) - 3) + b'"}}'


async def assert_fault(caller: RawCaller, *words: str) -> None:
    """The frame ended its stream (QUIC) or its connection (TCP) with `protocol`."""
    code, reason = await caller.fault()
    assert code == CloseCode.PROTOCOL
    if not caller.connection.carrier.many_streams:
        for word in words:
            assert word in reason
    elif caller.connection.close_reason is None:
        # Only that stream was lost: the connection goes on.
        another = RawCaller(caller.connection, await caller.connection.open_stream())
        await another.request("node/ping", call_id="y1")
        assert (await another.answer("y1"))["type"] == "call.responded"


async def test_a_stranger_may_send_64_kib_and_not_a_byte_more(transport: str) -> None:
    async with open_node() as node, bystander(node, transport):
        async with raw_caller(node, transport) as caller:
            await caller.send(padded_ping(64 * KIB))
            assert (await caller.answer())["type"] == "call.responded"
            await caller.send(padded_ping(64 * KIB + 1))
            await assert_fault(caller, "65537", "65536")


async def test_a_length_is_refused_before_its_bytes_come(transport: str) -> None:
    async with open_node() as node, bystander(node, transport):
        async with raw_caller(node, transport) as caller:
            await caller.stream.send_all(b"\xff\xff\xff\xff")
            await caller.stream.send_all(b"{")
            await assert_fault(caller, "4294967295")


@pytest.mark.slow
async def test_a_friend_may_send_16_mib_and_not_a_byte_more(transport: str) -> None:
    friend = make_friend("friend", "echo")
    async with open_node(peers=[friend.peer]) as node, bystander(node, transport):
        async with raw_caller(node, transport, key=friend.key) as caller:
            await caller.send(padded_ping(16 * MIB))
            assert (await caller.answer())["type"] == "call.responded"
            await caller.stream.send_all((16 * MIB + 1).to_bytes(4, "big") + b"{")
            await assert_fault(caller, str(16 * MIB + 1))


async def test_a_good_token_proves_as_much_as_a_key(transport: str) -> None:
    async with open_node() as node, raw_caller(node, transport) as caller:
        await caller.request("node/ping", auth_token=await new_token(node))
        await caller.answer()
        await caller.send(padded_ping(64 * KIB + 1))
        assert (await caller.answer())["type"] == "call.responded"


async def test_our_client_says_that_an_input_is_too_long(transport: str) -> None:
    async with (
        open_node() as node,
        bystander(node, transport),
        open_session(node.ticket, transports=[transport]) as session,
    ):
        with pytest.raises(CallError) as caught:
            await session.call("node/ping", {"pad": "p" * (70 * KIB)}, timeout_s=60)
        assert caught.value.code in {"INTERNAL", "UNAVAILABLE"}
        assert "too long" in str(caught.value) or "over the limit" in str(caught.value)


DEEP = 100_000


@pytest.mark.parametrize(
    ("body", "word"),
    [
        (b"{", "envelope"),
        (b"not json", "envelope"),
        (b"[1,2]", "envelope"),
        (b'{"type":"call.requested","id":"x1"}', "payload"),
        (b'{"type":"call.requested","id":"x1","payload":[]}', "payload"),
        (b'{"type":"call.requested","id":"","payload":{}}', "id"),
        (b'{"type":"call.requested","id":"\xff","payload":{}}', "UTF-8"),
        (b'{"type":"t","type":"t","id":"x1","payload":{}}', "duplicate"),
        (b"[" * 60_000, "deep"),
    ],
    ids=["cut", "text", "list", "no payload", "payload", "no id", "latin", "twice", "deep"],
)
async def test_malformed_json_ends_its_stream(transport: str, body: bytes, word: str) -> None:
    async with open_node() as node, bystander(node, transport):
        async with raw_caller(node, transport) as caller:
            await caller.send(body)
            await assert_fault(caller, word)


@pytest.mark.parametrize("opening", [b"[", b'{"a":'], ids=["arrays", "objects"])
async def test_json_100_000_deep_ends_its_stream(transport: str, opening: bytes) -> None:
    friend = make_friend("friend", "echo")
    closing = b"]" if opening == b"[" else b"}"
    value = opening * DEEP + b"1" + closing * DEEP
    body = (
        b'{"type":"call.requested","id":"x1","payload":{"operationId":"/echo/unary","input":'
        b'{"message":' + value + b"}}}"
    )
    async with open_node(peers=[friend.peer]) as node, bystander(node, transport):
        async with raw_caller(node, transport, key=friend.key) as caller:
            await caller.send(body)
            await assert_fault(caller, "deep")


async def test_an_id_in_flight_used_again_closes_the_connection(transport: str) -> None:
    friend = make_friend("friend", "echo")
    async with open_node(peers=[friend.peer]) as node, bystander(node, transport):
        async with raw_caller(node, transport, key=friend.key) as caller:
            for _ in range(2):
                await caller.request("echo/unary", {"message": 1, "delay_ms": 60_000})
            code, reason = await caller.fault()
            assert code == CloseCode.PROTOCOL
            assert "in flight" in reason
            with trio.fail_after(15):
                await caller.connection.wait_closed()
        await eventually(lambda: len(node.endpoint.connections()) == 1)


async def test_an_id_may_be_used_again_when_its_call_is_over(transport: str) -> None:
    async with open_node() as node, raw_caller(node, transport) as caller:
        for _ in range(3):
            await caller.request("node/ping")
            assert (await caller.answer())["type"] == "call.responded"


@pytest.mark.parametrize("window", [-1, 0, 2**31, 2**63], ids=str)
async def test_a_bad_window_ends_its_call_only(transport: str, window: int) -> None:
    friend = make_friend("friend", "echo")
    async with (
        open_node(peers=[friend.peer]) as node,
        bystander(node, transport),
        raw_caller(node, transport, key=friend.key) as caller,
    ):
        await caller.request("echo/stream", {"count": 3}, window=window)
        error = await caller.answer()
        assert (error["type"], error["payload"]["code"]) == ("call.error", "INVALID_INPUT")
        await assert_goes_on(caller)


@pytest.mark.parametrize("credit", [-1, 0, 2**63, "many", None, 1.5], ids=str)
async def test_a_bad_credit_ends_its_call_only(transport: str, credit: Any) -> None:
    friend = make_friend("friend", "echo")
    async with (
        open_node(peers=[friend.peer]) as node,
        bystander(node, transport),
        raw_caller(node, transport, key=friend.key) as caller,
    ):
        await caller.request("echo/stream", {"count": 1000}, window=1)
        assert (await caller.answer())["payload"] == {"output": {"n": 0}}
        await caller.say("call.credit", n=credit)
        error = await caller.answer()
        assert (error["type"], error["payload"]["code"]) == ("call.error", "INVALID_INPUT")
        await caller.say("call.credit", n=5)  # of a call that is over: no news
        await assert_goes_on(caller)


async def test_credit_that_adds_up_to_too_much_ends_its_call_only(transport: str) -> None:
    friend = make_friend("friend", "echo")
    async with (
        open_node(peers=[friend.peer]) as node,
        bystander(node, transport),
        raw_caller(node, transport, key=friend.key) as caller,
    ):
        await caller.request("echo/stream", {"count": 9, "interval_ms": 60_000}, window=2**31 - 1)
        assert (await caller.answer())["payload"] == {"output": {"n": 0}}
        await caller.say("call.credit", n=2**31 - 1)
        error = await caller.answer()
        assert (error["type"], error["payload"]["code"]) == ("call.error", "INVALID_INPUT")
        await assert_goes_on(caller)


async def assert_goes_on(caller: RawCaller) -> None:
    await caller.request("node/ping", call_id="after")
    assert (await caller.answer("after"))["type"] == "call.responded"
    assert caller.connection.close_reason is None

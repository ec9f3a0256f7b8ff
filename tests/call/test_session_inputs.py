"""Uploads and bidirectional calls: order, ends, back-pressure, hostile callers, cancellation."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator

import msgspec
import pytest
import trio

from alknet.call.codes import CallError
from alknet.call.proto import (
    MAX_CREDIT,
    Aborted,
    Completed,
    Credit,
    Failed,
    InputEnd,
    InputItem,
    Requested,
    Responded,
)
from alknet.call.session import CallSession, Upload
from alknet.core.limits import Limits
from alknet.errors import LocalError
from alknet.testing.contract import cancel_at_every_checkpoint
from tests.call.sessions import CARRIERS, Operations, RawPeer, is_idle, raw_peer, session_pair

both = pytest.mark.parametrize("carrier", CARRIERS)
Inputs = AsyncIterator[msgspec.Raw]


async def _total(session: CallSession, count: int) -> int:
    async with session.upload("echo/total") as upload:
        for n in range(count):
            await upload.send(n)
        return int(bytes(await upload.finish()))


async def _send_for_ever(upload: Upload, item: object = 1, pause_s: float = 0) -> None:
    while True:
        await upload.send(item)
        await trio.sleep(pause_s)


async def _send_until_stuck(peer: RawPeer, *messages: InputItem) -> None:
    """Send until the peer reads no more."""
    async with trio.open_nursery() as nursery:

        async def send() -> None:
            while True:
                await peer.send(*messages)

        nursery.start_soon(send)
        await trio.testing.wait_all_tasks_blocked()
        nursery.cancel_scope.cancel()


@both
@pytest.mark.parametrize("count", [0, 1, 1000])
async def test_an_upload_gets_one_answer_for_all_its_items(carrier: str, count: int) -> None:
    async with session_pair(carrier, Operations()) as (client, server):
        assert await _total(client, count) == sum(range(count))
        assert await is_idle(client, server)
        if carrier == "memory":
            assert not client.lanes.streams
            assert not server.lanes.streams


@both
async def test_the_acceptor_may_upload_too(carrier: str) -> None:
    async with session_pair(carrier, Operations(), back=Operations()) as (client, server):
        assert await _total(server, 10) == 45
        assert await is_idle(client, server)


@both
async def test_items_go_both_ways_as_they_come(carrier: str) -> None:
    async with session_pair(carrier, Operations()) as (client, server):
        async with client.bidi("echo/each") as talk:
            for n in range(200):
                await talk.send(n)
                assert int(bytes(await anext(talk))) == n
            await talk.finish()
            await talk.finish()
            assert [item async for item in talk] == []
        assert await is_idle(client, server)


@both
async def test_a_slow_operation_holds_the_uploader_back(carrier: str) -> None:
    go = trio.Event()
    taken = 0

    async def slow(_given: msgspec.Raw, items: Inputs) -> object:
        nonlocal taken
        await go.wait()
        async for _ in items:
            taken += 1
        return taken

    operations = Operations()
    operations.uploads["test/slow"] = slow
    sent = 0
    limits = Limits(stream_receive_window_bytes=1024**2)
    async with (
        session_pair(carrier, operations, limits=limits) as (client, server),
        trio.open_nursery() as nursery,
    ):

        async def upload() -> None:
            nonlocal sent
            async with client.upload("test/slow") as items:
                for _ in range(500):
                    await items.send("x" * 10_000)
                    sent += 1
                assert bytes(await items.finish()) == b"500"

        nursery.start_soon(upload)
        await trio.testing.wait_all_tasks_blocked()
        assert sent < 200
        assert server.budget.used < 200_000
        assert await client.call_as(int, "echo/unary", 1) == 1  # calls go on beside it
        go.set()
    assert (sent, taken) == (500, 500)


@both
async def test_large_items_pass_through_a_small_buffer(carrier: str) -> None:
    async def count(_given: msgspec.Raw, items: Inputs) -> object:
        total = 0
        async for item in items:
            await trio.testing.wait_all_tasks_blocked()
            total += len(item)
        return total

    operations = Operations()
    operations.uploads["test/count"] = count
    limits = Limits(buffered_bytes_per_connection=1024**2)
    async with session_pair(carrier, operations, limits=limits) as (client, server):
        async with client.upload("test/count") as upload:
            for _ in range(40):
                await upload.send("x" * 100_000)
            assert int(bytes(await upload.finish())) == 40 * 100_002
        assert await is_idle(client, server)


@both
async def test_an_operation_may_answer_before_the_input_ends(carrier: str) -> None:
    async def first(_given: msgspec.Raw, items: Inputs) -> object:
        return await anext(items)

    operations = Operations()
    operations.uploads["test/first"] = first
    async with session_pair(carrier, operations) as (client, server):
        async with client.upload("test/first") as upload:
            await upload.send(7)
            await trio.testing.wait_all_tasks_blocked()
            with pytest.raises(trio.BrokenResourceError, match="has answered"):
                await upload.send(8)
            assert bytes(await upload.finish()) == b"7"
        assert await is_idle(client, server)


@both
async def test_an_uploader_learns_at_its_next_item_that_the_call_failed(carrier: str) -> None:
    async def fails(_given: msgspec.Raw, items: Inputs) -> object:
        await anext(items)
        raise CallError("FISH", "gone")

    operations = Operations()
    operations.uploads["test/fails"] = fails
    async with session_pair(carrier, operations) as (client, server):
        async with client.upload("test/fails") as upload:
            with pytest.raises(CallError, match="FISH"):
                await _send_for_ever(upload)
            with pytest.raises(CallError, match="FISH"):
                await upload.finish()
        assert await is_idle(client, server)


@both
async def test_leaving_an_upload_early_aborts_it(carrier: str) -> None:
    async def never(_given: msgspec.Raw, items: Inputs) -> object:
        async for _ in items:
            await trio.sleep_forever()
        return None

    operations = Operations()
    operations.uploads["test/never"] = never
    async with session_pair(carrier, operations) as (client, server):
        async with client.upload("test/never") as upload:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(_send_for_ever, upload, "x" * 10_000)
                await trio.testing.wait_all_tasks_blocked()  # it waits for room that never comes
                nursery.cancel_scope.cancel()
        await trio.testing.wait_all_tasks_blocked()
        assert (operations.running, operations.started) == (0, 1)
        assert await is_idle(client, server)
        assert await client.call_as(int, "echo/unary", 1) == 1


@both
async def test_an_upload_ends_at_its_deadline_while_its_caller_sends(
    carrier: str, autojump_clock: trio.testing.MockClock
) -> None:
    async with session_pair(carrier, Operations()) as (client, server):
        async with client.upload("echo/total", timeout_s=5) as upload:
            with pytest.raises(CallError, match="TIMEOUT"):
                await _send_for_ever(upload, pause_s=1)
        assert trio.current_time() <= 7
        assert await is_idle(client, server)


@both
async def test_both_ends_see_that_a_call_is_of_another_kind(carrier: str) -> None:
    async with session_pair(carrier, Operations()) as (client, server):
        for wrong in ("echo/total", "echo/each"):
            with pytest.raises(CallError, match="INVALID_OPERATION_TYPE"):
                await client.call(wrong)
        with pytest.raises(CallError, match="INVALID_OPERATION_TYPE"):
            async with client.subscribe("echo/each") as items:
                await anext(items)
        with pytest.raises(CallError, match="INVALID_OPERATION_TYPE"):
            async with client.upload("echo/unary") as upload:
                await upload.finish()
        with pytest.raises(CallError, match="INVALID_OPERATION_TYPE"):
            async with client.bidi("echo/stream", {"count": 1}) as talk:
                await anext(talk)
        with pytest.raises(CallError, match="INVALID_OPERATION_TYPE"):
            async with client.bidi("echo/stream", {"count": 0}) as talk:
                await anext(talk)
        with pytest.raises(CallError, match="INVALID_OPERATION_TYPE"):
            async with client.bidi("echo/total") as talk:
                await anext(talk)
        assert await is_idle(client, server)


@both
async def test_items_that_cannot_be_sent_are_refused_here(carrier: str) -> None:
    async with session_pair(carrier, Operations(), limits=Limits(frame_bytes=2048)) as (client, _):
        async with client.upload("echo/total") as upload:
            with pytest.raises(CallError, match="INVALID_INPUT"):
                await upload.send("x" * 3000)
            await upload.send(3)
            assert bytes(await upload.finish()) == b"3"
            with pytest.raises(LocalError, match="after the input was finished"):
                await upload.send(4)


@both
async def test_uploads_end_with_the_connection(carrier: str) -> None:
    operations = Operations()
    async with session_pair(carrier, operations) as (client, server):
        async with client.upload("echo/total") as upload:
            await upload.send(1)
            await trio.testing.wait_all_tasks_blocked()
            server.end(0)
            with pytest.raises(CallError, match="UNAVAILABLE"):
                await upload.finish()
    assert operations.running == 0


@both
async def test_an_upload_cancelled_anywhere_leaves_nothing(carrier: str) -> None:
    operations = Operations()
    async with session_pair(carrier, operations) as (client, server):
        await client.call("echo/unary")

        async def upload() -> None:
            assert await _total(client, 3) == 3

        async def after() -> None:
            assert await is_idle(client, server)
            assert operations.running == 0
            assert await client.call_as(int, "echo/unary", 1) == 1

        assert await cancel_at_every_checkpoint(upload, after) >= 4


@both
async def test_a_bidirectional_call_cancelled_anywhere_leaves_nothing(carrier: str) -> None:
    operations = Operations()
    async with session_pair(carrier, operations) as (client, server):
        await client.call("echo/unary")

        async def talk() -> None:
            async with client.bidi("echo/each") as both_ways:
                for n in range(3):
                    await both_ways.send(n)
                    await anext(both_ways)
                await both_ways.finish()
                assert [item async for item in both_ways] == []

        async def after() -> None:
            assert await is_idle(client, server)
            assert operations.running == 0

        assert await cancel_at_every_checkpoint(talk, after) >= 6


# --- the wire


def _item(n: int, call_id: str = "u1") -> InputItem:
    return InputItem(call_id, msgspec.Raw(msgspec.json.encode(n)))


async def _failure(peer: RawPeer) -> str:
    while True:
        event = await peer.receive()
        if isinstance(event, Failed):
            assert event.id == "u1"
            return event.code
        assert isinstance(event, Credit)


@both
async def test_the_callee_says_first_that_it_wants_input(carrier: str) -> None:
    async with raw_peer(carrier, Operations()) as (peer, _server):
        await peer.request("u1", "echo/total")
        assert await peer.receive() == Credit("u1", 1 if carrier == "unix" else MAX_CREDIT)
        await peer.send(_item(2), InputEnd("u1"))
        assert await peer.receive() == Responded("u1", msgspec.Raw(b"2"))


async def test_credit_grows_with_what_is_taken_up_to_the_window() -> None:
    async with raw_peer("unix", Operations(), limits=Limits(subscription_window=8)) as (peer, _):
        await peer.request("u1", "echo/total")
        grants = []
        for _ in range(6):
            event = await peer.receive()
            assert isinstance(event, Credit)
            grants.append(event.n)
            await peer.send(*[_item(1)] * event.n)
        assert grants[0] == 1
        assert max(grants) <= 8
        assert sum(grants) > 12


@both
async def test_input_after_its_end_ends_that_call_alone(carrier: str) -> None:
    operations = Operations()

    async def waits(_given: msgspec.Raw, items: Inputs) -> object:
        await trio.sleep_forever()

    operations.uploads["test/waits"] = waits
    for more in (InputEnd("u1"), _item(1)):
        async with raw_peer(carrier, operations) as (peer, server):
            await peer.request("u1", "test/waits")
            await peer.send(InputEnd("u1"), more)
            assert await _failure(peer) == "INVALID_INPUT"
            assert server.close_reason is None
            await peer.request("c1", "echo/unary", '"input":5')
            assert await peer.receive() == Responded("c1", msgspec.Raw(b"5"))


@both
async def test_input_for_no_call_is_ignored_and_for_another_kind_ends_it(carrier: str) -> None:
    async with raw_peer(carrier, Operations()) as (peer, server):
        await peer.send(*[_item(n) for n in range(1000)], InputEnd("u1"))
        await peer.request("u1", "echo/slow")
        await peer.send(_item(1))
        assert await _failure(peer) == "INVALID_OPERATION_TYPE"
        assert server.close_reason is None
        assert await is_idle(server)


async def test_more_items_than_were_asked_for_end_the_call() -> None:
    operations = Operations()

    async def waits(_given: msgspec.Raw, items: Inputs) -> object:
        await trio.sleep_forever()

    operations.uploads["test/waits"] = waits
    async with raw_peer("unix", operations) as (peer, server):
        await peer.request("u1", "test/waits")
        await peer.send(*[_item(n) for n in range(5000)])
        assert await _failure(peer) == "INVALID_INPUT"
        assert await is_idle(server)
        assert server.close_reason is None


@pytest.mark.parametrize("size", [1, 30_000])
async def test_a_flood_of_input_stops_at_the_stream(size: int) -> None:
    operations = Operations()

    async def waits(_given: msgspec.Raw, items: Inputs) -> object:
        await trio.sleep_forever()

    operations.uploads["test/waits"] = waits
    item = InputItem("u1", msgspec.Raw(msgspec.json.encode("x" * size)))
    async with raw_peer("memory", operations) as (peer, server):
        await peer.request("u1", "test/waits")
        await _send_until_stuck(peer, *[item] * 1000)
        assert server.budget.used < 500_000
        assert server.close_reason is None


@both
async def test_a_bad_input_message_ends_that_call_alone(carrier: str) -> None:
    for payload in ("{}", '{"item":90071992547409930}'):
        async with raw_peer(carrier, Operations()) as (peer, server):
            await peer.request("u1", "echo/total")
            await peer.send(f'{{"type":"call.input","id":"u1","payload":{payload}}}')
            assert await _failure(peer) == "INVALID_INPUT"
            assert server.close_reason is None


async def test_a_stream_that_ends_amid_the_input_ends_the_call() -> None:
    operations = Operations()
    async with raw_peer("memory", operations) as (peer, _server):
        await peer.request("u1", "echo/total")
        await peer.send(_item(1))
        await peer.stream.send_eof()
        assert await _failure(peer) == "INVALID_INPUT"
        assert await peer.receive() is None
    assert operations.running == 0


async def test_input_on_another_stream_than_its_request_closes_the_connection() -> None:
    async with raw_peer("memory", Operations()) as (peer, server):
        await peer.request("u1", "echo/total")
        assert isinstance(await peer.receive(), Credit)
        await (await peer.open()).send(_item(1))
        await trio.testing.wait_all_tasks_blocked()
        assert server.close_reason is not None
        assert server.close_reason.code == 2


async def test_an_abort_on_another_stream_ends_an_upload_that_is_stuck() -> None:
    operations = Operations()

    async def waits(_given: msgspec.Raw, items: Inputs) -> object:
        await trio.sleep_forever()

    operations.uploads["test/waits"] = waits
    async with raw_peer("memory", operations) as (peer, _server):
        await peer.request("u1", "test/waits")
        await _send_until_stuck(peer, *[_item(1)] * 1000)
        await (await peer.open()).send(Aborted("u1"))
        assert await _failure(peer) == "ABORTED"


async def test_a_callee_that_grants_too_much_credit_ends_the_call() -> None:
    async with raw_peer("unix", Operations()) as (peer, us), trio.open_nursery() as nursery:

        async def upload() -> None:
            async with us.upload("a/b") as items:
                with pytest.raises(CallError, match="INVALID_INPUT"):
                    await items.finish()

        nursery.start_soon(upload)
        request = await peer.receive()
        assert isinstance(request, Requested)
        assert await peer.receive() == InputEnd(request.id)
        await peer.send(Credit(request.id, MAX_CREDIT), Credit(request.id, 1))
        assert await peer.receive() == Aborted(request.id)


async def test_items_wait_for_credit_where_there_is_one_stream() -> None:
    async with raw_peer("unix", Operations()) as (peer, us), trio.open_nursery() as nursery:

        async def talk() -> None:
            async with us.bidi("a/b") as items:
                for n in range(3):
                    await items.send(n)
                await items.finish()
                assert [item async for item in items] == []

        nursery.start_soon(talk)
        request = await peer.receive()
        assert isinstance(request, Requested)
        assert request.window == 64
        await trio.testing.wait_all_tasks_blocked()
        await peer.send(Credit(request.id, 2))
        assert await peer.receive() == _item(0, request.id)
        assert await peer.receive() == _item(1, request.id)
        await trio.testing.wait_all_tasks_blocked()
        await peer.send(Credit(request.id, 1))
        assert await peer.receive() == _item(2, request.id)
        assert await peer.receive() == InputEnd(request.id)
        await peer.send(Completed(request.id))


@both
async def test_an_item_can_be_answered_while_more_are_on_their_way(carrier: str) -> None:
    async def pairs(_given: msgspec.Raw, items: Inputs) -> AsyncGenerator[object]:
        async for item in items:
            yield [item, await anext(items)]

    operations = Operations()
    operations.bidis["test/pairs"] = pairs
    got: list[list[int]] = []
    async with (
        session_pair(carrier, operations) as (client, _server),
        client.bidi("test/pairs") as talk,
        trio.open_nursery() as nursery,
    ):

        async def send() -> None:
            for n in range(100):
                await talk.send(n)
            await talk.finish()

        nursery.start_soon(send)
        got.extend([msgspec.json.decode(item) async for item in talk])
    assert got == [[n, n + 1] for n in range(0, 100, 2)]

"""Deadlines, aborts, resets, disconnects, drains: every way in which calls end early."""

from __future__ import annotations

import msgspec
import pytest
import trio

from alknet.call.codes import CallError
from alknet.call.proto import Aborted, ConnectionClose, Failed, Requested, Responded
from alknet.call.session import CallSession
from alknet.core.contracts import CloseCode
from alknet.core.limits import Limits
from alknet.testing.memory import MemoryConnection
from tests.call.sessions import CARRIERS, Operations, is_idle, raw_peer, session_pair

both = pytest.mark.parametrize("carrier", CARRIERS)


# --- deadlines


@both
async def test_the_callee_enforces_the_callers_deadline(
    carrier: str, autojump_clock: trio.testing.MockClock
) -> None:
    operations = Operations()
    async with session_pair(carrier, operations) as (client, server):
        with pytest.raises(CallError, match="took longer") as caught:
            await client.call("echo/slow", timeout_s=2)
        assert 2 <= trio.current_time() < 2.5
        assert (caught.value.code, caught.value.retryable) == ("TIMEOUT", True)
        assert (operations.running, operations.cancelled) == (0, 1)
        assert await is_idle(client, server)


@both
async def test_the_operations_own_deadline_counts_if_it_is_smaller(
    carrier: str, autojump_clock: trio.testing.MockClock
) -> None:
    operations = Operations()
    operations.timeouts["echo/slow"] = 3.0
    async with session_pair(carrier, operations) as (client, _server):
        for timeout_s in (None, 100.0):
            begun = trio.current_time()
            with pytest.raises(CallError, match="TIMEOUT"):
                await client.call("echo/slow", timeout_s=timeout_s)
            assert 3 <= trio.current_time() - begun < 3.5


@both
async def test_the_caller_gives_up_a_second_later_if_no_answer_comes(
    carrier: str, autojump_clock: trio.testing.MockClock
) -> None:
    async with raw_peer(carrier, Operations()) as (peer, us):
        async with trio.open_nursery() as nursery:

            async def call() -> None:
                with pytest.raises(CallError, match="no answer within"):
                    await us.call("a/b", timeout_s=2)

            nursery.start_soon(call)
            if carrier == "memory":
                peer.stream = await peer.connection.accept_stream()
            request = await peer.receive()
            assert isinstance(request, Requested)
            assert await peer.receive() == Aborted(request.id)
            assert 3 <= trio.current_time() < 3.5
        assert await is_idle(us)


@both
async def test_the_deadline_counts_from_arrival(
    carrier: str, autojump_clock: trio.testing.MockClock
) -> None:
    async with raw_peer(carrier, Operations()) as (peer, _us):
        await peer.request("c1", "echo/slow", '"timeout_ms":1500')
        event = await peer.receive()
        assert isinstance(event, Failed)
        assert event.code == "TIMEOUT"
        assert 1.5 <= trio.current_time() < 1.6


# --- aborts


@both
async def test_an_abort_cancels_and_is_answered_once(carrier: str) -> None:
    operations = Operations()
    async with raw_peer(carrier, operations) as (peer, server):
        await peer.request("c1", "echo/slow")
        await trio.testing.wait_all_tasks_blocked()
        assert operations.running == 1
        await peer.send(Aborted("c1"), Aborted("c1"), Aborted("unknown"))
        event = await peer.receive()
        assert isinstance(event, Failed)
        assert (event.id, event.code) == ("c1", "ABORTED")
        assert (operations.running, operations.cancelled) == (0, 1)
        await peer.send(Aborted("c1"))
        await peer.request("c2", "echo/unary")
        event = await peer.receive()
        assert event == Responded("c2", msgspec.Raw(b"{}"))  # and nothing more about c1
        assert await is_idle(server)


async def test_an_abort_may_come_on_any_stream() -> None:
    async with raw_peer("memory", Operations()) as (peer, _server):
        await peer.request("c1", "echo/slow")
        await trio.testing.wait_all_tasks_blocked()
        other = await peer.open()
        await other.send(Aborted("c1"))
        event = await peer.receive()
        assert isinstance(event, Failed)
        assert event.code == "ABORTED"


@both
async def test_an_abort_right_behind_its_request_leaves_one_answer(carrier: str) -> None:
    async with raw_peer(carrier, Operations()) as (peer, server):
        await peer.send(Requested(id="c1", operation="echo/slow"), Aborted("c1"))
        event = await peer.receive()
        assert isinstance(event, Failed)
        assert event.code == "ABORTED"
        assert await is_idle(server)


@both
async def test_cancelling_a_call_cancels_its_handler(carrier: str) -> None:
    operations = Operations()
    async with session_pair(carrier, operations) as (client, server):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(client.call, "echo/slow")
            await trio.testing.wait_all_tasks_blocked()
            assert operations.running == 1
            nursery.cancel_scope.cancel()
        await trio.testing.wait_all_tasks_blocked()
        assert (operations.running, operations.cancelled) == (0, 1)
        assert await is_idle(client, server)


@both
@pytest.mark.parametrize(
    ("reason", "code"), [("revoked", "FORBIDDEN"), ("shutdown", "UNAVAILABLE"), ("odd", "ABORTED")]
)
async def test_the_callee_can_end_chosen_calls(carrier: str, reason: str, code: str) -> None:
    operations = Operations()
    async with session_pair(carrier, operations) as (client, server):
        async with trio.open_nursery() as nursery:

            async def cut_off() -> None:
                with pytest.raises(CallError) as caught:
                    await client.call("echo/slow", idempotency_key="cut")
                assert caught.value.code == code

            nursery.start_soon(cut_off)
            await trio.testing.wait_all_tasks_blocked()
            assert server.abort_calls(lambda call: call.operation == "no/such", reason) == 0
            assert server.abort_calls(lambda call: call.operation == "echo/slow", reason) == 1
        assert operations.cancelled == 1
        assert await is_idle(client, server)


# --- streams that end


async def test_a_reset_aborts_the_calls_of_its_stream_alone() -> None:
    operations = Operations()
    async with raw_peer("memory", operations) as (peer, server):
        other = await peer.open()
        await peer.request("c1", "echo/slow")
        await other.request("c2", "echo/slow")
        await trio.testing.wait_all_tasks_blocked()
        other.stream.reset(0)
        event = await other.receive()  # our side of that stream still works
        assert isinstance(event, Failed)
        assert (event.id, event.code) == ("c2", "ABORTED")
        assert await other.receive() is None
        assert list(server.serving.calls) == ["c1"]


async def test_stop_sending_aborts_the_calls_of_its_stream() -> None:
    operations = Operations()
    async with raw_peer("memory", operations) as (peer, server):
        await peer.request("s1", "echo/endless")
        await trio.testing.wait_all_tasks_blocked()
        peer.stream.stop_sending(0)
        await trio.testing.wait_all_tasks_blocked()
        assert operations.running == 0
        assert await is_idle(server)
        assert not server.lanes.streams


async def test_the_callee_finishes_after_the_requester_once_all_is_answered() -> None:
    async with raw_peer("memory", Operations()) as (peer, server):
        await peer.request("c1", "echo/unary")
        await peer.request("c2", "echo/slow", '"timeout_ms":20')
        await peer.stream.send_eof()
        assert isinstance(await peer.receive(), Responded)
        assert len(server.lanes.streams) == 1
        assert isinstance(await peer.receive(), Failed)
        assert await peer.receive() is None
        await trio.testing.wait_all_tasks_blocked()
        assert not server.lanes.streams


async def test_a_callee_that_finishes_without_an_answer_is_unavailable() -> None:
    async with raw_peer("memory", Operations()) as (peer, us), trio.open_nursery() as nursery:

        async def call() -> None:
            with pytest.raises(CallError, match="UNAVAILABLE"):
                await us.call("a/b")

        for end in ("eof", "reset", "malformed"):
            nursery.start_soon(call) if end != "malformed" else None
            if end == "malformed":
                break
            stream = await peer.connection.accept_stream()
            await stream.receive_some()
            if end == "eof":
                await stream.send_eof()
            else:
                stream.reset(1)
            await trio.testing.wait_all_tasks_blocked()
            assert await is_idle(us)
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize("lost", ["stream", "connection"])
async def test_each_of_the_calls_that_end_together_has_an_error_of_its_own(lost: str) -> None:
    errors: list[CallError] = []

    async def call(us: CallSession) -> None:
        with pytest.raises(CallError) as caught:
            await us.call("a/b")
        caught.value.by = (*(caught.value.by or ()), f"call {len(errors)}")  # as a relay would
        errors.append(caught.value)

    async with raw_peer("memory", Operations()) as (peer, us), trio.open_nursery() as nursery:
        for _ in range(3):
            nursery.start_soon(call, us)
        stream = await peer.connection.accept_stream()
        await stream.receive_some()
        await trio.testing.wait_all_tasks_blocked()
        if lost == "stream":
            stream.reset(1)
        else:
            await peer.connection.aclose()
    assert [error.by for error in errors] == [("call 0",), ("call 1",), ("call 2",)]


async def test_a_bad_answer_ends_the_calls_of_its_stream_and_the_next_takes_another() -> None:
    async with raw_peer("memory", Operations()) as (peer, us), trio.open_nursery() as nursery:
        answers: list[object] = []

        async def call() -> None:
            try:
                answers.append(await us.call("a/b"))
            except CallError as exc:
                answers.append(exc.code)

        nursery.start_soon(call)
        peer.stream = await peer.connection.accept_stream()
        await peer.receive()
        await peer.send(b"nonsense")
        await trio.testing.wait_all_tasks_blocked()
        assert answers == ["INTERNAL"]
        nursery.start_soon(call)
        again = type(peer)(peer.connection, await peer.connection.accept_stream())
        request = await again.receive()
        assert isinstance(request, Requested)
        await again.send(Responded(request.id, msgspec.Raw(b"1")))
        await trio.testing.wait_all_tasks_blocked()
        assert answers == ["INTERNAL", msgspec.Raw(b"1")]
        nursery.cancel_scope.cancel()


# --- connections that end


@both
async def test_a_disconnect_ends_the_calls_of_both_sides(carrier: str) -> None:
    there, here = Operations(), Operations()
    failed: list[str] = []

    async def call(session: CallSession) -> None:
        with pytest.raises(CallError) as caught:
            await session.call("echo/slow")
        failed.append(caught.value.code)

    async with session_pair(carrier, there, back=here) as (client, server):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(call, client)
            nursery.start_soon(call, server)
            await trio.testing.wait_all_tasks_blocked()
            if isinstance(client.connection, MemoryConnection):
                client.connection.lose()
            else:
                client.connection.close()
        assert failed == ["UNAVAILABLE", "UNAVAILABLE"]
        await trio.testing.wait_all_tasks_blocked()
        assert (there.running, here.running) == (0, 0)
        assert await is_idle(client, server)
        for session in (client, server):
            with pytest.raises(CallError, match="UNAVAILABLE"):
                await session.call("echo/unary")


@both
async def test_cancelling_a_session_ends_its_calls(carrier: str) -> None:
    operations = Operations()
    async with session_pair(carrier, operations) as (client, server):
        async with trio.open_nursery() as nursery:

            async def call() -> None:
                with pytest.raises(CallError, match="UNAVAILABLE"):
                    await client.call("echo/slow")

            nursery.start_soon(call)
            await trio.testing.wait_all_tasks_blocked()
            server.end(CloseCode.INTERNAL, "enough")
        await trio.testing.wait_all_tasks_blocked()
        reason = client.close_reason
        assert reason is not None
        assert (reason.code, reason.reason, reason.by_peer) == (1, "enough", True)
        assert operations.running == 0


# --- draining


@both
async def test_a_drain_lets_calls_finish_and_takes_none(carrier: str) -> None:
    go = trio.Event()

    async def wait(given: msgspec.Raw) -> object:
        await go.wait()
        return given

    operations = Operations()
    operations.queries["test/wait"] = wait
    outputs: list[int] = []

    async with session_pair(carrier, operations) as (client, server):

        async def call() -> None:
            outputs.append(await client.call_as(int, "test/wait", 7))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(call)
            await trio.testing.wait_all_tasks_blocked()
            server.connection.draining.set()
            await trio.testing.wait_all_tasks_blocked()
            with pytest.raises(CallError, match="shutting down") as caught:
                await client.call("echo/unary")
            assert (caught.value.code, caught.value.retryable) == ("UNAVAILABLE", True)
            go.set()
        assert outputs == [7]
        with trio.fail_after(30):
            while client.close_reason is None:
                await trio.testing.wait_all_tasks_blocked()
        assert client.close_reason.code == CloseCode.SHUTDOWN


@both
async def test_a_drain_cuts_off_what_does_not_finish_and_says_so(
    carrier: str, autojump_clock: trio.testing.MockClock
) -> None:
    operations = Operations()
    limits = Limits(drain_timeout_s=10.0)
    async with session_pair(carrier, operations, limits=limits) as (client, server):
        async with trio.open_nursery() as nursery:

            async def call() -> None:
                with pytest.raises(CallError, match="shutting down"):
                    await client.call("echo/slow")

            nursery.start_soon(call)
            await trio.testing.wait_all_tasks_blocked()
            server.connection.draining.set()
        assert 7.5 < trio.current_time() < 9.5
        await server.connection.wait_closed()
        assert trio.current_time() < 10
        reason = server.close_reason
        assert reason is not None
        assert reason.code == CloseCode.SHUTDOWN


async def test_a_close_is_told_where_the_carrier_cannot() -> None:
    async with raw_peer("unix", Operations()) as (peer, server):
        server.end(CloseCode.REVOKED, "your key was removed")
        assert await peer.receive() == ConnectionClose(5, "your key was removed")
        assert await peer.receive() is None


async def test_what_the_peer_says_on_closing_is_kept() -> None:
    async with raw_peer("unix", Operations()) as (peer, server):
        await peer.send(ConnectionClose(CloseCode.SHUTDOWN, "good night"))
        await trio.testing.wait_all_tasks_blocked()
        reason = server.close_reason
        assert reason is not None
        assert (reason.code, reason.reason, reason.by_peer) == (4, "good night", True)


@both
async def test_a_handler_that_breaks_while_it_is_cancelled_ends_its_call_alone(
    carrier: str, caplog: pytest.LogCaptureFixture
) -> None:
    async def sleep() -> None:
        await trio.sleep_forever()

    async def break_down() -> None:
        try:
            await trio.sleep_forever()
        finally:
            raise ValueError("broke down")

    async def fragile(given: msgspec.Raw) -> object:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(sleep)
            nursery.start_soon(break_down)
        return given

    operations = Operations()
    operations.queries["test/fragile"] = fragile
    async with raw_peer(carrier, operations) as (peer, server):
        await peer.request("c1", "test/fragile")
        await trio.testing.wait_all_tasks_blocked()
        await peer.send(Aborted("c1"))
        event = await peer.receive()
        assert isinstance(event, Failed)
        assert event.id == "c1"
        await peer.request("c2", "echo/unary")
        assert isinstance(await peer.receive(), Responded)
        assert await is_idle(server)
    assert "call.crashed" in caplog.messages

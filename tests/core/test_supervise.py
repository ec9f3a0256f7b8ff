from __future__ import annotations

import logging

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from alknet.core.contracts import CloseCode, Connection
from alknet.core.endpoint.supervise import CLOSE_GRACE_S, supervise
from alknet.errors import Malformed
from alknet.testing.contract import cancel_at_every_checkpoint
from alknet.testing.memory import memory_connection_pair
from tests.core.endpoint_kit import Handler, ask, echo


async def crash(connection: Connection) -> None:
    await connection.accept_stream()
    raise ZeroDivisionError("password=hunter2")


async def crash_in_a_child(connection: Connection) -> None:
    async with trio.open_nursery() as nursery:
        nursery.start_soon(crash, connection)
        nursery.start_soon(trio.sleep_forever)


async def sleep(connection: Connection) -> None:
    await trio.sleep_forever()


async def test_a_handler_that_returns_closes_with_ok() -> None:
    async def answer(connection: Connection) -> None:
        assert await (await connection.accept_stream()).receive_some() == b"x"

    async with memory_connection_pair() as (dialer, acceptor), trio.open_nursery() as nursery:
        nursery.start_soon(supervise, acceptor, Handler(answer))
        await (await dialer.open_stream()).send_all(b"x")
        reason = await dialer.wait_closed()
    assert (reason.code, reason.by_peer) == (CloseCode.OK, True)


@pytest.mark.parametrize("fault", [crash, crash_in_a_child])
async def test_a_crash_is_logged_once_and_tells_the_peer_only_its_correlation_id(
    fault: object, caplog: pytest.LogCaptureFixture
) -> None:
    async with memory_connection_pair() as (dialer, acceptor), trio.open_nursery() as nursery:
        nursery.start_soon(supervise, acceptor, Handler(fault))  # type: ignore[arg-type]  # union
        await (await dialer.open_stream()).send_all(b"x")
        reason = await dialer.wait_closed()
    assert reason.code == CloseCode.HANDLER_ERROR
    (record,) = [r for r in caplog.records if r.levelno >= logging.ERROR]
    assert record.getMessage() == "handler.crashed"
    assert reason.reason == f"correlation id {record.__dict__['correlation_id']}"
    assert record.exc_info is not None
    assert "ZeroDivisionError" in caplog.text
    assert "hunter2" not in reason.reason


async def test_a_crash_while_cancelled_stays_inside() -> None:
    async def crash_on_cancel(connection: Connection) -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(trio.sleep_forever)
            try:
                await trio.sleep_forever()
            finally:
                raise ZeroDivisionError

    async with memory_connection_pair() as (dialer, acceptor):
        with trio.move_on_after(0) as scope:
            await supervise(acceptor, Handler(crash_on_cancel))
        assert scope.cancelled_caught
        assert (await dialer.wait_closed()).code == CloseCode.HANDLER_ERROR


async def test_a_peer_that_breaks_the_protocol_hears_so(caplog: pytest.LogCaptureFixture) -> None:
    async def judge(connection: Connection) -> None:
        raise Malformed("frame of 0 bytes")

    async with memory_connection_pair() as (dialer, acceptor):
        await supervise(acceptor, Handler(judge))
        reason = await dialer.wait_closed()
    assert (reason.code, reason.reason) == (CloseCode.PROTOCOL, "frame of 0 bytes")
    assert [r.levelname for r in caplog.records] == ["WARNING"]


async def test_a_handler_that_ends_with_its_connection_has_not_crashed(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with memory_connection_pair() as (dialer, acceptor), trio.open_nursery() as nursery:
        nursery.start_soon(supervise, acceptor, Handler(echo))
        assert await ask(dialer) == b"ping"
        dialer.close()
    assert not [r for r in caplog.records if r.levelno > logging.DEBUG]


async def test_an_uncaught_reset_on_a_living_connection_is_a_crash() -> None:
    async with memory_connection_pair() as (dialer, acceptor), trio.open_nursery() as nursery:
        nursery.start_soon(supervise, acceptor, Handler(echo))
        (await dialer.open_stream()).reset(9)
        assert (await dialer.wait_closed()).code == CloseCode.HANDLER_ERROR


async def test_a_lost_connection_cancels_a_handler_that_does_not_notice() -> None:
    async with memory_connection_pair() as (dialer, acceptor), trio.open_nursery() as nursery:
        nursery.start_soon(supervise, acceptor, Handler(sleep))
        await wait_all_tasks_blocked()
        dialer.lose()


async def test_a_closed_connection_gives_its_handler_a_moment(
    autojump_clock: trio.testing.MockClock,
) -> None:
    ended_at: list[float] = []

    async def slow(connection: Connection) -> None:
        try:
            await trio.sleep_forever()
        finally:
            ended_at.append(trio.current_time())

    async with memory_connection_pair() as (dialer, acceptor):
        began_at = trio.current_time()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(supervise, acceptor, Handler(slow))
            await wait_all_tasks_blocked()
            dialer.close()
    assert ended_at == [pytest.approx(began_at + CLOSE_GRACE_S)]


async def test_a_cancel_closes_with_shutdown() -> None:
    async with memory_connection_pair() as (dialer, acceptor):
        with trio.move_on_after(0):
            await supervise(acceptor, Handler(sleep))
        assert (await dialer.wait_closed()).code == CloseCode.SHUTDOWN


@pytest.mark.parametrize("signal", [KeyboardInterrupt, SystemExit])
async def test_signals_pass_through(signal: type[BaseException]) -> None:
    async def interrupted(connection: Connection) -> None:
        raise signal

    async with memory_connection_pair() as (dialer, acceptor):
        with pytest.RaisesGroup(signal):
            await supervise(acceptor, Handler(interrupted))
        assert dialer.close_reason is not None


async def test_cancelled_anywhere_the_connection_is_closed_and_nothing_runs() -> None:
    running = 0

    async def some_steps(connection: Connection) -> None:
        nonlocal running
        running += 1
        try:
            for _ in range(3):
                await trio.lowlevel.checkpoint()
        finally:
            running -= 1

    async def run() -> None:
        async with memory_connection_pair() as (dialer, acceptor):
            try:
                await supervise(acceptor, Handler(some_steps))
            finally:
                assert dialer.close_reason is not None

    async def nothing_runs() -> None:
        assert running == 0

    assert await cancel_at_every_checkpoint(run, nothing_runs) >= 4

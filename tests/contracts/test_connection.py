"""What every `Connection` promises, whatever carries it; capability flags choose the claims."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from alknet.core.contracts import Connection, ConnectionEnded, Stream
from tests.contracts.carriers import (
    ACCEPTOR,
    ALPN,
    CAPABILITIES,
    DIALER,
)
from tests.contracts.connections import (
    echo,
    note_end,
    over_all,
    over_close_code,
    over_no_close_code,
    pair,
    stream_pair,
)


@over_all
async def test_ends_say_who_they_are(carrier: str) -> None:
    async with pair(carrier) as (dialer, acceptor):
        assert dialer.is_dialer
        assert not acceptor.is_dialer
        assert dialer.alpn == acceptor.alpn == ALPN
        assert dialer.carrier == acceptor.carrier == CAPABILITIES[carrier]
        assert dialer.peer_key == ACCEPTOR.node_id
        assert acceptor.peer_key == DIALER.node_id
        assert dialer.close_reason is None
        assert dialer.remote_address
        assert acceptor.remote_address


@over_all
async def test_no_task_is_left(carrier: str) -> None:
    before = trio.lowlevel.current_statistics().tasks_living
    async with stream_pair(carrier) as (near, far, _, _):
        await echo(near, far, b"hello")
    assert trio.lowlevel.current_statistics().tasks_living == before


@over_close_code
@pytest.mark.parametrize("closer", [0, 1])
async def test_close_delivers_code_and_reason(carrier: str, closer: int) -> None:
    async with pair(carrier) as ends:
        ends[closer].close(4, "the node stops")
        seen = await ends[1 - closer].wait_closed()
        assert (seen.code, seen.reason) == (4, "the node stops")
        assert seen.by_peer
        assert not seen.is_transport
        own = await ends[closer].wait_closed()
        assert (own.code, own.reason, own.by_peer) == (4, "the node stops", False)


@over_no_close_code
@pytest.mark.parametrize("closer", [0, 1])
async def test_close_without_codes_is_a_clean_end(carrier: str, closer: int) -> None:
    async with pair(carrier) as ends:
        ends[closer].close(4, "the node stops")
        own = await ends[closer].wait_closed()
        assert (own.code, own.reason, own.by_peer) == (4, "the node stops", False)
        seen = await ends[1 - closer].wait_closed()
        assert (seen.code, seen.by_peer, seen.is_transport) == (0, True, False)


@over_all
async def test_close_reason_is_cut_to_512_bytes_of_whole_characters(carrier: str) -> None:
    async with pair(carrier) as (dialer, _):
        dialer.close(1, "é" * 600)
        assert (await dialer.wait_closed()).reason == "é" * 256


@over_all
async def test_close_is_idempotent_and_the_first_reason_stays(carrier: str) -> None:
    async with pair(carrier) as (dialer, _):
        await dialer.aclose(1, "first")
        await dialer.aclose(2, "second")
        dialer.close(3, "third")
        assert dialer.close_reason is not None
        assert dialer.close_reason.code == 1


@over_all
async def test_calls_after_own_close_raise_closed(carrier: str) -> None:
    async with stream_pair(carrier) as (near, _, dialer, _):
        await dialer.aclose()
        for call in _calls(dialer, near):
            with pytest.raises(trio.ClosedResourceError):
                await call()


@over_all
async def test_calls_that_wait_end_when_the_connection_is_closed_here(carrier: str) -> None:
    async with stream_pair(carrier) as (near, _, dialer, _):
        ended: list[type[BaseException]] = []
        async with trio.open_nursery() as nursery:
            for wait in (near.receive_some, dialer.accept_stream, dialer.accept_uni_stream):
                nursery.start_soon(note_end, wait, ended)
            await wait_all_tasks_blocked()
            dialer.close()
        assert ended == [trio.ClosedResourceError] * 3


@over_all
async def test_calls_that_wait_end_when_the_peer_closes(carrier: str) -> None:
    async with pair(carrier) as (dialer, acceptor):
        ended: list[type[BaseException]] = []
        async with trio.open_nursery() as nursery:
            for wait in (
                dialer.accept_stream,
                dialer.accept_uni_stream,
                dialer.receive_datagram,
            ):
                nursery.start_soon(note_end, wait, ended)
            await wait_all_tasks_blocked()
            acceptor.close()
        assert ended == [ConnectionEnded] * 3
        with pytest.raises(ConnectionEnded):
            await dialer.open_stream()


@over_all
async def test_sending_to_a_peer_that_has_closed_raises_connection_ended(carrier: str) -> None:
    async with stream_pair(carrier) as (near, _, dialer, acceptor):
        await acceptor.aclose()
        await dialer.wait_closed()
        with pytest.raises(ConnectionEnded) as caught:
            await near.send_all(b"anyone?")
        assert caught.value.close.by_peer


@over_all
async def test_wait_closed_can_be_cancelled_and_awaited_by_many(carrier: str) -> None:
    async with stream_pair(carrier) as (near, far, dialer, acceptor):
        with trio.move_on_after(0.01):
            await dialer.wait_closed()
        await echo(near, far, b"still here")
        async with trio.open_nursery() as nursery:
            for _ in range(3):
                nursery.start_soon(dialer.wait_closed)
            await wait_all_tasks_blocked()
            acceptor.close()


@over_all
async def test_aclose_that_is_cancelled_closes_all_the_same(carrier: str) -> None:
    async with stream_pair(carrier) as (_, _, dialer, acceptor):
        with trio.CancelScope() as scope:
            scope.cancel()
            await dialer.aclose()
        assert dialer.close_reason is not None
        assert (await acceptor.wait_closed()).by_peer


def _calls(connection: Connection, stream: Stream) -> list[Callable[[], Awaitable[object]]]:
    async def send() -> None:
        await stream.send_all(b"x")

    return [
        send,
        stream.receive_some,
        stream.send_eof,
        connection.open_stream,
        connection.accept_stream,
        connection.accept_uni_stream,
        connection.receive_datagram,
    ]

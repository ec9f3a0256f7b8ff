"""Bytes that a stream takes at once are sent like others; those that it does not are not sent."""

from __future__ import annotations

from contextlib import suppress

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from tests.contracts.connections import (
    over_all,
    over_many_streams,
    receive_exactly,
    send_without_end,
    stream_pair,
)


@over_all
async def test_what_was_taken_at_once_arrives_in_order(carrier: str) -> None:
    async with stream_pair(carrier) as (near, far, _, _):
        sent = b""
        for n in range(50):
            piece = b"%03d" % n
            if n % 3 == 0 or not near.send_now(piece):
                await near.send_all(piece)
            sent += piece
        assert await receive_exactly(far, len(sent)) == sent


@over_many_streams
async def test_a_stream_with_room_takes_bytes_at_once(carrier: str) -> None:
    async with stream_pair(carrier) as (near, far, _, _):
        assert near.send_now(b"now")
        assert await receive_exactly(far, 3) == b"now"


@over_many_streams
async def test_what_does_not_fit_is_not_sent_in_part(carrier: str) -> None:
    async with stream_pair(carrier) as (near, far, _, _):
        assert not near.send_now(b"x" * 100_000_000)
        await near.send_all(b"whole")
        assert await receive_exactly(far, 5) == b"whole"


@over_many_streams
async def test_pieces_are_refused_once_the_window_is_full(carrier: str) -> None:
    async with stream_pair(carrier) as (near, far, _, _):
        taken = 0
        while near.send_now(b"x" * 10_000):
            taken += 10_000
            assert taken < 100_000_000
        await wait_all_tasks_blocked()
        assert await receive_exactly(far, taken) == b"x" * taken
        await near.wait_send_all_might_not_block()


@over_many_streams
async def test_two_senders_at_once_are_a_mistake(carrier: str) -> None:
    async with stream_pair(carrier) as (near, _far, _, _), trio.open_nursery() as nursery:
        nursery.start_soon(send_without_end, near)
        await wait_all_tasks_blocked()
        with pytest.raises(trio.BusyResourceError):
            near.send_now(b"x")
        nursery.cancel_scope.cancel()


@over_many_streams
@pytest.mark.parametrize("how", ["eof", "reset", "closed", "stopped", "connection"])
async def test_nothing_is_taken_once_the_sending_side_is_over(carrier: str, how: str) -> None:
    async with stream_pair(carrier) as (near, far, connection, _):
        if how == "eof":
            await near.send_eof()
        elif how == "reset":
            near.reset(1)
        elif how == "closed":
            await near.aclose()
        elif how == "stopped":
            far.stop_sending(1)
            with suppress(trio.BrokenResourceError):
                await send_without_end(near)
        else:
            connection.close()
        assert not near.send_now(b"x")

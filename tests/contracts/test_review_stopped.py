"""A stream says that the peer refuses its bytes, also to those who have none to send now."""

from __future__ import annotations

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from alknet.core.contracts import StreamReset
from tests.contracts.connections import (
    over_many_streams,
    over_one_stream,
    send_without_end,
    stream_pair,
)


@over_many_streams
async def test_a_refusal_is_told_to_who_waits_for_it(carrier: str) -> None:
    async with stream_pair(carrier) as (near, far, _, _):
        told = trio.Event()
        near.notify_stopped(told.set)
        await wait_all_tasks_blocked()
        assert not told.is_set()
        far.stop_sending(5)
        await told.wait()
        with pytest.raises(StreamReset):
            await near.send_all(b"")


@over_many_streams
async def test_a_refusal_that_was_is_told_at_once(carrier: str) -> None:
    async with stream_pair(carrier) as (near, far, _, _):
        first, second = trio.Event(), trio.Event()
        near.notify_stopped(first.set)
        far.stop_sending(5)
        await first.wait()
        near.notify_stopped(second.set)
        assert second.is_set()


@over_many_streams
async def test_who_took_the_wish_back_is_told_nothing(carrier: str) -> None:
    async with stream_pair(carrier) as (near, far, _, _):
        told: list[int] = []
        near.notify_stopped(lambda: told.append(1))
        near.notify_stopped(None)
        far.stop_sending(5)
        with pytest.raises(StreamReset):
            await send_without_end(near)
        assert not told


@over_one_stream
async def test_where_nobody_can_refuse_nobody_is_told(carrier: str) -> None:
    async with stream_pair(carrier) as (near, far, _, _):
        told: list[int] = []
        near.notify_stopped(lambda: told.append(1))
        far.stop_sending(5)
        await wait_all_tasks_blocked()
        assert not told

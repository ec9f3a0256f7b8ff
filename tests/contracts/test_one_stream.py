"""What connections promise whose carrier has one stream."""

from __future__ import annotations

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from alknet.core.contracts import ConnectionEnded, Stream
from alknet.errors import LocalError
from alknet.testing.contract import cancel_at_every_checkpoint
from tests.contracts.connections import (
    echo,
    note_end,
    over_one_stream,
    pair,
    receive_all,
    stream_pair,
)


@over_one_stream
async def test_the_one_stream_can_be_had_once(carrier: str) -> None:
    async with stream_pair(carrier) as (near, _, dialer, acceptor):
        assert near.stream_id == 0
        for connection in (dialer, acceptor):
            with pytest.raises(LocalError):
                await connection.open_stream()
            with pytest.raises(LocalError):
                await connection.open_stream(unidirectional=True)


@over_one_stream
async def test_a_second_accept_waits_until_the_connection_ends(carrier: str) -> None:
    async with stream_pair(carrier) as (_, _, dialer, acceptor):
        ended: list[type[BaseException]] = []
        async with trio.open_nursery() as nursery:
            nursery.start_soon(note_end, acceptor.accept_stream, ended)
            await wait_all_tasks_blocked()
            assert not ended
            await dialer.aclose()
        assert ended == [ConnectionEnded]


@over_one_stream
async def test_an_open_cancelled_at_each_checkpoint_leaves_the_stream(carrier: str) -> None:
    async with pair(carrier) as (dialer, acceptor):
        opened: list[Stream] = []

        async def open_one() -> None:
            opened.append(await dialer.open_stream())

        assert await cancel_at_every_checkpoint(open_one) > 0
        await echo(opened[0], await acceptor.accept_stream(), b"hello")


@over_one_stream
async def test_bytes_before_the_peers_end_can_be_read_after_it(carrier: str) -> None:
    async with stream_pair(carrier) as (near, far, dialer, acceptor):
        await near.send_all(b"farewell")
        await dialer.aclose()
        assert await receive_all(far) == b"farewell"
        assert (await acceptor.wait_closed()).by_peer


@over_one_stream
async def test_a_second_accept_ends_when_the_stream_was_closed_here(carrier: str) -> None:
    async with stream_pair(carrier) as (_, far, _, acceptor):
        await far.aclose()
        with pytest.raises(ConnectionEnded) as caught:
            await acceptor.accept_stream()
        assert caught.value.close.code == 0

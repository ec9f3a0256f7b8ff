"""What connections promise about datagrams, where their carrier has them and where not."""

from __future__ import annotations

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from alknet.core.limits import Limits
from alknet.errors import LocalError
from tests.contracts.connections import (
    echo,
    over_datagrams,
    over_no_datagrams,
    pair,
    stream_pair,
)


@over_datagrams
@pytest.mark.parametrize("sender", [0, 1])
async def test_datagrams_arrive_whole(carrier: str, sender: int) -> None:
    async with pair(carrier) as ends:
        longest = b"d" * ends[sender].max_datagram_size
        assert len(longest) >= 1000
        for data in (b"ping", longest):
            ends[sender].send_datagram(data)
            assert await ends[1 - sender].receive_datagram() == data


@over_datagrams
async def test_an_oversized_datagram_is_refused_and_blocks_nothing(carrier: str) -> None:
    async with stream_pair(carrier) as (near, far, dialer, acceptor):
        with pytest.raises(LocalError):
            dialer.send_datagram(b"d" * (dialer.max_datagram_size + 1))
        dialer.send_datagram(b"small")
        assert await acceptor.receive_datagram() == b"small"
        await echo(near, far, b"streams too")


@over_datagrams
async def test_a_receive_datagram_cancelled_while_it_waits_takes_none(carrier: str) -> None:
    async with pair(carrier) as (dialer, acceptor):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(acceptor.receive_datagram)
            await wait_all_tasks_blocked()
            nursery.cancel_scope.cancel()
        dialer.send_datagram(b"ping")
        assert await acceptor.receive_datagram() == b"ping"


@over_datagrams
async def test_a_receiver_that_is_too_slow_loses_the_oldest_datagrams(carrier: str) -> None:
    async with stream_pair(carrier, Limits(datagrams_queued=2)) as (near, far, dialer, acceptor):
        for data in (b"1", b"2", b"3"):
            dialer.send_datagram(data)
        await echo(near, far, b"those before me have arrived")
        assert await acceptor.receive_datagram() == b"2"
        assert await acceptor.receive_datagram() == b"3"


@over_datagrams
async def test_datagrams_after_own_close_raise_closed(carrier: str) -> None:
    async with pair(carrier) as (dialer, _):
        await dialer.aclose()
        with pytest.raises(trio.ClosedResourceError):
            dialer.send_datagram(b"x")
        with pytest.raises(trio.ClosedResourceError):
            await dialer.receive_datagram()


@over_no_datagrams
async def test_without_datagrams_sending_one_is_refused(carrier: str) -> None:
    async with pair(carrier) as (dialer, _):
        assert dialer.max_datagram_size == 0
        with pytest.raises(LocalError):
            dialer.send_datagram(b"x")

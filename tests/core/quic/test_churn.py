"""Strangers who connect and leave, or are closed, again and again from one address."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

import trio
from trio.testing import MockClock

from alknet.core.contracts import CloseCode
from alknet.core.identity import Identity
from alknet.core.limits import Limits
from alknet.core.quic.churn import CHURN_S, MAX_SOURCES, VIOLATION_COSTS, Churn
from benchmarks.attacks import initials
from tests.core.quic.fakenet import FakeNet
from tests.core.quic.hostile import Attacker, varint
from tests.core.quic.pairs import ALPN, quic_client
from tests.core.quic.worlds import World, exchange, world

UNKNOWN_FRAME = varint(0x1F)
FEW = Limits(connections_per_address=20, handshake_timeout_s=1.0)
HERE, BESIDE, ELSEWHERE = ("2001:db8::1", 1), ("2001:db8::2", 2), ("2001:db8:1::1", 1)


@asynccontextmanager
async def crowd() -> AsyncGenerator[World]:
    async with world(limits=FEW, net=FakeNet()) as here:
        yield here


async def come_and_go(here: World, count: int, *, as_peer: bool = False) -> None:
    for _ in range(count):
        dialer, acceptor = await here.connect()
        if as_peer:
            acceptor.become(Identity("peer:friend"))
        dialer.close(0, "bye")
        await acceptor.wait_closed()


async def test_who_comes_and_goes_without_end_has_to_wait(autojump_clock: MockClock) -> None:
    async with crowd() as here:
        limit, count = FEW.connections_per_address, 60
        began_at = trio.current_time()
        await come_and_go(here, limit)
        assert trio.current_time() - began_at < CHURN_S / 2
        assert here.server.endpoint.counters["worn_out"] == 0
        await come_and_go(here, count - limit)
        assert trio.current_time() - began_at >= (count - limit - 1) * CHURN_S / limit
        assert here.server.endpoint.counters["worn_out"] > 0
        async with quic_client(limits=FEW, socket=here.net.host("198.51.100.7")) as other:
            there = World(here.net, here.server, other)
            began_at = trio.current_time()
            await exchange(*await there.connect(), b"another address is let in")
            assert trio.current_time() - began_at < 0.2


async def test_peers_may_come_and_go(autojump_clock: MockClock) -> None:
    async with crowd() as here:
        await come_and_go(here, 3 * FEW.connections_per_address, as_peer=True)
        assert here.server.endpoint.counters["worn_out"] == 0


async def test_connections_that_are_kept_cost_nothing(autojump_clock: MockClock) -> None:
    async with crowd() as here:
        pairs = [await here.connect() for _ in range(2 * FEW.connections_per_address)]
        await exchange(*pairs[0], b"all are in")
        assert here.server.endpoint.counters["worn_out"] == 0


async def test_a_few_violations_are_enough(autojump_clock: MockClock) -> None:
    async with crowd() as here:
        for _ in range(int(FEW.connections_per_address / VIOLATION_COSTS)):
            attacker = Attacker(here)
            await attacker.connect()
            attacker.say(UNKNOWN_FRAME)
            await trio.sleep(0.05)
            assert attacker.end is not None
        endpoint = here.server.endpoint
        for data in initials(10, ALPN):
            here.net.carry(data, ("198.51.100.66", 7_000), here.server.address)
        await trio.sleep(0.05)
        assert endpoint.counters["worn_out"] == 10
        assert all(":7000" not in found.remote_address for found in endpoint.connections)
        assert not [p for p in here.net.trace if p.target == ("198.51.100.66", 7_000)]
        await exchange(*await here.connect(), b"nobody else has to wait")


async def test_a_handler_that_closes_for_the_protocol_counts_like_a_violation(
    autojump_clock: MockClock,
) -> None:
    async with crowd() as here:
        for _ in range(int(FEW.connections_per_address / VIOLATION_COSTS)):
            dialer, acceptor = await here.connect()
            acceptor.close(CloseCode.PROTOCOL, "no frame")
            await dialer.wait_closed()
        await here.connect()
        assert here.server.endpoint.counters["worn_out"] > 0


async def test_addresses_that_are_not_proven_cost_nobody_anything(
    autojump_clock: MockClock,
) -> None:
    async with crowd() as here:
        for number, data in enumerate(initials(40, ALPN)):
            here.net.carry(data, ("192.0.2.1", 9_000 + number), here.server.address)
        await trio.sleep(30)
        assert here.server.endpoint.connections == ()
        await exchange(*await here.connect(), b"the owner of the address is let in")
        assert here.server.endpoint.counters["worn_out"] == 0


def test_neighbours_of_a_network_count_together() -> None:
    churn = Churn()
    churn.charge(HERE, 100.0, 20, 0.0)
    assert churn.is_worn_out(BESIDE, 20, 0.0)
    assert not churn.is_worn_out(ELSEWHERE, 20, 0.0)


def test_what_was_spent_is_given_back_in_time_and_no_debt_is_larger_than_the_limit() -> None:
    churn = Churn()
    for _ in range(1_000):
        churn.charge(HERE, VIOLATION_COSTS, 20, 0.0)
    assert churn.is_worn_out(HERE, 20, 0.04 * CHURN_S)
    assert not churn.is_worn_out(HERE, 20, 0.06 * CHURN_S)
    for _ in range(19):
        assert not churn.is_worn_out(HERE, 20, CHURN_S)
        churn.charge(HERE, 1.0, 20, CHURN_S)


def test_sources_are_bounded_and_the_worst_remembered() -> None:
    churn = Churn()
    churn.charge(HERE, 20.0, 20, 0.0)
    for number in range(3 * MAX_SOURCES):
        churn.charge((f"10.{number >> 16}.{number >> 8 & 255}.{number & 255}", 1), 1.0, 20, 0.0)
    assert len(churn) <= MAX_SOURCES
    assert churn.is_worn_out(HERE, 20, 0.0)

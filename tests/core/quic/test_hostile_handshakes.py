"""Floods of first packets: how much of a second they may take from everybody else."""

from __future__ import annotations

import gc
import weakref
from contextlib import AbstractContextManager

import trio
from trio.testing import MockClock

from alknet.core.limits import Limits
from alknet.core.quic.accepting import (
    ANSWERS_AT_ONCE,
    ANSWERS_PER_S,
    UNPROVEN_AT_ONCE,
    UNPROVEN_PER_S,
)
from alknet.core.quic.receiving import MAX_NEWCOMERS
from alknet.errors import Denied
from benchmarks.attacks import initials
from tests.core.quic.pairs import ALPN
from tests.core.quic.worlds import exchange, world


async def test_handshakes_of_unproven_addresses_are_so_many_at_once(
    autojump_clock: MockClock,
) -> None:
    """Far below the limit of half-open ones: each takes as long as fifty packets of friends."""
    async with world() as here:
        honest = await here.connect()
        await trio.sleep(1)
        for number, data in enumerate(initials(200, ALPN)):
            here.net.carry(data, (f"203.0.113.{number}", 5_000), here.server.address)
        await trio.sleep(0.1)
        begun = len(here.server.endpoint.connections) - 1
        assert UNPROVEN_AT_ONCE - 1 <= begun <= UNPROVEN_AT_ONCE + 0.1 * UNPROVEN_PER_S
        assert begun + here.server.endpoint.counters["retry"] == 200
        await exchange(*honest, b"unharmed")
        await exchange(*await here.connect(), b"let in, after a Retry or not")


async def test_handshakes_of_unproven_addresses_are_so_many_a_second(
    autojump_clock: MockClock,
) -> None:
    async with world() as here:
        for number, data in enumerate(initials(1_000, ALPN)):
            address = (f"203.0.113.{number % 250}", 5_000 + number)
            here.net.carry(data, address, here.server.address)
            await trio.sleep(0.001)
        await trio.sleep(0.1)
        begun = len(here.server.endpoint.connections)
        assert begun <= UNPROVEN_AT_ONCE + 1.1 * UNPROVEN_PER_S
        assert begun + here.server.endpoint.counters["retry"] == 1_000


async def test_answers_without_a_connection_are_so_many_at_once(
    autojump_clock: MockClock,
) -> None:
    async with world(limits=Limits(half_open_before_retry=1)) as here:
        honest = await here.connect()
        for number, data in enumerate(initials(400, ALPN)):
            here.net.carry(data, (f"203.0.{number % 200}.1", 5_000), here.server.address)
        await trio.sleep(0.05)
        counters = here.server.endpoint.counters
        assert ANSWERS_AT_ONCE - 1 <= counters["retry"] <= ANSWERS_AT_ONCE + 0.05 * ANSWERS_PER_S
        silent = counters["answer_withheld"] + counters["overrun"]
        assert 1 + counters["retry"] + silent == 400
        assert counters["answer_withheld"] >= MAX_NEWCOMERS - 1 - counters["retry"]
        await exchange(*honest, b"unharmed")
        await exchange(*await here.connect(), b"let in, after a Retry")


async def test_refusals_are_so_many_at_once(autojump_clock: MockClock) -> None:
    def refuse(_: str) -> AbstractContextManager[None]:
        raise Denied("nobody")

    async with world(admit=refuse) as here:
        for data in initials(int(UNPROVEN_AT_ONCE), ALPN) * 4:
            here.net.carry(data, ("203.0.113.1", 5_000), here.server.address)
        await trio.sleep(0.05)
        sent = [p for p in here.net.trace if p.target[0] == "203.0.113.1"]
        assert 0 < len(sent) <= ANSWERS_AT_ONCE
        assert not here.server.endpoint.connections


async def test_version_negotiations_are_so_many_at_once(autojump_clock: MockClock) -> None:
    unknown = b"\xc0\x1a\x2a\x3a\x4a\x08" + bytes(8) + b"\x08" + bytes(1_186)
    async with world() as here:
        for _ in range(400):
            here.net.carry(unknown, ("203.0.113.1", 5_000), here.server.address)
        await trio.sleep(0.05)
        counters = here.server.endpoint.counters
        sent = [p for p in here.net.trace if p.target[0] == "203.0.113.1"]
        assert ANSWERS_AT_ONCE - 1 <= len(sent) <= ANSWERS_AT_ONCE + 0.05 * ANSWERS_PER_S
        assert counters["version_negotiation"] == len(sent)
        assert counters["answer_withheld"] + counters["overrun"] == 400 - len(sent)
        assert counters["answer_withheld"] >= MAX_NEWCOMERS - len(sent)


async def test_a_handshake_that_succeeds_takes_no_place(autojump_clock: MockClock) -> None:
    async with world() as here:
        for _ in range(3):
            async with trio.open_nursery() as nursery:
                for _ in range(int(UNPROVEN_AT_ONCE) // 2):
                    nursery.start_soon(here.connect)
        assert len(here.server.endpoint.connections) == 3 * (UNPROVEN_AT_ONCE // 2)
        assert here.server.endpoint.counters["retry"] == 0


async def test_the_loops_of_an_endpoint_hold_nobody_who_has_gone(
    autojump_clock: MockClock,
) -> None:
    async with world() as here:
        dialer, acceptor = await here.connect()
        await exchange(dialer, acceptor, b"something")
        dialer.close(0, "bye")
        await trio.sleep(60)
        gone = [weakref.ref(dialer), weakref.ref(acceptor)]
        del dialer, acceptor
        gc.collect()
        assert [ref() for ref in gone] == [None, None]

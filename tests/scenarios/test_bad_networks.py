"""Seeded runs over bad networks: all arrives once and intact, or ends with a clear error.

``ALKNET_SEEDS`` says how many runs (25); a failure names its seed and shows the end of the
network's trace. ``ALKNET_SEED`` runs that one alone.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import AsyncGenerator
from contextlib import suppress
from random import Random  # noqa: TID251  seeded
from typing import Any

import msgspec
import pytest
import trio
from trio.testing import MockClock

from alknet.call.codes import CallError, ErrorCode
from alknet.call.operations import Operation, operation, scopes
from alknet.call.session import CallSession
from alknet.core.contracts import Connection, ConnectionEnded
from alknet.core.limits import Limits
from alknet.testing.network import FakeNetwork, Passage
from alknet.testing.worlds import (
    CLIENT_HOST,
    SERVER_HOST,
    FakePair,
    open_fake_endpoints,
    open_fake_pair,
)
from tests.chance import seed_chance

SEEDS = (
    (int(os.environ["ALKNET_SEED"]),)
    if "ALKNET_SEED" in os.environ
    else range(int(os.environ.get("ALKNET_SEEDS", "25")))
)
RAW = "alknet/raw"
# A dial under 10 % loss and a blackout needs more patience than the default of 5 s.
LIMITS = Limits(handshake_timeout_s=30.0)
# How a call may end on a network that is too bad, or when we leave it.
CLEAR = {ErrorCode.TIMEOUT, ErrorCode.UNAVAILABLE, ErrorCode.ABORTED}


class Parcel(msgspec.Struct):
    number: int
    content: str = ""
    count: int = 0


class Service:
    """What one side serves; counts how often each parcel came, and what still runs."""

    def __init__(self) -> None:
        self.came: Counter[int] = Counter()
        self.running = 0

    def operations(self) -> list[Operation[..., Any]]:
        access = scopes("parcels")

        @operation("parcel/echo", access=access)
        async def echo(parcel: Parcel) -> Parcel:
            self.came[parcel.number] += 1
            return parcel

        @operation("parcel/hold", access=access, max_duration_s=600)
        async def hold(parcel: Parcel) -> None:
            self.came[parcel.number] += 1
            self.running += 1
            try:
                await trio.sleep_forever()
            finally:
                self.running -= 1

        @operation("parcel/count", access=access)
        async def count(parcel: Parcel) -> AsyncGenerator[Parcel]:
            self.came[parcel.number] += 1
            self.running += 1
            try:
                for number in range(parcel.count):
                    yield Parcel(number, parcel.content)
            finally:
                self.running -= 1

        return [echo, hold, count]


class Run:
    """One seed: a network, its bad luck, and traffic over it."""

    def __init__(self, seed: int) -> None:
        self.random = Random(seed)
        self.network = FakeNetwork(
            seed,
            loss=self.random.choice((0, 0.01, 0.05, 0.1)),
            delay=self.random.choice((0.0005, 0.01, 0.05, 0.15)),
            reorder=self.random.choice((0, 0.1, 0.3)),
            duplicate=self.random.choice((0, 0.02, 0.1)),
            mtu=self.random.choice((None, None, None, 1_200, 1_350)),
            bandwidth=self.random.choice((None, None, None, 250_000)),
        )
        if self.random.random() < 0.3:
            ways = [(CLIENT_HOST, SERVER_HOST), (SERVER_HOST, CLIENT_HOST)]
            loss, delay = self.random.choice((0.05, 0.15)), self.random.choice((0.01, 0.2))
            self.network.worsen(*self.random.choice(ways), loss=loss, delay=delay)
        self.services = Service(), Service()
        self.outcomes: Counter[str] = Counter()
        self._number = 0

    # the traffic

    async def traffic(self, pair: FakePair) -> None:
        raw = await pair.endpoints.connect(RAW)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._trouble, pair)
            for _ in range(self.random.randint(4, 12)):
                is_back = self.random.random() < 0.3
                session, service = (
                    (pair.server, self.services[1]) if is_back else (pair.client, self.services[0])
                )
                action = self.random.choice((self._call, self._hold, self._subscribe))
                after = self.random.uniform(0, 3)
                nursery.start_soon(self._later, after, action, session, service, self._next())
            for _ in range(self.random.randint(0, 4)):
                ends = raw if self.random.random() < 0.5 else raw[::-1]
                data = self.random.randbytes(self.random.choice((1, 900, 5_000, 100_000)))
                await self._transfer(*ends, data)
        raw[0].close()

    def _next(self) -> int:
        self._number += 1
        return self._number

    async def _later(
        self, after: float, action: Any, session: CallSession, service: Service, number: int
    ) -> None:
        await trio.sleep(after)
        code = "ok"
        try:
            await action(session, service, number)
        except CallError as exc:
            code = exc.code
        assert code in {"ok", *CLEAR}
        assert service.came[number] <= 1
        self.outcomes[code] += 1

    async def _call(self, session: CallSession, service: Service, number: int) -> None:
        size = self.random.choice((0, 10, 1_000, 20_000, 150_000))
        sent = Parcel(number, self.random.randbytes(size // 2).hex())
        got = await session.call_as(Parcel, "parcel/echo", sent, timeout_s=60)
        assert got == sent
        assert service.came[number] == 1

    async def _hold(self, session: CallSession, service: Service, number: int) -> None:
        with trio.move_on_after(self.random.uniform(0, 2)):
            await session.call("parcel/hold", Parcel(number))
            raise AssertionError("nobody answers this one")
        assert service.came[number] <= 1

    async def _subscribe(self, session: CallSession, service: Service, number: int) -> None:
        content = self.random.randbytes(self.random.choice((0, 500, 5_000))).hex()
        count = self.random.randint(0, 40)
        leave_at = self.random.choice((None, None, self.random.randint(0, 40)))
        got = 0
        asked = Parcel(number, content, count)
        async with session.subscribe_as(Parcel, "parcel/count", asked, timeout_s=60) as items:
            async for item in items:
                assert item == Parcel(got, content)
                got += 1
                if got == leave_at:
                    return
        assert got == count
        assert service.came[number] == 1

    async def _transfer(self, sender: Connection, receiver: Connection, data: bytes) -> None:
        """Send *data* on a raw stream both ways: the receiver says it back."""

        async def answer() -> None:
            async with await receiver.accept_stream() as stream:
                while part := await stream.receive_some():
                    await stream.send_all(part)

        got = bytearray()
        ends: list[str] = []
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(answer)
                async with await sender.open_stream() as stream:
                    nursery.start_soon(stream.send_all, data)
                    while len(got) < len(data):
                        got += await stream.receive_some()
                    await stream.send_eof()
                    assert not await stream.receive_some()
        except* ConnectionEnded as group:
            ends = [str(exc) for exc in group.exceptions]
        self.outcomes["connection ended" if ends else "transferred"] += 1
        assert ends or bytes(got) == data
        assert all(ends)

    # the trouble

    async def _trouble(self, pair: FakePair) -> None:
        for _ in range(self.random.randint(0, 3)):
            await trio.sleep(self.random.uniform(0, 1.5))
            match self.random.choice(("blackout", "black hole", "rebind")):
                case "blackout":
                    with self.network.blackout():
                        await trio.sleep(self.random.choice((0.05, 0.5, 3)))
                case "black hole":
                    # Through the last two pass all but what path MTU discovery has found.
                    before = self.network.mtu
                    self.network.mtu = self.random.choice((600, 1_199, 1_200, 1_300))
                    await trio.sleep(self.random.uniform(0.1, 5))
                    self.network.mtu = before
                case _:
                    address = ("192.0.2.77", 20_000 + self._next())
                    self.network.rebind(pair.endpoints.client_socket, address)

    def heal(self) -> None:
        self.network.loss = self.network.reorder = self.network.duplicate = 0.0
        self.network.mtu = self.network.bandwidth = None
        self.network.worsen(CLIENT_HOST, SERVER_HOST)
        self.network.worsen(SERVER_HOST, CLIENT_HOST)

    def assert_nothing_left(self, pair: FakePair) -> None:
        for session in (pair.client, pair.server):
            assert not session.calling.pending
            assert not session.serving.calls
            assert session.budget.used == 0
            connection: Any = session.connection
            # One long-lived stream a side for small calls.
            assert len(connection._streams) <= 2
            assert len(connection.engine._streams) <= 2
            assert not connection.waiting_senders
        assert [service.running for service in self.services] == [0, 0]


async def run(seed: int) -> Counter[str]:
    here = Run(seed)
    tasks = trio.lowlevel.current_statistics().tasks_living
    try:
        serving, back = (service.operations() for service in here.services)
        async with open_fake_pair(
            here.network, serving, back=back, limits=LIMITS, alpns=[RAW]
        ) as pair:
            await here.traffic(pair)
            here.heal()
            await trio.sleep(20)
            here.assert_nothing_left(pair)
            for endpoint in (pair.endpoints.client, pair.endpoints.server):
                assert len(endpoint.connections) <= 1
                assert endpoint.counters["engine_error"] == 0
        for endpoint in (pair.endpoints.client, pair.endpoints.server):
            assert endpoint._table.is_empty
            assert not endpoint._outbox
    except BaseException as exc:
        exc.add_note(f"ALKNET_SEED={seed}; the end of the trace:\n{here.network.format_trace()}")
        raise
    assert trio.lowlevel.current_statistics().tasks_living == tasks
    return here.outcomes


@pytest.mark.parametrize("seed", SEEDS)
async def test_everything_arrives_once_or_ends_with_a_clear_error(
    seed: int, monkeypatch: pytest.MonkeyPatch, autojump_clock: MockClock
) -> None:
    seed_chance(monkeypatch, seed)
    outcomes = await run(seed)
    assert outcomes["ok"]


def test_a_seed_gives_the_same_trace_again(monkeypatch: pytest.MonkeyPatch) -> None:
    async def traffic() -> list[Passage]:
        network = FakeNetwork(7, loss=0.1, reorder=0.2, duplicate=0.1)
        async with open_fake_endpoints(network, alpns=[RAW], limits=LIMITS) as endpoints:
            dialer, acceptor = await endpoints.connect(RAW)
            stream = await dialer.open_stream()
            for size in (10, 3_000, 40_000):
                await stream.send_all(bytes(size))
                await trio.sleep(0.5)
            accepted = await acceptor.accept_stream()
            assert await accepted.receive_some()
        return list(network.trace)

    def run_alone() -> list[Passage]:
        seed_chance(monkeypatch, 7)
        return trio.run(traffic, clock=MockClock(autojump_threshold=0))

    first = run_alone()
    assert len(first) > 40
    assert run_alone() == first


async def test_a_path_that_is_worse_one_way(autojump_clock: MockClock) -> None:
    network = FakeNetwork(3, delay=0.01)
    async with open_fake_endpoints(network, alpns=[RAW]) as endpoints:
        dialer, acceptor = await endpoints.connect(RAW)
        network.worsen(CLIENT_HOST, SERVER_HOST, loss=1.0)
        acceptor.send_datagram(b"down")
        dialer.send_datagram(b"up")
        assert await dialer.receive_datagram() == b"down"
        with trio.move_on_after(1) as scope:
            await acceptor.receive_datagram()
        assert scope.cancelled_caught
        lost = [passage for passage in network.trace if passage.fate == "lost"]
        assert lost
        assert {passage.source[0] for passage in lost} == {CLIENT_HOST}
        network.worsen(CLIENT_HOST, SERVER_HOST, delay=1.0)
        dialer.send_datagram(b"up")
        began_at = trio.current_time()
        with suppress(trio.TooSlowError), trio.fail_after(5):
            assert await acceptor.receive_datagram() == b"up"
        assert 1.0 <= trio.current_time() - began_at <= 1.2


async def test_a_path_that_dies_ends_every_call_with_a_clear_error(
    autojump_clock: MockClock,
) -> None:
    network = FakeNetwork()
    service = Service()
    errors: list[CallError] = []

    async def hold(session: CallSession, number: int) -> None:
        with pytest.raises(CallError) as caught:
            await session.call("parcel/hold", Parcel(number))
        errors.append(caught.value)

    async with open_fake_pair(network, service.operations()) as pair:
        async with trio.open_nursery() as nursery:
            for number in range(5):
                nursery.start_soon(hold, pair.client, number)
            await trio.sleep(1)
            assert service.running == 5
            network.is_down = True
        assert [error.code for error in errors] == [ErrorCode.UNAVAILABLE] * 5
        assert "idle" in str(errors[0])
        await trio.sleep(5)
        assert service.running == 0
        assert not pair.endpoints.server.connections

"""Steps of handshakes take turns: so many in a pass, sources one after another, nothing lost."""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager
from functools import partial

import pytest
import trio
from OpenSSL import SSL

from alknet.core.contracts import CloseReason, Connection
from alknet.core.endpoint.endpoint import Endpoint
from alknet.core.router import Router
from alknet.core.tcp.contexts import client_connection
from alknet.core.tcp.handshake import accept_tls, dial_tls
from alknet.core.tcp.tls import TlsStream
from alknet.core.tcp.turns import STEPS_PER_PASS, HandshakeTurns, Turn
from alknet.core.tls.trust import PinnedKey
from alknet.stores.memory import MemoryIdentityStore
from tests.core.tcp.rig import SERVER


class Passes(trio.abc.Instrument):
    """Counts passes of the scheduler."""

    def __init__(self) -> None:
        self.number = 0

    def before_io_wait(self, timeout: float) -> None:
        self.number += 1


@asynccontextmanager
async def counted_passes() -> AsyncGenerator[Passes]:
    passes = Passes()
    trio.lowlevel.add_instrument(passes)
    try:
        yield passes
    finally:
        trio.lowlevel.remove_instrument(passes)


async def test_a_pass_has_so_many_steps_and_those_beside_go_on() -> None:
    turns = HandshakeTurns()
    steps: Counter[int] = Counter()
    beside = 0

    async def shake(source: str) -> None:
        for _ in range(2):
            async with turns.of(source):
                steps[passes.number] += 1

    async def keep_calling() -> None:
        nonlocal beside
        while True:
            await trio.lowlevel.checkpoint()
            beside += 1

    async with counted_passes() as passes, trio.open_nursery() as nursery:
        nursery.start_soon(keep_calling)
        async with trio.open_nursery() as handshakes:
            for number in range(200):
                handshakes.start_soon(shake, f"10.0.0.{number % 100}")
        nursery.cancel_scope.cancel()
    assert sum(steps.values()) == 400
    assert max(steps.values()) <= STEPS_PER_PASS
    assert beside >= 400 / STEPS_PER_PASS - 2  # it may begin late and end early
    assert turns.waiting == 0


async def test_a_source_with_many_waits_for_itself() -> None:
    turns = HandshakeTurns()
    order: list[str] = []

    async def shake(source: str) -> None:
        async with turns.of(source):
            order.append(source)

    async with trio.open_nursery() as nursery:
        for _ in range(100):
            nursery.start_soon(shake, "flood")
        await trio.lowlevel.checkpoint()
        nursery.start_soon(shake, "honest")
    assert order.index("honest") <= 3 * STEPS_PER_PASS


async def test_who_gives_up_leaves_its_place_to_the_others() -> None:
    turns = HandshakeTurns()
    made: list[int] = []

    async def shake(number: int, scope: trio.CancelScope) -> None:
        with scope:
            async with turns.of("a"):
                made.append(number)

    scopes = [trio.CancelScope() for _ in range(20)]
    async with trio.open_nursery() as nursery:
        for number, scope in enumerate(scopes):
            nursery.start_soon(shake, number, scope)
        for scope in scopes[::2]:
            scope.cancel()
    assert sorted(made) == list(range(1, 20, 2))
    assert turns.waiting == 0
    async with turns.of("a"):
        pass


async def test_a_step_that_fails_gives_its_turn_back() -> None:
    turns = HandshakeTurns()
    for _ in range(3 * STEPS_PER_PASS):
        with pytest.raises(ValueError, match="bad"):
            async with turns.of("a"):
                raise ValueError("bad")
    with trio.fail_after(15):
        async with turns.of("b"):
            pass


async def test_who_is_cancelled_already_takes_no_turn() -> None:
    turns = HandshakeTurns()
    for _ in range(3 * STEPS_PER_PASS):
        with trio.CancelScope() as scope:
            scope.cancel()
            async with turns.of("a"):
                raise AssertionError("it was given a turn")
    with trio.fail_after(15):
        async with turns.of("b"):
            pass


async def test_two_hundred_handshakes_at_once_let_calls_through(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """All clients have said hello before the node looks; an honest peer's bytes go on meanwhile."""
    steps: Counter[int] = Counter()
    silent: set[TlsStream] = set()
    shake_once = TlsStream._shake_once

    def counted(stream: TlsStream) -> bool:
        if stream in silent:  # the first step of each has nothing to compute from
            steps[passes.number] += 1
        silent.add(stream)
        return shake_once(stream)

    async def accept(stream: trio.abc.Stream, alpns: Sequence[str], turn: Turn) -> Connection:
        return await accept_tls(stream, SERVER, alpns, turn=turn)

    endpoint = Endpoint(Router([Pings()]), MemoryIdentityStore(), accept_tls=accept)
    async with counted_passes() as passes, endpoint.running() as nursery:
        near, far = trio.testing.memory_stream_pair()
        nursery.start_soon(partial(endpoint.serve_stream, far, remote_address="10.1.0.1:1"))
        honest = await dial_tls(
            near, alpn="ping", credentials=None, trust=PinnedKey(SERVER.node_id)
        )
        nursery.start_soon(honest.wait_closed)
        stream = await honest.open_stream()
        monkeypatch.setattr(TlsStream, "_shake_once", counted)
        clients = [trio.testing.memory_stream_pair() for _ in range(200)]
        for near, _ in clients:
            await near.send_all(client_hello())
        first = passes.number
        for number, (_, far) in enumerate(clients):
            address = f"10.0.{number % 4}.1:{number}"
            nursery.start_soon(partial(endpoint.serve_stream, far, remote_address=address))
        rounds = 0
        with trio.fail_after(60):
            while sum(steps.values()) < 200:
                await stream.send_all(b"?")
                assert await stream.receive_some() == b"!"
                rounds += 1
        assert max(steps.values()) <= STEPS_PER_PASS
        # The handshakes took as many passes as they must, and the pings a few each of them.
        assert passes.number - first >= 200 / STEPS_PER_PASS
        assert rounds >= 5
        endpoint.hurry()
        honest.close()


def client_hello() -> bytes:
    connection, _ = client_connection(None, "ping", PinnedKey(SERVER.node_id), None)
    with pytest.raises(SSL.WantReadError):
        connection.do_handshake()
    return connection.bio_read(65_536)


class Pings:
    alpns = ("ping",)
    requires_identity = False

    async def handle(self, connection: Connection) -> None:
        stream = await connection.accept_stream()
        while await stream.receive_some():
            await stream.send_all(b"!")

    def farewell(self, reason: CloseReason) -> bytes:
        return b""

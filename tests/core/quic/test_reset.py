"""Stateless reset: who has lost a connection ends it at the peer, and nobody else can."""

from __future__ import annotations

import hashlib
import hmac
import logging
import os
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st
from trio.testing import MockClock, wait_all_tasks_blocked

from alknet.core.contracts import CloseReason, ConnectionEnded
from alknet.core.datagram import Address
from alknet.core.quic.cids import CID_LENGTH
from alknet.core.quic.connection import QuicConnection
from alknet.core.quic.policy import client_policy
from alknet.core.quic.receiving import MAX_NEWCOMERS
from alknet.core.quic.reset import (
    COMPARISONS_PER_S,
    MIN_RESET_BYTES,
    RESETS_PER_S,
    TOKEN_BYTES,
    Budget,
    PeersByAddress,
    ResetKey,
    ResetSender,
    ends_in_token,
)
from tests.core.quic.fakenet import FakeNet
from tests.core.quic.pairs import ALPN, Server, new_credentials, quic_client, quic_server
from tests.core.quic.sansio import connected
from tests.core.quic.worlds import World, exchange, world

SECRET = bytes(range(32))
KEY = ResetKey(SECRET)
SERVER = ("192.0.2.9", 4433)
RESET = CloseReason(
    0, "stateless reset: the peer has lost its state", by_peer=True, is_transport=True
)


# tokens


def test_a_token_is_a_function_of_key_place_and_connection_id() -> None:
    cid = b"12345678"
    assert KEY.token(cid) == hmac.new(SECRET, cid, hashlib.sha256).digest()[:16]
    assert KEY.at(SERVER).token(cid) == ResetKey(SECRET).at(SERVER).token(cid)
    others = [KEY, KEY.at(SERVER), KEY.at(("192.0.2.9", 4434)), KEY.at(("::", 4433)), ResetKey()]
    assert len({key.token(cid) for key in others}) == len(others)
    assert ResetKey().token(cid) != ResetKey().token(cid)
    assert SECRET.hex() not in repr(KEY)
    assert repr(SECRET) not in repr(KEY)


def test_every_connection_id_is_issued_with_its_token() -> None:
    pair = connected()
    dialer, acceptor = pair.dialer, pair.acceptor
    assert dialer.peer_reset_token == acceptor._cids.token(dialer._peer_cid.cid)
    assert acceptor.peer_reset_token is None  # a client's first connection ID has none
    for engine, peer in ((dialer, acceptor), (acceptor, dialer)):
        assert len(engine._peer_cid_available) == 3
        for issued in engine._peer_cid_available:
            assert issued.stateless_reset_token == peer._cids.token(issued.cid)


def test_only_the_token_of_the_connection_id_in_use_counts() -> None:
    pair = connected()
    dialer = pair.dialer
    seen = [dialer.peer_reset_token]
    for _ in range(10):
        dialer.change_connection_id()
        pair.run()
        seen.append(dialer.peer_reset_token)
        assert seen[-1] == pair.acceptor._cids.token(dialer._peer_cid.cid)
    assert len(set(seen)) == len(seen)


# the datagram


def trigger(size: int, cid: bytes = b"12345678") -> bytes:
    return b"\x40" + cid + bytes(size - 1 - CID_LENGTH)


@pytest.mark.parametrize("size", [22, 23, 42, 43, 44, 45, 64, 65, 66, 1200, 65_000])
def test_a_reset_is_shorter_than_its_cause_and_looks_like_a_packet(size: int) -> None:
    sender = ResetSender(KEY.token, CID_LENGTH)
    datagram = trigger(size)
    assert sender.deserves(datagram)
    answers = [sender.answer(datagram, 0.0) for _ in range(50)]
    assert len(set(answers)) == 50
    for answer in answers:
        assert answer is not None
        assert MIN_RESET_BYTES <= len(answer) < size
        assert len(answer) <= 64
        assert answer[0] & 0xC0 == 0x40
        assert answer[-16:] == KEY.token(b"12345678")
    if size <= 43:
        assert {len(answer) for answer in answers if answer} == {size - 1}


@pytest.mark.parametrize(
    "datagram",
    [b"", b"\x40", trigger(21), b"\xc0" + bytes(60), b"\x00" + bytes(60), b"\x80" + bytes(60)],
    ids=["nothing", "a byte", "21 bytes", "long header", "no fixed bit", "long, no fixed bit"],
)
def test_what_cannot_be_answered_by_less_gets_no_answer(datagram: bytes) -> None:
    assert not ResetSender(KEY.token, CID_LENGTH).deserves(datagram)


def test_two_nodes_that_know_nothing_fall_silent() -> None:
    ours, theirs = ResetSender(KEY.token, CID_LENGTH), ResetSender(ResetKey().token, CID_LENGTH)
    datagram, answers = trigger(1200), 0
    while ours.deserves(datagram):
        answer = ours.answer(datagram, 0.0)
        assert answer is not None
        assert len(answer) < len(datagram)
        datagram, answers = answer, answers + 1
        ours, theirs = theirs, ours
    assert answers <= 65 - MIN_RESET_BYTES


@given(st.binary(max_size=60), st.binary(min_size=16, max_size=16), st.booleans())
def test_only_the_token_at_the_end_makes_a_reset(noise: bytes, token: bytes, glue: bool) -> None:
    datagram = noise + token if glue else noise
    is_reset = len(datagram) >= 21 and datagram.endswith(token)
    assert ends_in_token(datagram, token) is is_reset
    assert not ends_in_token(datagram, None)
    assert not ends_in_token(noise + b"x" * 21, b"")


# bounds


def test_a_budget_is_a_seconds_worth_and_comes_back() -> None:
    budget = Budget(10.0)
    assert [budget.take(5.0) for _ in range(12)] == [True] * 10 + [False] * 2
    assert budget.take(5.125)
    assert not budget.take(5.125)
    assert not budget.take(4.0)  # a clock that goes back gives nothing
    assert [budget.take(1000.0) for _ in range(12)] == [True] * 10 + [False] * 2


def test_resets_are_so_many_a_second() -> None:
    sender = ResetSender(KEY.token, CID_LENGTH)
    sent = [sender.answer(trigger(1200), 7.0 + at / 10_000) for at in range(10_000)]
    assert RESETS_PER_S <= sum(answer is not None for answer in sent) <= 2 * RESETS_PER_S


def test_comparisons_are_so_many_a_second() -> None:
    peers: PeersByAddress[int] = PeersByAddress()
    for connection in range(300):
        peers.add(SERVER, connection)
    compared = sum(1 for _ in range(1_000) for _ in peers.candidates(SERVER, 1.0))
    assert compared == COMPARISONS_PER_S
    assert list(peers.candidates(SERVER, 1.0078125)) == list(range(156))  # 1/128 s
    assert len(list(peers.candidates(SERVER, 3.0))) == 300
    assert not list(peers.candidates(("192.0.2.9", 4434), 9.0))
    for connection in range(300):
        peers.discard(SERVER, connection)
    peers.discard(SERVER, 0)
    assert not peers


# endpoints


@asynccontextmanager
async def survivor(
    *, again: ResetKey = KEY, renew: int = 0
) -> AsyncGenerator[tuple[FakeNet, QuicConnection, Server]]:
    """Yield a client's connection and the server that has come back without it.

    Args:
        again: The key of the server that has come back.
        renew: How often the client changes the connection ID before the server is lost.
    """
    net, key = FakeNet(), new_credentials()
    async with quic_client(socket=net.host()) as client:
        async with quic_server(socket=net.socket(SERVER), credentials=key, reset_key=KEY) as server:
            policy = client_policy(server.trust, None)
            dialer = await client.connect(SERVER, alpn=ALPN, policy=policy)
            acceptor = await server.accepted.receive()
            await exchange(dialer, acceptor, b"before")
            for _ in range(renew):
                dialer.engine.change_connection_id()
                await exchange(dialer, acceptor, b"renewed")
            net.is_down = True
        net.is_down = False
        async with quic_server(socket=net.socket(SERVER), credentials=key, reset_key=again) as back:
            yield net, dialer, back


async def expect_reset(connection: QuicConnection) -> None:
    """Wait until *connection* is reset; keep-alives, which come every 10 s, may bring it about."""
    with trio.fail_after(11):
        assert await connection.wait_closed() == RESET


@pytest.mark.parametrize("renew", [0, 1, 10])
async def test_a_server_that_comes_back_resets_its_old_connections(
    renew: int, caplog: pytest.LogCaptureFixture, autojump_clock: MockClock
) -> None:
    caplog.set_level(logging.DEBUG)
    async with survivor(renew=renew) as (net, dialer, back):
        token = dialer.engine.peer_reset_token
        assert token is not None
        began = trio.current_time()
        stream = await dialer.open_stream()
        await stream.send_all(b"are you there?")
        with trio.fail_after(1), pytest.raises(ConnectionEnded) as ended:
            await stream.receive_some()
        assert ended.value.close == RESET
        await expect_reset(dialer)
        assert trio.current_time() - began < 0.1  # a round trip, not a time-out
        assert back.endpoint.counters.keys() == {"stateless_reset_sent"}
        said: list[bytes] = []

        def listen(data: bytes, source: Address, _: Address) -> bool:
            if source != SERVER:
                said.append(data)
            return True

        net.filter = listen
        await trio.sleep(40)
        assert said == []  # no reply, and no goodbye
        assert token.hex() not in caplog.text
        assert repr(token) not in caplog.text


async def test_an_idle_connection_is_reset_by_its_next_keep_alive(
    autojump_clock: MockClock,
) -> None:
    async with survivor() as (_, dialer, _):
        await expect_reset(dialer)


async def test_a_reset_with_another_key_is_nothing(autojump_clock: MockClock) -> None:
    async with survivor(again=ResetKey()) as (_, dialer, back):
        with pytest.raises(ConnectionEnded, match="idle timeout"):
            await dialer.accept_stream()
        assert back.endpoint.counters["stateless_reset_sent"] > 0


async def test_a_server_that_comes_back_can_be_dialled_at_once(autojump_clock: MockClock) -> None:
    async with survivor() as (_, dialer, back):
        client = dialer._endpoint
        policy = client_policy(back.trust, None)
        fresh = await client.connect(SERVER, alpn=ALPN, policy=policy)
        await exchange(fresh, await back.accepted.receive(), b"a new life")
        await exchange(fresh, back.endpoint.connections[0], b"beside the old one's end")
        assert fresh.close_reason is None
        await expect_reset(dialer)
        assert fresh.close_reason is None


def reset_of(connection: QuicConnection, *, known_cid: bool = False) -> bytes:
    """The reset that ends *connection*, with its own connection ID at the front if wanted."""
    token = connection.engine.peer_reset_token
    assert token is not None
    cid = connection.engine.host_cid if known_cid else os.urandom(CID_LENGTH)
    return b"\x40" + cid + os.urandom(20) + token


def deliver(here: World, data: bytes, *, source: tuple[str, int] | None = None) -> None:
    """Let *data* arrive at the client, from the server's address if no other is named."""
    here.net.carry(data, source or here.server.address, here.client.local_address)


def forged(reset: bytes) -> dict[str, bytes]:
    flipped = bytes([reset[-1] ^ 1])
    return {
        "a wrong token": reset[:-TOKEN_BYTES] + os.urandom(TOKEN_BYTES),
        "a token with one bit wrong": reset[:-1] + flipped,
        "cut short": reset[:-1],
        "the token is not at the end": reset + b"\0",
        "too short to be a packet": b"\x40\0\0\0" + reset[-TOKEN_BYTES:],
        "the token alone": reset[-TOKEN_BYTES:],
    }


async def test_forged_resets_do_nothing(autojump_clock: MockClock) -> None:
    async with world() as here:
        dialer, acceptor = await here.connect()
        old = reset_of(dialer)
        dialer.engine.change_connection_id()
        unused = dialer.engine._peer_cid_available[0].stateless_reset_token
        await exchange(dialer, acceptor, b"the old connection ID is retired")
        for known_cid in (False, True):
            reset = reset_of(dialer, known_cid=known_cid)
            for data in forged(reset).values():
                deliver(here, data)
            deliver(here, old)
            deliver(here, reset[:-TOKEN_BYTES] + unused)
            deliver(here, reset, source=("192.0.2.9", 1))
            deliver(here, reset, source=("198.51.100.1", here.server.address[1]))
        await trio.sleep(1)
        assert here.client.counters["stateless_reset_received"] == 0
        await exchange(dialer, acceptor, b"unmoved")
        assert dialer.close_reason is None


@pytest.mark.parametrize("kind", ["unknown id", "known id", "long header", "malformed", "21 bytes"])
async def test_a_reset_ends_its_connection_and_no_other(
    kind: str, autojump_clock: MockClock
) -> None:
    async with world() as here:
        others = [await here.connect() for _ in range(3)]
        dialer, _ = await here.connect()
        reset = reset_of(dialer, known_cid=kind == "known id")
        if kind == "long header":
            reset = b"\xc0\0\0\0\x01\x08" + bytes(8) + b"\0" + reset
        if kind == "malformed":
            reset = b"\xc0\0\0\0\x01\x40" + reset
        if kind == "21 bytes":
            reset = reset[-21:]
        deliver(here, reset)
        await expect_reset(dialer)
        assert here.client.counters["stateless_reset_received"] == 1
        deliver(here, reset)  # once more: it is over
        await trio.sleep(0.1)
        assert here.client.counters.keys() == {"stateless_reset_received"}
        for near, far in others:
            await exchange(near, far, b"unharmed")


async def test_an_acceptor_is_reset_by_its_client_too(autojump_clock: MockClock) -> None:
    async with world() as here:
        dialer, acceptor = await here.connect()
        acceptor.engine.change_connection_id()
        await exchange(acceptor, dialer, b"to a connection ID with a token")
        reset = reset_of(acceptor)
        here.net.carry(reset, here.client.local_address, here.server.address)
        await expect_reset(acceptor)
        # The client, told nothing, asks: the node has no state any more once the drain is over.
        stream = await dialer.open_stream()
        await stream.send_all(b"hello?")
        await expect_reset(dialer)
        await trio.sleep(10)
        assert here.is_empty()


async def test_the_address_of_a_reset_follows_a_peer_that_moves(autojump_clock: MockClock) -> None:
    async with world() as here:
        dialer, acceptor = await here.connect()
        before, after = here.client.local_address, ("192.0.2.77", 7777)
        here.net.rebind(here.client._socket, after)  # type: ignore[arg-type]
        await exchange(dialer, acceptor, b"moved")
        acceptor.engine.change_connection_id()
        await exchange(acceptor, dialer, b"to a connection ID with a token")
        reset = reset_of(acceptor)
        here.net.carry(reset, before, here.server.address)
        await trio.sleep(0.1)
        assert acceptor.close_reason is None
        here.net.carry(reset, after, here.server.address)
        await expect_reset(acceptor)


async def test_a_flood_of_strays_gets_a_trickle_of_answers(autojump_clock: MockClock) -> None:
    async with world() as here:
        dialer, acceptor = await here.connect()
        stranger = here.net.host("198.51.100.1")
        for _ in range(1_000):
            stranger.send(trigger(1200, os.urandom(CID_LENGTH)), here.server.address)
        await trio.sleep(0.5)
        counters = here.server.endpoint.counters
        assert counters["stateless_reset_sent"] == RESETS_PER_S
        silent = counters["stateless_reset_withheld"] + counters["overrun"]
        assert silent == 1_000 - RESETS_PER_S
        assert counters["stateless_reset_withheld"] >= MAX_NEWCOMERS - RESETS_PER_S
        await exchange(dialer, acceptor, b"unimpressed")


async def test_a_socket_that_only_dials_sends_no_reset(autojump_clock: MockClock) -> None:
    async with world() as here:
        stranger = here.net.host("198.51.100.1")
        stranger.send(trigger(1200), here.client.local_address)
        await trio.sleep(0.1)
        await wait_all_tasks_blocked()
        assert here.client.counters == {"unknown_connection_id": 1}
        assert not stranger._under_way

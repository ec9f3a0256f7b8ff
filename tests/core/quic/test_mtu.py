"""Path MTU discovery: what a path takes is found, used, and given up when it takes it no more."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

import pytest
import trio
from aioquic._buffer import Buffer
from aioquic.quic.packet import QuicTransportParameters, push_quic_transport_parameters
from trio.testing import MockClock

from alknet.core.limits import Limits
from alknet.core.quic.connection import QuicConnection
from alknet.core.quic.mtu import (
    BASE_BYTES,
    MAX_PROBES,
    RAISE_TIMER_S,
    Search,
    announced_payload,
    probe_sizes,
)
from alknet.core.quic.policy import client_policy
from alknet.testing.network import FakeNetwork
from alknet.testing.worlds import FakeEndpoints, open_fake_endpoints
from tests.core.quic.pairs import quic_client, quic_server
from tests.core.quic.sansio import connected
from tests.core.quic.test_windows import transfer

KIB = 1024
MIB = 1024 * KIB
ALPN = "alknet/test"


# the search


def test_a_search_climbs_until_a_size_is_lost_three_times() -> None:
    search = Search((1400, 1500, 9000))
    for size in (1400, 1500):
        assert search.probe(0.0) == size
        search.on_sent()
        assert search.probe(0.0) is None  # one at a time
        search.on_acknowledged(size)
        assert search.size == size
    for _ in range(MAX_PROBES):
        assert search.probe(5.0) == 9000
        search.on_sent()
        search.on_lost(5.0)
    assert search.size == 1500
    assert search.probe(5.0 + RAISE_TIMER_S - 1) is None
    assert search.probe(5.0 + RAISE_TIMER_S) == 9000


def test_a_search_ends_at_the_top_for_good() -> None:
    search = Search((1400,))
    search.on_sent()
    search.on_acknowledged(1400)
    assert search.probe(1e9) is None


def test_losses_of_a_probe_do_not_add_up_over_sizes() -> None:
    search = Search((1400, 1500))
    for size in (1400, 1500):
        for _ in range(MAX_PROBES - 1):
            assert search.probe(0.0) == size
            search.on_sent()
            search.on_lost(0.0)
        search.on_sent()
        search.on_acknowledged(size)
    assert search.size == 1500


def test_a_size_in_doubt_is_probed_again() -> None:
    search = Search((1400, 1500))
    search.verify()  # the base is never in doubt
    for size in (1400, 1500):
        assert search.probe(0.0) == size
        search.on_sent()
        search.on_acknowledged(size)
    search.verify()
    assert search.probe(0.0) == 1500
    search.on_sent()
    search.on_acknowledged(1500)
    assert search.probe(0.0) is None
    search.verify()
    for _ in range(MAX_PROBES):
        assert search.probe(0.0) == 1500
        search.on_sent()
        search.on_lost(0.0)
    assert search.size == BASE_BYTES
    assert search.probe(0.0) == 1400


@pytest.mark.parametrize(
    ("host", "at_most", "sizes"),
    [
        ("192.0.2.1", 65_527, (1392, 1472)),
        ("2001:db8::1", 65_527, (1372, 1452)),
        ("fe80::1%2", 65_527, (1372, 1452)),
        ("127.0.0.1", 65_527, (1392, 1472, 8972, 16_000)),
        ("::1", 65_527, (1372, 1452, 8952, 16_000)),
        ("127.0.0.1", 2_000, (1392, 1472, 2_000)),
        ("192.0.2.1", 1_450, (1392, 1_450)),
        ("192.0.2.1", 1_200, ()),
    ],
)
def test_what_is_tried_depends_on_the_address_and_the_peer(
    host: str, at_most: int, sizes: tuple[int, ...]
) -> None:
    assert probe_sizes(host, at_most) == sizes


def test_the_peers_maximum_is_read_from_its_transport_parameters() -> None:
    for announced, expected in ((None, 65_527), (1_452, 1_452), (100_000, 65_527)):
        buf = Buffer(capacity=200)
        parameters = QuicTransportParameters(
            max_idle_timeout=1000, max_udp_payload_size=announced, initial_max_data=70_000
        )
        push_quic_transport_parameters(buf, parameters)
        assert announced_payload(buf.data) == expected


# engines


def test_an_idle_connection_sends_no_probes() -> None:
    pair = connected()
    pair.run(20)
    assert max(map(len, pair.client.sent + pair.server.sent)) <= BASE_BYTES
    assert pair.dialer.path_mtu == BASE_BYTES


def test_a_probe_is_one_packet_of_its_size_and_no_concern_of_congestion_control() -> None:
    pair = connected()
    engine = pair.dialer
    engine._has_sent_datagrams = True
    in_flight = engine._loss.bytes_in_flight
    (probe,) = (data for data, _ in engine.datagrams_to_send(pair.now))
    assert len(probe) == 1392
    assert engine._loss.bytes_in_flight == in_flight
    timer = engine.get_timer()
    assert timer is not None
    assert timer - pair.now < 2  # its loss will be noticed
    pair.deliver(probe, to_server=True)
    pair.run(0.5)
    assert engine.path_mtu == 1472
    assert pair.acceptor.path_mtu == BASE_BYTES


def test_lost_probes_leave_the_congestion_window_alone() -> None:
    pair = connected()
    pair.filter = lambda data, _: [data] if len(data) <= 1400 else []
    window = pair.dialer._loss.congestion_window
    pair.dialer.send_datagram_frame(b"x")
    for _ in range(20):
        pair.run(2)
        pair.dialer.send_ping(0)
    assert pair.dialer.path_mtu == 1392
    probes = [data for data in pair.client.sent if len(data) == 1472]
    assert len(probes) == MAX_PROBES
    assert pair.dialer._loss.congestion_window >= window
    assert pair.dialer._congestion.full_losses == 0


def test_datagram_frames_grow_with_the_path() -> None:
    pair = connected()
    short = pair.dialer.max_datagram_payload
    pair.dialer.send_datagram_frame(b"x")
    pair.run()
    assert pair.dialer.max_datagram_payload == short + 1472 - BASE_BYTES
    longest = bytes(pair.dialer.max_datagram_payload)
    pair.dialer.send_datagram_frame(longest)
    pair.run()
    assert len(pair.client.sent) > 0
    assert 1472 in map(len, pair.client.sent)


# whole endpoints


async def sends(ends: FakeEndpoints, amount: int = 1 * MIB) -> QuicConnection:
    """Transfer so much from a dialer, which is returned."""
    dialer, acceptor = await ends.connect(ALPN)
    await transfer(dialer, acceptor, amount)
    return dialer


async def test_bulk_finds_what_ethernet_takes(autojump_clock: MockClock) -> None:
    async with open_fake_endpoints(FakeNetwork(), alpns=[ALPN]) as ends:
        dialer = await sends(ends)
        assert dialer.engine.path_mtu == 1472
        control = dialer.engine._congestion
        assert control._max_datagram_size == dialer.engine._loss._pacer._max_datagram_size == 1472


@pytest.mark.parametrize("mtu", [1200, 1392, 1471])
async def test_a_black_hole_from_the_start_costs_three_probes(
    autojump_clock: MockClock, mtu: int
) -> None:
    network = FakeNetwork(mtu=mtu)
    async with open_fake_endpoints(network, alpns=[ALPN]) as ends:
        dialer = await sends(ends, 3 * MIB)
        assert dialer.engine.path_mtu == (BASE_BYTES if mtu == 1200 else 1392)
        assert network.counters["too_long"] == MAX_PROBES


async def test_a_path_that_shrinks_under_bulk_loses_no_byte(autojump_clock: MockClock) -> None:
    network = FakeNetwork()
    async with open_fake_endpoints(network, alpns=[ALPN]) as ends:
        dialer = await sends(ends)
        assert dialer.engine.path_mtu == 1472
        network.mtu = 1300
        (acceptor,) = ends.server.connections
        with trio.fail_after(20):
            await transfer(dialer, acceptor, 1 * MIB)
        assert dialer.engine.path_mtu == BASE_BYTES
        assert dialer.close_reason is None


async def test_small_packets_that_arrive_do_not_hide_a_black_hole(
    autojump_clock: MockClock,
) -> None:
    network = FakeNetwork()
    async with open_fake_endpoints(network, alpns=[ALPN]) as ends:
        dialer = await sends(ends)
        (acceptor,) = ends.server.connections
        network.mtu = 1300
        with trio.fail_after(20):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(chatter, dialer)
                await transfer(dialer, acceptor, 1 * MIB)
                nursery.cancel_scope.cancel()
        assert dialer.engine.path_mtu == BASE_BYTES


async def chatter(connection: QuicConnection) -> None:
    while True:
        connection.send_datagram(b"still here")
        await trio.sleep(0.005)


async def test_a_lossy_path_is_no_black_hole(autojump_clock: MockClock) -> None:
    network = FakeNetwork(seed=4, loss=0.03)
    async with open_fake_endpoints(network, alpns=[ALPN]) as ends:
        dialer = await sends(ends, 2 * MIB)
        assert dialer.engine._congestion.full_losses > 10
        assert dialer.engine.path_mtu == 1472


async def test_it_searches_again_after_ten_minutes(autojump_clock: MockClock) -> None:
    network = FakeNetwork(mtu=1400)
    async with open_fake_endpoints(network, alpns=[ALPN]) as ends:
        dialer = await sends(ends)
        assert dialer.engine.path_mtu == 1392
        network.mtu = None
        await trio.sleep(RAISE_TIMER_S / 2)
        assert dialer.engine.path_mtu == 1392
        await trio.sleep(RAISE_TIMER_S / 2 + 20)
        assert dialer.engine.path_mtu == 1472


async def test_a_peer_that_moved_is_sent_short_packets_first(autojump_clock: MockClock) -> None:
    network = FakeNetwork()
    async with open_fake_endpoints(network, alpns=[ALPN]) as ends:
        dialer, acceptor = await ends.connect(ALPN)
        await transfer(acceptor, dialer, 1 * MIB)
        assert acceptor.engine.path_mtu == 1472
        network.mtu = 1250
        network.rebind(ends.client_socket, ("198.51.100.7", 7777))
        stream = await dialer.open_stream()
        await stream.send_all(b"from elsewhere")
        await trio.sleep(1)
        assert acceptor.remote_address == "198.51.100.7:7777"
        assert acceptor.engine.path_mtu == BASE_BYTES
        with trio.fail_after(10):
            await transfer(acceptor, dialer, 1 * MIB)


@asynccontextmanager
async def loopback_pair() -> AsyncGenerator[tuple[FakeNetwork, QuicConnection, QuicConnection]]:
    network = FakeNetwork(delay=0.0005)
    async with (
        quic_server(socket=network.socket(("127.0.0.1", 0)), alpns=[ALPN]) as server,
        quic_client(socket=network.socket(("127.0.0.1", 0))) as client,
    ):
        policy = client_policy(server.trust, None)
        dialer = await client.connect(server.address, alpn=ALPN, policy=policy)
        yield network, dialer, await server.accepted.receive()


async def test_loopback_takes_jumbo_packets(autojump_clock: MockClock) -> None:
    async with loopback_pair() as (network, dialer, acceptor):
        await transfer(dialer, acceptor, 2 * MIB)
        assert dialer.engine.path_mtu == 16_000
        assert max(passage.size for passage in network.trace) == 16_000
        await transfer(acceptor, dialer, 2 * MIB)


async def test_over_the_systems_own_loopback(nursery: trio.Nursery) -> None:
    with trio.fail_after(20):
        async with quic_server(alpns=[ALPN]) as server, quic_client() as client:
            policy = client_policy(server.trust, None)
            dialer = await client.connect(server.address, alpn=ALPN, policy=policy)
            acceptor = await server.accepted.receive()
            await transfer(dialer, acceptor, 4 * MIB)
            assert dialer.engine.path_mtu == 16_000


async def test_a_node_can_be_told_to_send_short_packets_only(autojump_clock: MockClock) -> None:
    limits = Limits(udp_payload_bytes=BASE_BYTES)
    async with open_fake_endpoints(FakeNetwork(), alpns=[ALPN], limits=limits) as ends:
        dialer = await sends(ends)
        assert dialer.engine.path_mtu == BASE_BYTES

"""Who gets in over TLS on a byte stream, who does not, and what each side is told."""

from __future__ import annotations

import contextlib
from functools import partial

import pytest
import trio
from trio.testing import memory_stream_pair

from alknet.core.tcp.handshake import accept_tls, dial_tls
from alknet.core.tls.errors import ALERT_NO_APPLICATION_PROTOCOL, HandshakeFailed
from alknet.core.tls.trust import PinnedKey, WebPki
from alknet.errors import LocalError
from alknet.testing.contract import cancel_at_every_checkpoint
from tests.core.tcp.impostor import Impostor
from tests.core.tcp.rig import ALPN, CLIENT, SERVER, STRANGER, shake_hands


async def test_both_ends_prove_their_keys() -> None:
    client, server = (await shake_hands()).connections
    assert client.peer_key == SERVER.node_id
    assert server.peer_key == CLIENT.node_id
    assert client.alpn == server.alpn == ALPN
    assert client.server_name is server.server_name is None


async def test_a_client_without_a_key_is_anonymous() -> None:
    _, server = (await shake_hands(shown=None)).connections
    assert server.peer_key is None


async def test_the_servers_order_of_alpns_counts() -> None:
    client, server = (await shake_hands(alpns=["other/1", ALPN])).connections
    assert client.alpn == server.alpn == ALPN


async def test_another_key_than_the_pinned_one_is_refused_in_words() -> None:
    client, server = (await shake_hands(trust=PinnedKey(STRANGER.node_id))).failures
    assert STRANGER.node_id.short in str(client)
    assert SERVER.node_id.short in str(client)
    assert not client.by_peer
    assert server.by_peer
    assert server.alert == client.alert == 48
    assert "unknown_ca" in str(server)


async def test_no_common_alpn_is_alert_120_on_both_sides() -> None:
    client, server = (await shake_hands(alpn="other/1")).failures
    assert client.alert == server.alert == ALERT_NO_APPLICATION_PROTOCOL
    assert client.by_peer
    assert not server.by_peer
    assert "other/1" in str(server)
    assert "no_application_protocol" in str(client)


async def test_a_name_that_no_authority_vouches_for_is_refused() -> None:
    client, server = (await shake_hands(trust=WebPki("one.test"))).failures
    assert "one.test is not trusted" in str(client)
    assert server.by_peer


async def test_sni_is_sent_for_names_only() -> None:
    _, server = (await shake_hands(server_name="Peer.Test.")).connections
    assert server.server_name == "peer.test"
    _, server = (await shake_hands(server_name="127.0.0.1")).connections
    assert server.server_name is None


@pytest.mark.parametrize("is_liar", [True, False])
async def test_a_server_with_a_stolen_certificate_is_refused(is_liar: bool) -> None:
    near, far = memory_stream_pair()
    key = STRANGER.key if is_liar else SERVER.key
    server = Impostor(far, is_client=False, alpn=ALPN, certificate=SERVER.certificate, key=key)
    dial = partial(dial_tls, near, alpn=ALPN, credentials=None, trust=PinnedKey(SERVER.node_id))
    alerts: list[int | None] = []

    async def serve() -> None:
        alerts.append(await server.shake_hands())

    with trio.fail_after(60):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(serve)
            if not is_liar:
                assert (await dial()).peer_key == SERVER.node_id
                return
            with pytest.raises(HandshakeFailed) as caught:
                await dial()
    assert (caught.value.alert, caught.value.by_peer) == (51, False)
    assert alerts == [51]


@pytest.mark.parametrize("is_liar", [True, False])
async def test_a_client_with_a_stolen_certificate_is_refused(is_liar: bool) -> None:
    near, far = memory_stream_pair()
    key = STRANGER.key if is_liar else CLIENT.key
    client = Impostor(near, is_client=True, alpn=ALPN, certificate=CLIENT.certificate, key=key)
    with trio.fail_after(60):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(client.shake_hands)
            if not is_liar:
                assert (await accept_tls(far, SERVER, [ALPN])).peer_key == CLIENT.node_id
                return
            with pytest.raises(HandshakeFailed) as caught:
                await accept_tls(far, SERVER, [ALPN])
    assert (caught.value.alert, caught.value.by_peer) == (51, False)


async def test_garbage_is_refused_and_the_stream_closed() -> None:
    near, far = memory_stream_pair()
    await near.send_all(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n" * 100)
    with pytest.raises(HandshakeFailed, match="TLS handshake failed"):
        await accept_tls(far, SERVER, [ALPN])
    with pytest.raises(trio.ClosedResourceError):
        await far.send_all(b"x")


async def test_half_a_client_hello_waits_for_the_callers_time_out(
    autojump_clock: trio.testing.MockClock,
) -> None:
    hello = await _client_hello()
    near, far = memory_stream_pair()
    await near.send_all(hello[: len(hello) // 2])
    with pytest.raises(trio.TooSlowError):
        with trio.fail_after(5):
            await accept_tls(far, SERVER, [ALPN])
    with pytest.raises(trio.ClosedResourceError):
        await far.send_all(b"x")


async def test_a_peer_that_leaves_in_mid_handshake_is_named() -> None:
    hello = await _client_hello()
    near, far = memory_stream_pair()
    await near.send_all(hello[:20])
    await near.aclose()
    with pytest.raises(HandshakeFailed, match="closed the link during the TLS handshake") as caught:
        await accept_tls(far, SERVER, [ALPN])
    assert caught.value.by_peer


async def test_a_client_hello_byte_by_byte_is_as_good() -> None:
    client, relay_near = memory_stream_pair()
    relay_far, server = memory_stream_pair()

    async def relay(source: trio.abc.ReceiveStream, sink: trio.abc.SendStream) -> None:
        while data := await source.receive_some(1):
            await sink.send_all(data)

    with trio.fail_after(60):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(relay, relay_near, relay_far)
            nursery.start_soon(relay, relay_far, relay_near)
            nursery.start_soon(
                partial(
                    dial_tls,
                    client,
                    alpn=ALPN,
                    credentials=CLIENT,
                    trust=PinnedKey(SERVER.node_id),
                )
            )
            assert (await accept_tls(server, SERVER, [ALPN])).peer_key == CLIENT.node_id
            nursery.cancel_scope.cancel()


async def test_accepting_cancelled_at_each_checkpoint_closes_the_stream() -> None:
    far: list[trio.abc.Stream] = []

    async def handshake() -> None:
        near, end = memory_stream_pair()
        far.append(end)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_dial_quietly, near)
            await accept_tls(end, SERVER, [ALPN])
            # It came to its end: the stream is the connection's now.
            far.remove(end)

    assert await cancel_at_every_checkpoint(handshake) > 3
    assert far
    for stream in far:
        with pytest.raises(trio.ClosedResourceError):
            await stream.send_all(b"x")


async def test_dialling_cancelled_at_each_checkpoint_closes_the_stream() -> None:
    near: list[trio.abc.Stream] = []

    async def handshake() -> None:
        start, end = memory_stream_pair()
        near.append(start)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_accept_quietly, end)
            await dial_tls(start, alpn=ALPN, credentials=CLIENT, trust=PinnedKey(SERVER.node_id))
            near.remove(start)

    assert await cancel_at_every_checkpoint(handshake) > 3
    assert near
    for stream in near:
        with pytest.raises(trio.ClosedResourceError):
            await stream.send_all(b"x")


@pytest.mark.parametrize("name", ["", ".", "a" * 64 + ".test", "a..b"])
async def test_an_impossible_server_name_is_the_callers_fault(name: str) -> None:
    near, _ = memory_stream_pair()
    with pytest.raises(LocalError):
        await dial_tls(near, alpn=ALPN, credentials=None, trust=WebPki(name))
    with pytest.raises(trio.ClosedResourceError):
        await near.send_all(b"x")


async def _client_hello() -> bytes:
    near, far = memory_stream_pair()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(_dial_quietly, near)
        hello = await far.receive_some(65_536)
        nursery.cancel_scope.cancel()
    return bytes(hello)


async def _dial_quietly(stream: trio.abc.Stream) -> None:
    with contextlib.suppress(HandshakeFailed):
        await dial_tls(stream, alpn=ALPN, credentials=CLIENT, trust=PinnedKey(SERVER.node_id))


async def _accept_quietly(stream: trio.abc.Stream) -> None:
    with contextlib.suppress(HandshakeFailed):
        await accept_tls(stream, SERVER, [ALPN])

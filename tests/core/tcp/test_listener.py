"""Listening, accepting and dialling on TCP."""

from __future__ import annotations

import errno
import logging
import resource
import socket

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from alknet.core.limits import Limits
from alknet.core.tcp.listener import addresses_of, connect_tcp, listen_tcp, serve

LIMITS = Limits(idle_timeout_s=30, keep_alive_s=10)


async def test_streams_of_all_addresses_reach_the_callback() -> None:
    listeners = await listen_tcp([("127.0.0.1", 0), ("127.0.0.1", 0)])
    seen: list[str] = []

    async def on_stream(stream: trio.SocketStream) -> None:
        seen.append(addresses_of(stream)[1])
        await stream.send_all(b"hello")

    with trio.fail_after(60):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(serve, listeners, on_stream, lambda: LIMITS)
            for listener in listeners:
                port = listener.socket.getsockname()[1]
                async with await connect_tcp("127.0.0.1", port, LIMITS) as stream:
                    assert await stream.receive_some() == b"hello"
                    # The callback has returned: its stream is closed.
                    assert await stream.receive_some() == b""
                    assert addresses_of(stream)[0] == seen[-1] == f"127.0.0.1:{port}"
            nursery.cancel_scope.cancel()
    for listener in listeners:
        assert listener.socket.fileno() == -1


async def test_an_address_in_use_is_named_and_nothing_stays_open() -> None:
    (taken,) = await listen_tcp([("127.0.0.1", 0)])
    async with taken:
        port = taken.socket.getsockname()[1]
        with pytest.raises(OSError, match=f"cannot listen on TCP 127.0.0.1:{port}") as caught:
            await listen_tcp([("127.0.0.1", 0), ("127.0.0.1", port)])
        assert caught.value.errno == errno.EADDRINUSE


async def test_nobody_there_is_an_os_error() -> None:
    with socket.socket() as held:  # who is bound, but does not listen, keeps others away
        held.bind(("127.0.0.1", 0))
        with pytest.raises(OSError, match="refused"):
            await connect_tcp("127.0.0.1", held.getsockname()[1], LIMITS)


async def test_a_name_is_no_address() -> None:
    with pytest.raises(OSError, match="Name or service not known"):
        await connect_tcp("localhost", 1, LIMITS)


async def test_both_ends_notice_a_dead_link_within_the_idle_time_out() -> None:
    (listener,) = await listen_tcp([("127.0.0.1", 0)])
    port = listener.socket.getsockname()[1]
    options: list[list[int]] = []

    async def on_stream(stream: trio.SocketStream) -> None:
        options.append(_options(stream))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(serve, [listener], on_stream, lambda: LIMITS)
        async with await connect_tcp("127.0.0.1", port, LIMITS) as stream:
            options.append(_options(stream))
            await stream.receive_some()
        nursery.cancel_scope.cancel()
    assert options == [[1, 1, 10, 10, 2, 30_000]] * 2


def _options(stream: trio.SocketStream) -> list[int]:
    tcp = socket.IPPROTO_TCP
    return [
        int(bool(stream.getsockopt(tcp, socket.TCP_NODELAY))),
        int(bool(stream.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE))),
        int(stream.getsockopt(tcp, socket.TCP_KEEPIDLE)),
        int(stream.getsockopt(tcp, socket.TCP_KEEPINTVL)),
        int(stream.getsockopt(tcp, socket.TCP_KEEPCNT)),
        int(stream.getsockopt(tcp, socket.TCP_USER_TIMEOUT)),
    ]


async def test_out_of_descriptors_it_waits_and_goes_on(caplog: pytest.LogCaptureFixture) -> None:
    (listener,) = await listen_tcp([("127.0.0.1", 0)])
    port = listener.socket.getsockname()[1]
    client = socket.socket()

    async def on_stream(stream: trio.SocketStream) -> None:
        await stream.send_all(b"at last")

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with trio.fail_after(60), caplog.at_level(logging.WARNING):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(serve, [listener], on_stream, lambda: LIMITS)
            await wait_all_tasks_blocked()
            resource.setrlimit(resource.RLIMIT_NOFILE, (3, hard))
            try:
                client.connect(("127.0.0.1", port))
                while "tcp.accept_paused" not in caplog.messages:
                    await trio.sleep(0.001)
            finally:
                resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
            stream = trio.SocketStream(trio.socket.from_stdlib_socket(client))
            assert await stream.receive_some() == b"at last"
            await stream.aclose()
            nursery.cancel_scope.cancel()


async def test_a_streams_addresses_have_brackets_for_ipv6() -> None:
    (listener,) = await listen_tcp([("::1", 0)])
    port = listener.socket.getsockname()[1]
    async with listener, await connect_tcp("::1", port, LIMITS) as stream:
        assert addresses_of(stream)[0] == f"[::1]:{port}"

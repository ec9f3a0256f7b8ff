"""What every `Connection` promises, whatever carries it; capability flags choose the claims."""

from __future__ import annotations

import hashlib
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from alknet.core.contracts import Connection, ConnectionEnded, Stream, StreamReset
from alknet.core.limits import Limits
from alknet.errors import LocalError
from alknet.testing.contract import cancel_at_every_checkpoint
from tests.contracts.carriers import (
    ACCEPTOR,
    ALL,
    ALPN,
    CAPABILITIES,
    CARRIERS,
    CLOSE_CODE,
    DATAGRAMS,
    DIALER,
    MANY_STREAMS,
    NO_CLOSE_CODE,
    NO_DATAGRAMS,
    ONE_STREAM,
)

over_all = pytest.mark.parametrize("carrier", ALL)
over_many_streams = pytest.mark.parametrize("carrier", MANY_STREAMS)
over_one_stream = pytest.mark.parametrize("carrier", ONE_STREAM)
over_datagrams = pytest.mark.parametrize("carrier", DATAGRAMS)
over_no_datagrams = pytest.mark.parametrize("carrier", NO_DATAGRAMS)
over_close_code = pytest.mark.parametrize("carrier", CLOSE_CODE)
over_no_close_code = pytest.mark.parametrize("carrier", NO_CLOSE_CODE)

MIB = 1 << 20
GONE = (trio.BrokenResourceError, trio.ClosedResourceError)


@asynccontextmanager
async def pair(
    carrier: str, limits: Limits | None = None
) -> AsyncGenerator[tuple[Connection, Connection]]:
    with trio.fail_after(30):
        async with CARRIERS[carrier](limits or Limits()) as ends:
            yield ends


@asynccontextmanager
async def stream_pair(
    carrier: str, limits: Limits | None = None
) -> AsyncGenerator[tuple[Stream, Stream, Connection, Connection]]:
    """Yield a stream that both ends know of (the dialler's end first), and their connections."""
    async with pair(carrier, limits) as (dialer, acceptor):
        near, far = await streams_between(dialer, acceptor)
        yield near, far, dialer, acceptor


async def streams_between(opener: Connection, other: Connection) -> tuple[Stream, Stream]:
    near = await opener.open_stream()
    await near.send_all(b"!")
    far = await other.accept_stream()
    assert await far.receive_some(1) == b"!"
    return near, far


async def receive_all(stream: Stream) -> bytes:
    received = bytearray()
    while data := await stream.receive_some():
        received += data
    return bytes(received)


async def receive_exactly(stream: Stream, size: int) -> bytes:
    received = bytearray()
    while len(received) < size:
        data = await stream.receive_some(size - len(received))
        assert data, "the stream ended early"
        received += data
    return bytes(received)


async def send_without_end(stream: Stream) -> None:
    while True:
        await stream.send_all(b"x" * 1000)


async def echo(one: Stream, other: Stream, word: bytes) -> None:
    """Both directions work."""
    await one.send_all(word)
    assert await receive_exactly(other, len(word)) == word
    await other.send_all(word[::-1])
    assert await receive_exactly(one, len(word)) == word[::-1]


class Pusher:
    """Sends without end, and counts what `send_all` took."""

    def __init__(self, stream: Stream) -> None:
        self.stream = stream
        self.taken = 0
        self.scope = trio.CancelScope()

    async def run(self) -> None:
        with self.scope:
            while True:
                await self.stream.send_all(b"x" * 65_536)
                self.taken += 65_536

    async def until_stuck(self) -> int:
        before = -1
        while self.taken != before:
            before = self.taken
            await wait_all_tasks_blocked(0.05)
        return before


# The connection


@over_all
async def test_ends_say_who_they_are(carrier: str) -> None:
    async with pair(carrier) as (dialer, acceptor):
        assert dialer.is_dialer
        assert not acceptor.is_dialer
        assert dialer.alpn == acceptor.alpn == ALPN
        assert dialer.carrier == acceptor.carrier == CAPABILITIES[carrier]
        assert dialer.peer_key == ACCEPTOR.node_id
        assert acceptor.peer_key == DIALER.node_id
        assert dialer.close_reason is None
        assert dialer.remote_address
        assert acceptor.remote_address


@over_all
async def test_no_task_is_left(carrier: str) -> None:
    before = trio.lowlevel.current_statistics().tasks_living
    async with stream_pair(carrier) as (near, far, _, _):
        await echo(near, far, b"hello")
    assert trio.lowlevel.current_statistics().tasks_living == before


@over_close_code
@pytest.mark.parametrize("closer", [0, 1])
async def test_close_delivers_code_and_reason(carrier: str, closer: int) -> None:
    async with pair(carrier) as ends:
        ends[closer].close(4, "the node stops")
        seen = await ends[1 - closer].wait_closed()
        assert (seen.code, seen.reason) == (4, "the node stops")
        assert seen.by_peer
        assert not seen.is_transport
        own = await ends[closer].wait_closed()
        assert (own.code, own.reason, own.by_peer) == (4, "the node stops", False)


@over_no_close_code
@pytest.mark.parametrize("closer", [0, 1])
async def test_close_without_codes_is_a_clean_end(carrier: str, closer: int) -> None:
    async with pair(carrier) as ends:
        ends[closer].close(4, "the node stops")
        own = await ends[closer].wait_closed()
        assert (own.code, own.reason, own.by_peer) == (4, "the node stops", False)
        seen = await ends[1 - closer].wait_closed()
        assert (seen.code, seen.by_peer, seen.is_transport) == (0, True, False)


@over_all
async def test_close_reason_is_cut_to_512_bytes_of_whole_characters(carrier: str) -> None:
    async with pair(carrier) as (dialer, _):
        dialer.close(1, "é" * 600)
        assert (await dialer.wait_closed()).reason == "é" * 256


@over_all
async def test_close_is_idempotent_and_the_first_reason_stays(carrier: str) -> None:
    async with pair(carrier) as (dialer, _):
        await dialer.aclose(1, "first")
        await dialer.aclose(2, "second")
        dialer.close(3, "third")
        assert dialer.close_reason is not None
        assert dialer.close_reason.code == 1


@over_all
async def test_calls_after_own_close_raise_closed(carrier: str) -> None:
    async with stream_pair(carrier) as (near, _, dialer, _):
        await dialer.aclose()
        for call in _calls(dialer, near):
            with pytest.raises(trio.ClosedResourceError):
                await call()


@over_all
async def test_calls_that_wait_end_when_the_connection_is_closed_here(carrier: str) -> None:
    async with stream_pair(carrier) as (near, _, dialer, _):
        ended: list[type[BaseException]] = []
        async with trio.open_nursery() as nursery:
            for wait in (near.receive_some, dialer.accept_stream, dialer.accept_uni_stream):
                nursery.start_soon(_note_end, wait, ended)
            await wait_all_tasks_blocked()
            dialer.close()
        assert ended == [trio.ClosedResourceError] * 3


@over_all
async def test_calls_that_wait_end_when_the_peer_closes(carrier: str) -> None:
    async with pair(carrier) as (dialer, acceptor):
        ended: list[type[BaseException]] = []
        async with trio.open_nursery() as nursery:
            for wait in (
                dialer.accept_stream,
                dialer.accept_uni_stream,
                dialer.receive_datagram,
            ):
                nursery.start_soon(_note_end, wait, ended)
            await wait_all_tasks_blocked()
            acceptor.close()
        assert ended == [ConnectionEnded] * 3
        with pytest.raises(ConnectionEnded):
            await dialer.open_stream()


@over_all
async def test_sending_to_a_peer_that_has_closed_raises_connection_ended(carrier: str) -> None:
    async with stream_pair(carrier) as (near, _, dialer, acceptor):
        await acceptor.aclose()
        await dialer.wait_closed()
        with pytest.raises(ConnectionEnded) as caught:
            await near.send_all(b"anyone?")
        assert caught.value.close.by_peer


@over_all
async def test_wait_closed_can_be_cancelled_and_awaited_by_many(carrier: str) -> None:
    async with stream_pair(carrier) as (near, far, dialer, acceptor):
        with trio.move_on_after(0.01):
            await dialer.wait_closed()
        await echo(near, far, b"still here")
        async with trio.open_nursery() as nursery:
            for _ in range(3):
                nursery.start_soon(dialer.wait_closed)
            await wait_all_tasks_blocked()
            acceptor.close()


@over_all
async def test_aclose_that_is_cancelled_closes_all_the_same(carrier: str) -> None:
    async with stream_pair(carrier) as (_, _, dialer, acceptor):
        with trio.CancelScope() as scope:
            scope.cancel()
            await dialer.aclose()
        assert dialer.close_reason is not None
        assert (await acceptor.wait_closed()).by_peer


# Streams


@over_all
async def test_bytes_go_both_ways(carrier: str) -> None:
    async with stream_pair(carrier) as (near, far, _, _):
        for word in (b"a", b"bytes", bytes(range(256)) * 64):
            await echo(near, far, word)


@over_all
async def test_sending_nothing_is_no_end(carrier: str) -> None:
    async with stream_pair(carrier) as (near, far, _, _):
        await near.send_all(b"")
        await echo(near, far, b"x")


@over_all
async def test_any_buffer_can_be_sent(carrier: str) -> None:
    async with stream_pair(carrier) as (near, far, _, _):
        await near.send_all(bytearray(b"ab"))
        await near.send_all(memoryview(b"cdef")[1:3])
        assert await receive_exactly(far, 4) == b"abde"


@over_all
async def test_receive_some_takes_at_most_what_is_asked(carrier: str) -> None:
    async with stream_pair(carrier) as (near, far, _, _):
        await near.send_all(b"abcdef")
        assert await far.receive_some(1) == b"a"
        assert b"bcd".startswith(await far.receive_some(3))
        with pytest.raises(ValueError, match="max_bytes"):
            await far.receive_some(0)


@over_all
@pytest.mark.slow
async def test_8_mib_each_way_at_once_arrive_intact(carrier: str) -> None:
    data = hashlib.shake_256(b"data").digest(8 * MIB)
    async with stream_pair(carrier) as (near, far, _, _):
        received: dict[str, bytes] = {}

        async def send(stream: Stream) -> None:
            await stream.send_all(data)
            await stream.send_eof()

        async def receive(name: str, stream: Stream) -> None:
            received[name] = await receive_all(stream)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(send, near)
            nursery.start_soon(send, far)
            nursery.start_soon(receive, "near", near)
            nursery.start_soon(receive, "far", far)
        assert received["near"] == data
        assert received["far"] == data


@over_all
async def test_half_close_leaves_the_other_direction(carrier: str) -> None:
    async with stream_pair(carrier) as (near, far, _, _):
        await near.send_all(b"question")
        await near.send_eof()
        assert await receive_all(far) == b"question"
        await far.send_all(b"answer")
        await far.send_eof()
        assert await receive_all(near) == b"answer"


@over_all
async def test_eof_is_repeated(carrier: str) -> None:
    async with stream_pair(carrier) as (near, far, _, _):
        await near.send_eof()
        await near.send_eof()
        for _ in range(3):
            assert await far.receive_some() == b""


@over_all
async def test_sending_after_eof_raises_closed(carrier: str) -> None:
    async with stream_pair(carrier) as (near, _, _, _):
        await near.send_eof()
        with pytest.raises(trio.ClosedResourceError):
            await near.send_all(b"more")


@over_all
async def test_closing_a_stream_is_idempotent_and_ends_its_use(carrier: str) -> None:
    async with stream_pair(carrier) as (near, _, _, _):
        await near.aclose()
        await near.aclose()
        with pytest.raises(trio.ClosedResourceError):
            await near.send_all(b"more")
        with pytest.raises(trio.ClosedResourceError):
            await near.receive_some()


@over_all
async def test_what_was_sent_before_aclose_arrives(carrier: str) -> None:
    async with stream_pair(carrier) as (near, far, _, _):
        await near.send_all(b"last words")
        await near.aclose()
        assert await receive_all(far) == b"last words"


@over_all
async def test_closing_a_stream_ends_calls_that_wait_on_it(carrier: str) -> None:
    async with stream_pair(carrier) as (near, _, _, _):
        ended: list[type[BaseException]] = []
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_note_end, near.receive_some, ended)
            await wait_all_tasks_blocked()
            await near.aclose()
        assert ended == [trio.ClosedResourceError]


@over_all
async def test_two_receivers_at_once_are_refused(carrier: str) -> None:
    async with stream_pair(carrier) as (near, far, _, _):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(near.receive_some)
            await wait_all_tasks_blocked()
            with pytest.raises(trio.BusyResourceError):
                await near.receive_some()
            await far.send_all(b"x")


@over_all
async def test_two_senders_at_once_are_refused(carrier: str) -> None:
    async with stream_pair(carrier) as (near, _, _, _):
        pusher = Pusher(near)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(pusher.run)
            await pusher.until_stuck()
            with pytest.raises(trio.BusyResourceError):
                await near.send_all(b"x")
            pusher.scope.cancel()


@over_all
@pytest.mark.slow
async def test_a_reader_that_never_reads_bounds_the_sender(carrier: str) -> None:
    limits = Limits()
    bound = limits.stream_receive_window_bytes + limits.stream_send_buffer_bytes + MIB // 2
    if not CAPABILITIES[carrier].many_streams:
        # The kernel's: net.ipv4.tcp_wmem and tcp_rmem, 4 and 6 MiB on stock Linux, both filled.
        bound = 16 * MIB
    async with stream_pair(carrier, limits) as (near, far, _, _):
        pusher = Pusher(near)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(pusher.run)
            stuck_at = await pusher.until_stuck()
            assert 0 < stuck_at <= bound
            # Reading sets it going again, and no byte is torn or lost.
            assert await receive_exactly(far, stuck_at) == b"x" * stuck_at
            assert await pusher.until_stuck() > stuck_at
            pusher.scope.cancel()


@over_all
@pytest.mark.slow
async def test_a_cancelled_blocked_send_leaves_the_stream_usable(carrier: str) -> None:
    async with stream_pair(carrier) as (near, far, _, _):
        pusher = Pusher(near)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(pusher.run)
            await pusher.until_stuck()
            pusher.scope.cancel()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(near.send_all, b"y")
            assert set(await receive_exactly(far, pusher.taken)) == {ord("x")}
            rest = bytearray()
            while not rest.endswith(b"y"):
                rest += await far.receive_some()
            assert set(rest[:-1]) <= {ord("x")}


@over_all
async def test_a_receive_cancelled_at_each_checkpoint_takes_nothing(carrier: str) -> None:
    async with stream_pair(carrier) as (near, far, _, _):
        await near.send_all(b"0123456789")
        taken = bytearray()

        async def take() -> None:
            taken.extend(await far.receive_some(1))

        assert await cancel_at_every_checkpoint(take) > 0
        await near.send_eof()
        assert bytes(taken) + await receive_all(far) == b"0123456789"


@over_all
async def test_a_receive_cancelled_while_it_waits_takes_nothing(carrier: str) -> None:
    async with stream_pair(carrier) as (near, far, _, _):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(far.receive_some)
            await wait_all_tasks_blocked()
            nursery.cancel_scope.cancel()
        await echo(near, far, b"afterwards")


@over_all
async def test_a_send_cancelled_at_each_checkpoint_leaves_the_stream_usable(carrier: str) -> None:
    async with stream_pair(carrier) as (near, far, _, _):

        async def send() -> None:
            await near.send_all(b"x" * 1000)

        assert await cancel_at_every_checkpoint(send) > 0
        await near.send_eof()
        received = await receive_all(far)
        assert len(received) >= 1000
        assert set(received) == {ord("x")}


@over_all
async def test_an_accept_cancelled_at_each_checkpoint_takes_no_stream(carrier: str) -> None:
    async with pair(carrier) as (dialer, acceptor):
        near = await dialer.open_stream()
        await near.send_all(b"x")
        accepted: list[Stream] = []

        async def accept() -> None:
            accepted.append(await acceptor.accept_stream())

        assert await cancel_at_every_checkpoint(accept) > 0
        assert len(accepted) == 1
        assert await accepted[0].receive_some() == b"x"


# Carriers with many streams


@over_many_streams
@pytest.mark.parametrize("opener", [0, 1])
async def test_both_sides_open_streams(carrier: str, opener: int) -> None:
    async with pair(carrier) as ends:
        near, far = await streams_between(ends[opener], ends[1 - opener])
        assert near.stream_id == far.stream_id
        await echo(near, far, b"hello")


@over_many_streams
@pytest.mark.parametrize("opener", [0, 1])
async def test_unidirectional_streams(carrier: str, opener: int) -> None:
    async with pair(carrier) as ends:
        near = await ends[opener].open_stream(unidirectional=True)
        await near.send_all(b"one way")
        await near.send_eof()
        far = await ends[1 - opener].accept_uni_stream()
        assert await receive_all(far) == b"one way"
        with pytest.raises(trio.ClosedResourceError):
            await near.receive_some()
        with pytest.raises(trio.ClosedResourceError):
            await far.send_all(b"back")


@over_many_streams
async def test_reset_is_seen_with_its_code(carrier: str) -> None:
    async with stream_pair(carrier) as (near, far, dialer, acceptor):
        near.reset(77)
        with pytest.raises(StreamReset) as caught:
            await receive_all(far)
        assert caught.value.code == 77
        with pytest.raises(trio.ClosedResourceError):
            await near.send_all(b"more")
        await echo(*await streams_between(acceptor, dialer), b"others go on")


@over_many_streams
async def test_a_reset_wakes_a_receiver_that_waits(carrier: str) -> None:
    async with stream_pair(carrier) as (near, far, _, _):
        ended: list[type[BaseException]] = []
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_note_end, far.receive_some, ended)
            await wait_all_tasks_blocked()
            near.reset(1)
        assert ended == [StreamReset]


@over_many_streams
async def test_stop_sending_is_seen_with_its_code(carrier: str) -> None:
    async with stream_pair(carrier) as (near, far, _, _):
        far.stop_sending(5)
        far.stop_sending(6)
        with pytest.raises(StreamReset) as caught:
            await send_without_end(near)
        assert caught.value.code == 5
        with pytest.raises(trio.ClosedResourceError):
            await far.receive_some()
        await far.send_all(b"the other direction lives")
        assert await near.receive_some(9) == b"the other"


@over_many_streams
async def test_closing_a_stream_tells_the_sender_to_stop(carrier: str) -> None:
    async with stream_pair(carrier) as (near, far, _, _):
        await far.aclose()
        with pytest.raises(StreamReset):
            await send_without_end(near)


@over_many_streams
async def test_a_stuck_stream_does_not_block_others(carrier: str) -> None:
    async with stream_pair(carrier) as (near, _, dialer, acceptor):
        pusher = Pusher(near)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(pusher.run)
            await pusher.until_stuck()
            await echo(*await streams_between(dialer, acceptor), b"over here")
            await echo(*await streams_between(acceptor, dialer), b"and here")
            pusher.scope.cancel()


@over_many_streams
async def test_opening_beyond_the_limit_waits_for_a_stream_to_end(carrier: str) -> None:
    async with pair(carrier, Limits(streams_per_connection=3)) as (dialer, acceptor):
        open_now = [await streams_between(dialer, acceptor) for _ in range(3)]
        with trio.move_on_after(0.05) as scope:
            await dialer.open_stream()
        assert scope.cancelled_caught
        near, far = open_now.pop()
        await near.aclose()
        await far.aclose()
        await echo(*await streams_between(dialer, acceptor), b"a free place")


@over_many_streams
async def test_an_open_cancelled_at_each_checkpoint_opens_no_stream(carrier: str) -> None:
    async with pair(carrier, Limits(streams_per_connection=2)) as (dialer, acceptor):
        opened: list[Stream] = []

        async def open_one() -> None:
            opened.append(await dialer.open_stream())

        assert await cancel_at_every_checkpoint(open_one) > 0
        assert len(opened) == 1
        await echo(*await streams_between(dialer, acceptor), b"the second place")


@over_many_streams
@pytest.mark.slow
async def test_a_hundred_streams_at_once(carrier: str) -> None:
    async with pair(carrier) as (dialer, acceptor):

        async def serve() -> None:
            async with trio.open_nursery() as serving:
                for _ in range(100):
                    serving.start_soon(answer, await acceptor.accept_stream())

        async def answer(stream: Stream) -> None:
            await stream.send_all((await receive_all(stream))[::-1])
            await stream.aclose()

        async def ask(number: int) -> None:
            stream = await dialer.open_stream()
            question = f"{number:03}".encode() * 500
            await stream.send_all(question)
            await stream.send_eof()
            assert await receive_all(stream) == question[::-1]
            await stream.aclose()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(serve)
            for number in range(100):
                nursery.start_soon(ask, number)


# Carriers with one stream


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
            nursery.start_soon(_note_end, acceptor.accept_stream, ended)
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


# Datagrams


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


def _calls(connection: Connection, stream: Stream) -> list[Callable[[], Awaitable[object]]]:
    async def send() -> None:
        await stream.send_all(b"x")

    return [
        send,
        stream.receive_some,
        stream.send_eof,
        connection.open_stream,
        connection.accept_stream,
        connection.accept_uni_stream,
        connection.receive_datagram,
    ]


async def _note_end(
    call: Callable[[], Awaitable[object]], ended: list[type[BaseException]]
) -> None:
    try:
        await call()
    except GONE as exc:
        ended.append(type(exc))

"""Which pieces of a stream its taker is offered: a short one, the last of a round, of a peer."""

from __future__ import annotations

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from alknet.core.identity import ANONYMOUS, Identity
from alknet.core.quic.stream import MAX_OFFERED_BYTES
from alknet.errors import Malformed
from tests.core.quic.hostile import ROUND_TRIP, Scene, attack
from tests.core.quic.test_floods import stream_frame
from tests.core.quic.worlds import read_exactly

PEER = Identity("peer:known", ())


async def hear(
    scene: Scene, *pieces: bytes, identity: Identity = PEER
) -> tuple[list[bytes], list[bytes]]:
    """Let the server get *pieces* in one batch; return what was taken, and what was read."""
    scene.far.identity = identity
    scene.attacker.engine._get_or_create_stream_for_send(0)
    scene.attacker.say(stream_frame(0, 0, b"begin"))
    stream = await scene.far.accept_stream()
    await read_exactly(stream, 5)
    taken: list[bytes] = []
    read: list[bytes] = []

    def take(data: bytes) -> bool:
        taken.append(data)
        return True

    async def run() -> None:
        while True:
            read.append(await stream.receive_some())

    async with trio.open_nursery() as nursery:
        stream.offer(take)
        nursery.start_soon(run)
        await wait_all_tasks_blocked()
        at = 5
        for piece in pieces:
            scene.attacker.say(stream_frame(0, at, piece))
            at += len(piece)
        await trio.sleep(2 * ROUND_TRIP)
        nursery.cancel_scope.cancel()
    stream.reset(0)
    await stream.aclose()
    return taken, read


@pytest.mark.parametrize("size", [1, MAX_OFFERED_BYTES])
async def test_a_short_piece_is_offered(autojump_clock: MockClock, size: int) -> None:
    async with attack() as scene:
        assert await hear(scene, bytes(size)) == ([bytes(size)], [])


async def test_a_long_piece_is_for_the_reader(autojump_clock: MockClock) -> None:
    async with attack() as scene:
        longer = bytes(MAX_OFFERED_BYTES + 1)
        assert await hear(scene, longer) == ([], [longer])


async def test_what_comes_at_once_is_for_the_reader_at_once(autojump_clock: MockClock) -> None:
    """However many there are, a round of the endpoint handles one piece of each connection."""
    async with attack() as scene:
        assert await hear(scene, b"one", b"two", b"six") == ([], [b"onetwosix"])


async def test_what_a_stranger_sends_waits_for_its_reader(autojump_clock: MockClock) -> None:
    async with attack() as scene:
        assert await hear(scene, b"public?", identity=ANONYMOUS) == ([], [b"public?"])


async def test_what_a_taker_raises_who_waits_raises_and_reads_on(
    autojump_clock: MockClock,
) -> None:
    def refuse(data: bytes) -> bool:
        raise Malformed(f"cannot read {data!r}")

    async with attack() as scene:
        scene.far.identity = PEER
        scene.attacker.engine._get_or_create_stream_for_send(0)
        scene.attacker.say(stream_frame(0, 0, b"begin"))
        stream = await scene.far.accept_stream()
        await read_exactly(stream, 5)
        stream.offer(refuse)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_say_soon, scene)
            with pytest.raises(Malformed, match="cannot read b'what'"):
                await stream.receive_some()
        stream.offer(None)
        assert await stream.receive_some() == b"more"
        stream.reset(0)
        await stream.aclose()


async def _say_soon(scene: Scene) -> None:
    await wait_all_tasks_blocked()
    scene.attacker.say(stream_frame(0, 5, b"what"))
    await trio.sleep(ROUND_TRIP)
    scene.attacker.say(stream_frame(0, 9, b"more"))

"""The same seeded traffic through aioquic's own methods and ours, in lock step.

`Twins` are two engines in one state. Each datagram, timer and command goes to both, with the same
random bytes; afterwards their answers, events and whole `snapshot` must be equal. One of them is
*plain* (`is_hot` off), the other hot while it receives, while it sends, or both.

A `Duel` is two pairs of twins on a network that loses, repeats, delays and reorders.
"""

from __future__ import annotations

import copy
import heapq
import itertools
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from random import Random  # noqa: TID251  seeded
from typing import Any, TypeVar, cast

from aioquic.quic import events
from aioquic.tls import CipherSuite, Epoch

from alknet.core.limits import Limits
from alknet.core.quic.engine import Engine
from tests.core.quic.hotpath.snapshot import clone, differences
from tests.core.quic.sansio import CLIENT_ADDRESS, SERVER_ADDRESS, EnginePair

T = TypeVar("T")
Address = tuple[str, int]
SHORTEST_FRAMES = 4  # bytes of frames under which a packet cannot be sampled


@contextmanager
def random_bytes(seed: int) -> Iterator[None]:
    """Let `os.urandom` give the same bytes again for the same *seed*."""
    original, source = os.urandom, Random(seed)
    os.urandom = source.randbytes
    try:
        yield
    finally:
        os.urandom = original


class Twins:
    """Two engines that must never differ.

    Those of a `fork` are copied when somebody asks for them.

    Attributes:
        plain: The one that takes aioquic's way.
        hot: The one that takes ours, where it may.
        seen: Events of both.
    """

    plain: Engine
    hot: Engine

    def __init__(self, engine: Engine, *, receives: bool = True, sends: bool = False) -> None:
        """Take over *engine* as `plain`.

        Args:
            receives: `hot` takes the short way when it receives.
            sends: `hot` takes the short way when it sends.
        """
        self.plain, self.hot = engine, clone(engine)
        self.seen: list[events.QuicEvent] = []
        self._receives, self._sends = receives, sends
        self._origin = self
        self._sealed = 0  # packets of which a `hot` that is not copied yet does not know
        self._turn = itertools.count()
        engine.is_hot = False
        self.check()

    def do(
        self, action: Callable[[Engine], T], *, is_hot: bool = False, is_checked: bool = True
    ) -> T:
        """Let both do *action*; return what both returned, or raise what both raised."""
        turn = next(self._turn)
        with random_bytes(turn):
            expected = _outcome(action, self.plain)
        self.hot.is_hot = is_hot
        with random_bytes(turn):
            result = _outcome(action, self.hot)
        assert result.value == expected.value, (result.value, expected.value)
        assert repr(result.error) == repr(expected.error), (result.error, expected.error)
        if is_checked:
            self.check()
        if result.error is not None:
            raise result.error
        return cast(T, result.value)

    def fork(self) -> Twins:
        """Return other twins in the same state; these must not change any more."""
        other = copy.copy(self)
        other._origin, other._sealed, other.seen = self, 0, list(self.seen)
        for name in ("plain", "hot"):
            other.__dict__.pop(name, None)
        return other

    def __getattr__(self, name: str) -> Engine:
        if name not in {"plain", "hot"} or "_origin" not in self.__dict__:
            raise AttributeError(name)
        engine = clone(getattr(self._origin, name))
        if name == "hot":
            engine._packet_number += self._sealed
        setattr(self, name, engine)
        return engine

    def set(self, change: Callable[[Engine], object]) -> None:
        """Bring both into a state by hand."""
        self.do(lambda engine: bool(change(engine)) and None)

    def watch(self) -> list[int]:
        """Return a list of the frames that `hot` leaves to aioquic's handlers from now on."""
        name = "_QuicConnection__frame_handlers"
        watched = _Watched(self.hot.__dict__[name])
        self.hot.__dict__[name] = watched
        return watched.asked

    def receive(self, data: bytes, address: Address, now: float) -> None:
        self.do(lambda engine: engine.receive_datagram(data, address, now), is_hot=self._receives)

    def send(self, now: float) -> list[tuple[bytes, Address]]:
        return self.do(lambda engine: engine.datagrams_to_send(now), is_hot=self._sends)

    def handle_timer(self, now: float) -> None:
        self.do(lambda engine: engine.handle_timer(now), is_hot=self._sends)

    @property
    def timer(self) -> float | None:
        return self.do(lambda engine: engine.get_timer(), is_hot=self._sends, is_checked=False)

    def drain(self) -> list[events.QuicEvent]:
        """Take all events, keep them in `seen` and return the new ones."""
        fresh = self.do(lambda engine: list(iter(engine.next_event, None)), is_checked=False)
        self.seen += fresh
        return fresh

    def received(self, stream_id: int) -> bytes:
        return b"".join(
            event.data
            for event in self.seen
            if isinstance(event, events.StreamDataReceived) and event.stream_id == stream_id
        )

    def check(self) -> None:
        """Fail unless both are in the same state."""
        found = differences(self.plain, self.hot)
        assert not found, "\n".join(found)

    def seal(self, frames: bytes, number: int | None = None, first: int = 0x41) -> bytes:
        """A 1-RTT packet of this side with any frames.

        Args:
            number: Its packet number; the next one, which is then used up, if None.
            first: The first byte before the key phase is put in and the byte is hidden; its last
                two bits say how long the packet number is.
        """
        if number is None:
            number = self.plain._packet_number
            self.plain._packet_number += 1
            if "hot" in self.__dict__:
                self.hot._packet_number += 1
            else:
                self._sealed += 1
        length = (first & 3) + 1
        assert length + len(frames) >= SHORTEST_FRAMES, "too short to be sampled"
        crypto = self.plain._cryptos[Epoch.ONE_RTT]
        head = bytes([first ^ crypto.key_phase << 2]) + self.plain._peer_cid.cid
        truncated = (number & (1 << 8 * length) - 1).to_bytes(length)
        sealed = crypto.encrypt_packet(head + truncated, frames, number)
        assert isinstance(sealed, bytes)
        return sealed


class _Watched:
    """A table of frame handlers that remembers which it was asked for."""

    def __init__(self, table: Any) -> None:
        self._table = table
        self.asked: list[int] = []

    def __contains__(self, frame_type: int) -> bool:
        return frame_type in self._table

    def __getitem__(self, frame_type: int) -> Any:
        self.asked.append(frame_type)
        return self._table[frame_type]


@dataclass
class _Outcome:
    value: Any
    error: Exception | None


def _outcome(action: Callable[[Engine], Any], engine: Engine) -> _Outcome:
    try:
        return _Outcome(action(engine), None)
    except Exception as exc:  # noqa: BLE001  # compared with the other's
        return _Outcome(None, exc)


@dataclass(frozen=True)
class Weather:
    """What the network does to a datagram: chances, and seconds."""

    loss: float = 0.0
    repeat: float = 0.0
    delay: float = 0.005
    jitter: float = 0.0


class Duel:
    """A client and a server, both twins, on a network with a seed.

    Attributes:
        now: The time of both.
        weather: May be changed at any time.
    """

    def __init__(
        self,
        seed: int = 0,
        *,
        limits: Limits | None = None,
        weather: Weather = Weather(),
        suite: CipherSuite = CipherSuite.AES_128_GCM_SHA256,
        receives: bool = True,
        sends: bool = False,
        prepare: Callable[[Engine], None] = lambda _: None,
    ) -> None:
        """Connect two engines, then double each.

        Args:
            receives: See `Twins`.
            sends: See `Twins`.
            prepare: Called with each side once it is connected, before it is doubled.
        """
        with random_bytes(seed):  # which packet number each of them leaves out first, too
            pair = EnginePair(limits=limits)
            pair.dialer.configuration.cipher_suites = [suite]
            pair.connect()
        assert pair.dialer.is_confirmed
        self.rng = Random(seed)
        self.now = pair.now
        self.weather = weather
        prepare(pair.dialer)
        prepare(pair.acceptor)
        self.client = Twins(pair.dialer, receives=receives, sends=sends)
        self.server = Twins(pair.acceptor, receives=receives, sends=sends)
        self._under_way: list[tuple[float, int, bytes, Twins]] = []
        self._order = itertools.count()

    def other(self, side: Twins) -> Twins:
        return self.server if side is self.client else self.client

    def address(self, side: Twins) -> Address:
        return CLIENT_ADDRESS if side is self.client else SERVER_ADDRESS

    def deliver(self, data: bytes, side: Twins) -> None:
        """Hand *data* to *side* at once, as from its peer."""
        side.receive(data, self.address(self.other(side)), self.now)
        side.drain()

    def say(self, side: Twins, frames: bytes, **header: int) -> None:
        """Let *side* send any frames, padded to the shortest packet, which arrive at once."""
        frames += bytes(max(0, SHORTEST_FRAMES - len(frames)))
        self.deliver(side.seal(frames, **header), self.other(side))

    def send(self) -> None:
        """One send pass of both."""
        for side in (self.client, self.server):
            for data, _ in side.send(self.now):
                self._carry(data, self.other(side))

    def run(self, seconds: float = 1.0) -> None:
        """Carry what is sent and fire timers for so long."""
        until = self.now + seconds
        self.send()
        while (at := self._next()) is not None and at <= until:
            self.now = max(self.now, at)
            self._arrive()
            for side in (self.client, self.server):
                timer = side.timer
                if timer is not None and timer <= self.now:
                    side.handle_timer(self.now)
                    side.drain()
            self.send()
        self.now = until

    def _next(self) -> float | None:
        times = [self._under_way[0][0]] if self._under_way else []
        for side in (self.client, self.server):
            timer = side.timer
            if timer is not None:
                times.append(timer + 1e-6)
        return min(times, default=None)

    def _arrive(self) -> None:
        while self._under_way and self._under_way[0][0] <= self.now:
            _, _, data, side = heapq.heappop(self._under_way)
            self.deliver(data, side)

    def _carry(self, data: bytes, side: Twins) -> None:
        weather, rng = self.weather, self.rng
        copies = 0 if rng.random() < weather.loss else 1 + (rng.random() < weather.repeat)
        for _ in range(copies):
            at = self.now + weather.delay + weather.jitter * rng.random()
            heapq.heappush(self._under_way, (at, next(self._order), data, side))


class Traffic:
    """Random use of both ends of a duel.

    Attributes:
        sent: What was given to each stream, by the side that sent it and the stream's id.
    """

    def __init__(self, duel: Duel) -> None:
        self.duel = duel
        self.sent: dict[tuple[Twins, int], bytearray] = {}
        self._streams: list[int] = []
        self._over: set[tuple[Twins, int]] = set()
        self._pings = itertools.count()

    def step(self) -> None:
        """Do one random thing, and let a little time pass."""
        rng, duel = self.duel.rng, self.duel
        side = rng.choice((duel.client, duel.server))
        action = rng.choices(
            (self._open, self._write, self._end, self._read, self._reset, self._stop, self._rare),
            (4, 12, 2, 8, 1, 1, 2),
        )[0]
        action(side)
        if rng.random() < 0.6:
            duel.run(rng.choice((0.0005, 0.004, 0.02)))

    def _open(self, side: Twins) -> None:
        one_way = self.duel.rng.random() < 0.3
        if len(self._streams) < 40 and side.plain.can_open(unidirectional=one_way):
            stream_id = side.do(lambda engine: engine.open_stream(unidirectional=one_way))
            self._streams.append(stream_id)
            self._give(side, stream_id, self.duel.rng.randbytes(self.duel.rng.randrange(1, 50)))

    def _write(self, side: Twins) -> None:
        if (stream_id := self._writable(side)) is not None:
            size = self.duel.rng.choice((0, 1, 20, 64, 1000, 5000, 20_000))
            self._give(side, stream_id, self.duel.rng.randbytes(size))

    def _end(self, side: Twins) -> None:
        if (stream_id := self._writable(side)) is not None:
            self._over.add((side, stream_id))
            size = self.duel.rng.choice((0, 0, 10, 3000))
            self._give(side, stream_id, self.duel.rng.randbytes(size), end_stream=True)

    def _read(self, side: Twins) -> None:
        """Consume all that has arrived."""
        for stream_id in list(side.plain._streams):
            side.do(lambda engine, i=stream_id: _consume(engine, i))  # type: ignore[misc]

    def _reset(self, side: Twins) -> None:
        if (stream_id := self._writable(side)) is not None:
            self._over.add((side, stream_id))
            side.do(lambda engine: engine.reset_stream(stream_id, 7))

    def _stop(self, side: Twins) -> None:
        if (stream_id := self._known(side)) is not None and _can_receive(side, stream_id):
            side.do(lambda engine: engine.stop_receiving(stream_id, 9))

    def _rare(self, side: Twins) -> None:
        kind = self.duel.rng.randrange(5)
        if kind == 0:
            side.do(lambda engine: engine.update_keys())
        elif kind == 1:
            side.do(lambda engine: engine.send_datagram_frame(b"datagram"))
        elif kind == 2:
            side.do(lambda engine: engine.change_connection_id())
        elif kind == 3 and (stream_id := self._known(side)) is not None:
            side.do(lambda engine: engine.release(stream_id))
        else:
            number = next(self._pings)
            side.do(lambda engine: engine.send_ping(number))

    def _give(self, side: Twins, stream_id: int, data: bytes, *, end_stream: bool = False) -> None:
        side.do(lambda engine: engine.send_stream_data(stream_id, data, end_stream=end_stream))
        self.sent.setdefault((side, stream_id), bytearray()).extend(data)

    def _known(self, side: Twins) -> int | None:
        return self.duel.rng.choice(list(side.plain._streams) or [None])

    def _writable(self, side: Twins) -> int | None:
        is_client = side is self.duel.client
        choices = [
            stream_id
            for stream_id, stream in side.plain._streams.items()
            if (not stream_id & 2 or (stream_id & 1 == 0) == is_client)
            and (side, stream_id) not in self._over
            and not stream.sender.is_finished
            and stream.sender._reset_error_code is None
        ]
        return self.duel.rng.choice(choices or [None])


def _consume(engine: Engine, stream_id: int) -> None:
    arrived = engine._streams[stream_id].receiver._buffer_start
    engine.credit(stream_id, arrived - engine._stream_consumed.get(stream_id, 0))


def _can_receive(side: Twins, stream_id: int) -> bool:
    return not stream_id & 2 or (stream_id & 1 == 0) != side.plain._is_client

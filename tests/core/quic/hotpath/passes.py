"""What tests of send passes share: a pair that is quiet, and a look into what it sends."""

from __future__ import annotations

from aioquic.tls import Epoch

from alknet.core.limits import Limits
from tests.core.quic.sansio import EnginePair, connected

ONE_RTT = Epoch.ONE_RTT


def quiet_pair(limits: Limits | None = None) -> EnginePair:
    """Two engines with nothing left to say, no congestion window and no pacing."""
    pair = connected(limits)
    pair.run(5)
    for engine in (pair.dialer, pair.acceptor):
        engine._loss._cc.congestion_window = 1 << 30
        engine._loss._pacer.packet_time = None
        engine._skip_at = 1 << 40  # no packet number is left out, by chance
    return pair


def with_streams(count: int, most: int = 1_000) -> tuple[EnginePair, list[int]]:
    """A quiet pair with streams of the dialler's, *most* at once, on which each has spoken."""
    pair = quiet_pair(Limits(streams_per_connection=most))
    ids = [pair.dialer.open_stream(unidirectional=False) for _ in range(count)]
    for stream_id in ids:
        pair.dialer.send_stream_data(stream_id, b"?")
    pair.run()
    for engine in (pair.dialer, pair.acceptor):
        engine._loss._cc.congestion_window = 1 << 30
        engine._loss._pacer.packet_time = None
    return pair, ids


def carry(pair: EnginePair, *, to_server: bool) -> int:
    """Deliver what one side has to send in one pass; return how many datagrams."""
    engine = pair.dialer if to_server else pair.acceptor
    datagrams = engine.datagrams_to_send(pair.now)
    for data, _ in datagrams:
        pair.deliver(data, to_server=to_server)
    return len(datagrams)


def frames_in(pair: EnginePair, datagram: bytes) -> list[int]:
    """The streams of which the dialler's *datagram* has frames, in order."""
    crypto = pair.acceptor._cryptos[ONE_RTT]
    space = pair.acceptor._spaces[ONE_RTT]
    _, plain, _ = crypto.decrypt_packet(datagram, 9, space.expected_packet_number)
    streams, pos = [], 0
    while pos < len(plain):
        assert plain[pos] & 0xF8 == 8, plain[pos]
        streams.append(plain[pos + 1])
        offset = plain[pos + 2]
        pos += 2 + ((1 << (offset >> 6)) if plain[pos] & 4 else 0)
        pos += 2 + (int.from_bytes(plain[pos : pos + 2]) & 0x3FFF)
    return streams

"""The pacer lets bursts through, keeps the rate, and asks for no timer below a millisecond."""

from __future__ import annotations

from alknet.core.limits import Limits
from alknet.core.quic.engine import client_engine
from alknet.core.quic.pacing import BURST_S, MIN_WAIT_S, BurstPacer
from alknet.core.quic.policy import client_policy
from alknet.core.tls.trust import PinnedKey
from tests.core.quic.pairs import new_credentials

WINDOW, PACKET = 120_000, 1_200


def sent_until(pacer: BurstPacer, now: float, until: float) -> int:
    """Send whenever the pacer allows; return how many packets left."""
    sent = 0
    while now < until:
        at = pacer.next_send_time(now)
        if at is None:
            sent += 1
            pacer.update_after_send(now)
        else:
            assert at - now >= MIN_WAIT_S - 1e-9
            now = at
    return sent


def test_the_long_run_rate_is_a_quarter_above_the_window_per_round_trip() -> None:
    for rtt in (0.0005, 0.01, 0.2):
        pacer = BurstPacer(max_datagram_size=PACKET)
        pacer.update_rate(WINDOW, rtt)
        sent = sent_until(pacer, 0.0, 100 * rtt + 0.1)
        expected = 1.25 * WINDOW / PACKET / rtt * (100 * rtt + 0.1)
        # aioquic forgives the last fraction of a packet, hence the tenth.
        assert 0.5 * expected < sent <= 1.1 * expected + BURST_S / rtt * 1.25 * WINDOW / PACKET


def test_a_burst_is_two_milliseconds_long() -> None:
    pacer = BurstPacer(max_datagram_size=PACKET)
    pacer.update_rate(WINDOW, 0.001)
    pacer.update_bucket(now=1.0)
    burst = 0
    while pacer.next_send_time(1.0) is None:
        burst += 1
        pacer.update_after_send(1.0)
    assert abs(burst - 1.25 * WINDOW / PACKET * BURST_S / 0.001) <= 1


def test_engines_have_it() -> None:
    server = new_credentials()
    policy = client_policy(PinnedKey(server.node_id), None)
    engine = client_engine(policy, alpn="x", server_name=None, limits=Limits())
    assert isinstance(engine._loss._pacer, BurstPacer)

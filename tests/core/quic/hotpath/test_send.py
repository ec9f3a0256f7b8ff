"""Sending plain packets: the same as aioquic does, in less time."""

from __future__ import annotations

import pytest
from aioquic.tls import CipherSuite

from alknet.core.quic.engine import Engine
from tests.core.quic.hotpath.differential import Duel, Traffic, Weather

WEATHERS = {
    "calm": Weather(),
    "lossy": Weather(loss=0.1),
    "reordered": Weather(jitter=0.02),
    "storm": Weather(loss=0.2, repeat=0.2, jitter=0.05),
}


def as_aioquic_does(engine: Engine) -> None:
    """Switch off what we do on top."""
    engine.piggybacks_acks = engine.favours_small = False
    engine.max_packets_per_pass = 1_000_000


def sending_duel(seed: int = 0, **options: object) -> Duel:
    return Duel(seed, receives=False, sends=True, prepare=as_aioquic_does, **options)  # type: ignore[arg-type]


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("weather", WEATHERS)
def test_random_traffic_is_sent_alike(weather: str, seed: int) -> None:
    duel = sending_duel(seed, weather=WEATHERS[weather])
    traffic = Traffic(duel)
    for _ in range(60):
        traffic.step()
    duel.weather = Weather()
    duel.run(3)
    for side in (duel.client, duel.server):
        assert side.plain.close_event is None
        assert side.seen


@pytest.mark.parametrize("suite", list(CipherSuite)[:3])
def test_every_cipher_suite_seals_alike(suite: CipherSuite) -> None:
    duel = sending_duel(suite=suite)
    traffic = Traffic(duel)
    for _ in range(20):
        traffic.step()
    duel.run(1)
    assert duel.client.hot._hot_crypto.send.cipher_suite is suite

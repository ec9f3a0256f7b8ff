"""Receiving plain packets: the same as aioquic does, in less time."""

from __future__ import annotations

import pytest

from tests.core.quic.hotpath.differential import Duel, Traffic, Weather

WEATHERS = {
    "calm": Weather(),
    "lossy": Weather(loss=0.1),
    "reordered": Weather(jitter=0.02),
    "repeated": Weather(repeat=0.3, jitter=0.005),
    "storm": Weather(loss=0.2, repeat=0.2, jitter=0.05),
}


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("weather", WEATHERS)
def test_random_traffic_is_received_alike(weather: str, seed: int) -> None:
    duel = Duel(seed, weather=WEATHERS[weather])
    traffic = Traffic(duel)
    for _ in range(60):
        traffic.step()
    duel.weather = Weather()
    duel.run(3)
    for side in (duel.client, duel.server):
        assert side.plain.close_event is None
        assert side.seen

"""Stock iroh reaches us and we reach it, by key and address alone."""

from __future__ import annotations

import pytest

from tests.interop.iroh_driver import run_isolated
from tests.interop.iroh_scenarios import SCENARIOS


@pytest.mark.interop
@pytest.mark.slow
@pytest.mark.parametrize("scenario", SCENARIOS)
def test_iroh(scenario: str) -> None:
    run_isolated("tests.interop.iroh_scenarios", scenario)

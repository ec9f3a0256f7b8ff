"""Stock iroh and whole nodes, by key and address alone, with only a loopback interface."""

from __future__ import annotations

import pytest

from tests.interop.iroh_driver import run_isolated
from tests.interop.node_scenarios import SCENARIOS


@pytest.mark.interop
@pytest.mark.slow
@pytest.mark.parametrize("scenario", SCENARIOS)
def test_iroh_and_nodes(scenario: str) -> None:
    run_isolated("tests.interop.node_scenarios", scenario)

"""Fixtures of what stands on a store: it runs on every engine."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.stores.engines import ENGINES, Engine, Opener


@pytest.fixture(params=ENGINES, ids=[engine.__name__ for engine in ENGINES])
def opener(request: pytest.FixtureRequest, tmp_path: Path) -> Opener:
    """Opens handles on one set of rows, on each engine in turn."""
    engine: Engine = request.param
    return engine(tmp_path)

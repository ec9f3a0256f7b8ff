from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.commands.kit import Place, open_place


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    with open_place(tmp_path / "home") as place:
        yield place

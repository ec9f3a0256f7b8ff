"""The pages that are made from the code say what the code says now."""

from __future__ import annotations

import pytest

from tests.docs.blocks import ROOT
from tests.docs.generate import PAGES


@pytest.mark.parametrize("name", PAGES)
def test_page_is_current(name: str) -> None:
    written = (ROOT / "docs" / "reference" / name).read_text(encoding="utf-8")
    assert written == PAGES[name](), f"run `make docs`: docs/reference/{name} is out of date"

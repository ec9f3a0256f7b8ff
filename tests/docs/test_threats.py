"""Every test that the page on threats names is there."""

from __future__ import annotations

import ast
import re

import pytest

from tests.docs.blocks import ROOT

PAGE = ROOT / "docs" / "explanation" / "threats.md"
ROWS = [
    line
    for line in PAGE.read_text(encoding="utf-8").splitlines()
    if line.startswith("| ") and not line.startswith(("| ---", "| attack", "| fault"))
]


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.split("|")[1].strip()[:40])
def test_a_threat_names_tests_that_exist(row: str) -> None:
    named = re.findall(r"`(tests/[^`]+)`", row)
    assert named, "no test is named"
    for name in named:
        path, _, function = name.partition("::")
        assert (ROOT / path).is_file(), name
        tree = ast.parse((ROOT / path).read_text(encoding="utf-8"))
        functions = {
            node.name
            for node in tree.body
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        }
        assert not function or function in functions, name

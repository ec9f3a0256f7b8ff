"""node.toml: texts that once brought down whoever read them, a running node included."""

from __future__ import annotations

from pathlib import Path

import pytest

from alknet.core.config import check_config

DIGITS = "1" + "0" * 5_000


def problems(tmp_path: Path, text: str) -> list[str]:
    path = tmp_path / "node.toml"
    path.write_text(text)
    return [str(problem).removeprefix(f"{path}:") for problem in check_config(path)]


def test_an_integer_that_python_refuses_to_read_is_a_problem(tmp_path: Path) -> None:
    (found,) = problems(tmp_path, f"[limits]\nconnections = {DIGITS}\n")
    assert "not valid TOML: exceeds the limit (4300 digits)" in found


@pytest.mark.parametrize("number", ["0x" + "f" * 6_000, "1" + "0" * 400])
def test_a_huge_integer_is_named_but_not_repeated(tmp_path: Path, number: str) -> None:
    (found,) = problems(tmp_path, f"[limits]\nconnections = {number}\n")
    assert found == "2: limits.connections: found a huge number, expected an integer <= 10000000"


def test_an_address_to_listen_on_occurs_once(tmp_path: Path) -> None:
    twice = '[node]\nlisten = ["127.0.0.1:4433", "[::1]:4433", "127.0.0.1:4433"]\n'
    (found,) = problems(tmp_path, twice)
    assert found == "2: node.listen: the address '127.0.0.1:4433' occurs twice"
    assert not problems(tmp_path, '[node]\nlisten = ["127.0.0.1:0", "127.0.0.1:0"]\n')


def test_an_invitation_where_a_key_belongs_is_not_repeated(tmp_path: Path) -> None:
    row = '[[peers]]\nname = "bob"\n{} = "alknet-invite://abc@host:1/topsecret"\n'
    (found,) = problems(tmp_path, row.format("id"))
    assert "topsecret" not in found
    assert "an invitation" in found


def test_a_file_that_cannot_even_be_looked_for_is_a_problem(tmp_path: Path) -> None:
    row = f'[[web_certificates]]\nserver_names = ["a.b"]\ncert_file = "{"x" * 5_000}"\n'
    found = problems(tmp_path, f'{row}key_file = "node.toml"\n')
    assert len(found) == 1
    assert "File name too long" in found[0]

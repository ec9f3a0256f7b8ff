"""Words: never lost by what goes wrong on the way out or in."""

from __future__ import annotations

from pathlib import Path

from tests.cli.kit import Cli
from tests.cli.test_review_streams import shell


def test_words_that_could_not_be_printed_make_no_node(cli: Cli) -> None:
    result = shell("alknet init --json > /dev/full", cli.home)
    assert result.status == 1
    assert "no space left" in result.err
    assert not cli.home.exists()
    cli.ok("init", "--json")


def test_a_file_that_is_no_text_holds_no_words(cli: Cli, tmp_path: Path) -> None:
    path = tmp_path / "binary"
    path.write_bytes(b"\xff\xfe " * 12)
    error = cli.fails(1, "init", "--restore", "--words-file", path, "--json").error
    assert error["message"] == "word 1 is not in the BIP39 English list"
    assert not cli.home.exists()


def test_a_dash_is_standard_input_for_words(cli: Cli, tmp_path: Path) -> None:
    words = tmp_path / "words"
    made = cli.ok("init", "--words-file", words, "--json", home=tmp_path / "first").json
    given = cli.ok("init", "--restore", "--words-file", "-", "--json", stdin=words.read_text())
    assert given.json["id"] == made["id"]
    assert "new file" in cli.fails(2, "init", "--words-file", "-", home=tmp_path / "x").err

from __future__ import annotations

from alknet.cli.table import printable, render


def test_columns_are_aligned() -> None:
    assert render(("name", "n"), [("a", 1), ("long", 22)]) == "name  n\na     1\nlong  22"


def test_the_widest_column_gives_way_at_the_width_of_the_terminal() -> None:
    text = render(("key", "v"), [("x" * 40, "yes")], width=20)
    assert text.splitlines()[1] == "x" * 14 + "…  yes"
    assert all(len(line) <= 20 for line in text.splitlines())


def test_without_a_width_nothing_is_cut() -> None:
    assert "x" * 400 in render(("key",), [("x" * 400,)])


def test_wide_characters_count_two_cells() -> None:
    lines = render(("name", "v"), [("日本", 1), ("abcd", 2)]).splitlines()
    assert lines[1] == "日本  1"
    assert lines[2] == "abcd  2"


def test_what_drives_a_terminal_is_escaped() -> None:
    assert printable("a\x1b[2J\nb") == "a\\x1b[2J\\nb"
    assert "\x1b" not in render(("name",), [("\x1b]0;x\x07",)])

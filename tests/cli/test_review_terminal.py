"""The terminal: not driven by what another node answers, and left as it was found."""

from __future__ import annotations

import io
import os
import pty
import termios
from collections.abc import Callable
from typing import Any

import click
import msgspec
import pytest

from alknet.cli import output
from alknet.cli.ping import shown_id
from alknet.cli.status import task_lines
from alknet.cli.top import ALTERNATE, USUAL, top
from alknet.cli.unlocking import ask_passphrase
from alknet.core.endpoint.tasks import TaskNode
from tests.cli.kit import Cli

EVIL = "a\x9b2J\x7f\u202eb"


class Tty(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize("show", [output.emit_raw, output.say_json])
def test_json_on_a_terminal_is_escaped_and_stays_json(
    monkeypatch: pytest.MonkeyPatch, show: Callable[[bytes], None]
) -> None:
    tty = Tty()
    monkeypatch.setattr("sys.stdout", tty)
    show(b"\t" + msgspec.json.encode({"m": EVIL}) + b"\r\n")
    assert "a\\u009b2J\\u007f\\u202eb" in tty.getvalue()
    assert msgspec.json.decode(tty.getvalue()) == {"m": EVIL}


def test_json_in_a_pipe_is_left_as_it_came(monkeypatch: pytest.MonkeyPatch) -> None:
    pipe = io.StringIO()
    monkeypatch.setattr("sys.stdout", pipe)
    output.emit({"m": EVIL})
    assert pipe.getvalue() == f'{{"m":"{EVIL}"}}\n'


def test_names_of_tasks_and_nodes_are_escaped() -> None:
    tree = TaskNode("\x1b[2J", nurseries=((TaskNode("x\ny"),),))
    text = task_lines(msgspec.json.encode(tree))
    assert "\x1b" not in text
    assert len(text.splitlines()) == 2
    assert shown_id("\x1b[2J") == "\\x1b[2J"
    assert shown_id("y" * 52) == "y" * 10


def test_a_command_that_is_none_is_told_with_the_nearest(cli: Cli) -> None:
    assert "No such command 'pears'. Did you mean 'peers'?" in cli.fails(2, "pears").err
    assert "No such command 'zzz'.\n" in cli.fails(2, "zzz").err


def test_ctrl_c_the_moment_that_nothing_is_echoed_leaves_the_echo_on(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    master, slave = pty.openpty()
    open_file, set_attributes = os.open, termios.tcsetattr

    def open_terminal(path: str, flags: int) -> int:
        return open_file(os.ttyname(slave) if path == "/dev/tty" else path, flags)

    def set_and_interrupt(terminal: int, when: int, attributes: list[Any]) -> None:
        set_attributes(terminal, when, attributes)
        if not attributes[3] & termios.ECHO:
            raise KeyboardInterrupt

    monkeypatch.setattr(os, "open", open_terminal)
    monkeypatch.setattr(termios, "tcsetattr", set_and_interrupt)
    with pytest.raises(KeyboardInterrupt):
        ask_passphrase("passphrase: ")
    assert termios.tcgetattr(slave)[3] & termios.ECHO
    os.close(master)
    os.close(slave)


def test_ctrl_c_the_moment_that_top_takes_the_screen_gives_it_back(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Interrupting(Tty):
        def write(self, text: str) -> int:
            written = super().write(text)
            if text == ALTERNATE:
                raise KeyboardInterrupt
            return written

    tty = Interrupting()
    monkeypatch.setattr("sys.stdout", tty)
    with pytest.raises(click.Abort):
        top.main([], standalone_mode=False)
    assert tty.getvalue() == ALTERNATE + USUAL

"""What another node answers cannot drive the terminal of the one who asked."""

from __future__ import annotations

import io
from collections.abc import Callable

import msgspec
import pytest

from alknet.cli import output
from alknet.cli.ping import shown_id
from alknet.cli.status import task_lines
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

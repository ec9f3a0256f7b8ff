"""Signals and kills while commands run: what the other side sees, and what stays behind."""

from __future__ import annotations

import contextlib
import json
import select
import signal
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from alknet.cli import up
from alknet.cli.lines import LineWriter
from alknet.node import Node
from tests.cli.kit import (
    PATIENCE_S,
    STARTED,
    Cli,
    Process,
    Result,
    RunningNode,
    all_files,
    process,
    running_node,
    wait_until,
)

pytestmark = pytest.mark.slow

# Long enough for a node on a loaded machine to start and to end.
SIGNAL_REPEAT_S = 15.0
SLOW = ("echo/unary", '{"message": 1, "delay_ms": 600000}')


@pytest.fixture
def own(node: RunningNode, monkeypatch: pytest.MonkeyPatch) -> Cli:
    return Cli(node.home, monkeypatch)


@pytest.fixture
def guest(own: Cli, made: Cli, node: RunningNode) -> Iterator[Cli]:
    own.ok("peer", "add", "guest", made.ok("id", "--json").json["id"], "--scope", "echo")
    made.ok("peer", "add", "node", node.ticket)
    wait_until(lambda: made.ok("whoami", "@node", "--json").json["id"] == "peer:guest")
    yield made
    own.ok("peer", "remove", "guest")


def calls(own: Cli, operation: str) -> bool:
    """Whether the node runs *operation* now."""
    return f"call {operation}" in own.ok("status", "--tasks").out


@pytest.mark.parametrize(
    "target", [(), ("@node", "--transport", "quic"), ("@node", "--transport", "tcp")]
)
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_aborts_the_call_on_the_far_side(
    own: Cli, guest: Cli, target: tuple[str, ...], number: signal.Signals
) -> None:
    home = guest.home if target else own.home
    with process("call", *target[:1], *SLOW, *target[1:], home=home) as calling:
        wait_until(lambda: calls(own, "echo/unary"))
        calling.signal(number)
        result = calling.end()
    assert result.status == 128 + number
    assert result.out == ""
    assert "Traceback" not in result.err
    wait_until(lambda: not calls(own, "echo/unary"))


@pytest.mark.parametrize("transport", ["quic", "tcp"])
def test_ctrl_c_ends_a_subscription_on_the_far_side(own: Cli, guest: Cli, transport: str) -> None:
    data = '{"count": 1000000, "interval_ms": 5}'
    command = ("call", "@node", "echo/stream", data, "--transport", transport)
    with process(*command, home=guest.home) as calling:
        assert [json.loads(calling.line()) for _ in range(3)] == [{"n": 0}, {"n": 1}, {"n": 2}]
        assert calls(own, "echo/stream")
        calling.signal(signal.SIGINT)
        assert calling.end().status == 130
    wait_until(lambda: not calls(own, "echo/stream"))


def test_a_reader_that_goes_away_ends_the_subscription(own: Cli) -> None:
    data = '{"count": 1000000, "interval_ms": 1}'
    with process("call", "echo/stream", data, home=own.home) as calling:
        calling.line()
        assert calling.process.stdout is not None
        calling.process.stdout.close()
        assert calling.process.wait(PATIENCE_S) == 141
    wait_until(lambda: not calls(own, "echo/stream"))


def test_a_killed_caller_ends_its_call_on_the_far_side(own: Cli, guest: Cli) -> None:
    with process("call", "@node", *SLOW, "--transport", "tcp", home=guest.home) as calling:
        wait_until(lambda: calls(own, "echo/unary"))
        calling.signal(signal.SIGKILL)
    wait_until(lambda: not calls(own, "echo/unary"))


@pytest.mark.parametrize("transport", ["tcp", None])
def test_a_killed_node_leaves_its_callers_unavailable(
    made: Cli, tmp_path: Path, transport: str | None
) -> None:
    caller = tmp_path / "caller"
    made.ok("init", "--words-file", tmp_path / "words2", home=caller)
    key = made.ok("id", "--json", home=caller).json["id"]
    made.ok("peer", "add", "caller", key, "--scope", "echo")
    with running_node(made.home) as running:
        command = ["call", *SLOW, "--json"]
        home = made.home
        if transport is not None:
            command[1:1] = [running.ticket]
            command += ["--transport", transport]
            home = caller
        with process(*command, home=home) as calling:
            wait_until(lambda: calls(made, "echo/unary"))
            running.process.signal(signal.SIGKILL)
            result = calling.end()
    assert result.status == 4, result.err
    assert result.error["code"] == "UNAVAILABLE"
    # What a killed node leaves is no obstacle to the next.
    with running_node(made.home):
        made.ok("call", "node/ping")


def test_a_drained_node_leaves_its_callers_unavailable(made: Cli) -> None:
    with running_node(made.home) as running:
        with process("call", *SLOW, "--json", home=made.home) as calling:
            wait_until(lambda: calls(made, "echo/unary"))
            running.process.signal(signal.SIGTERM)
            running.process.lines_until("node.draining")
            running.process.signal(signal.SIGTERM)  # hurries
            result = calling.end()
            assert running.process.end().status == 0
    assert result.status == 4, result.err
    assert result.error["code"] == "UNAVAILABLE"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_at_the_first_word_of_a_node_drains_it(
    made: Cli, monkeypatch: pytest.MonkeyPatch, number: signal.Signals
) -> None:
    say_ready = up._say_ready

    def say_and_stop(node: Node, out: LineWriter, as_json: bool) -> None:
        say_ready(node, out, as_json)
        signal.raise_signal(number)  # whoever waits for the line has all it needs

    monkeypatch.setattr(up, "_say_ready", say_and_stop)
    said = made.ok("up", "--listen", "127.0.0.1:0", "--json").lines
    assert [line["event"] for line in said] == ["ready", "node.draining", "stopped"]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("stage", ["", "node.lock", "control.sock"])
def test_a_signal_while_it_starts_leaves_nothing(
    made: Cli, number: signal.Signals, stage: str
) -> None:
    with process("up", "--listen", "127.0.0.1:0", "--json", home=made.home) as starting:
        wait_until((made.home / stage).exists)
        result = ended_by(number, starting)
    # Python itself may be starting still: then the signal killed it, without a word from us. Or
    # the node was ready already, and has drained.
    expected = {0, 128 + number} if stage else {0, 128 + number, -number}
    if "runpy" in result.err or "Fatal Python error: init_" in result.err:
        expected |= {1}  # of a Ctrl-C before Python has its modules
    assert result.status in expected, result.err
    assert all_files(made.home) <= STARTED
    with running_node(made.home):
        pass


def ended_by(number: signal.Signals, running: Process) -> Result:
    """Signal until it ends, as a person would: Ctrl-C amid an import may be lost to Python.

    Its import system looks after its locks in callbacks, where a KeyboardInterrupt is ignored.
    """
    for _ in range(int(PATIENCE_S / SIGNAL_REPEAT_S)):
        running.signal(number)
        with contextlib.suppress(subprocess.TimeoutExpired):
            running.process.wait(SIGNAL_REPEAT_S)
            break
    return running.end()


def test_ctrl_c_while_dialling_ends_at_once(cli: Cli) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as never_answers:
        never_answers.bind(("127.0.0.1", 0))
        ticket = f"alknet://{'y' * 51}o@127.0.0.1:{never_answers.getsockname()[1]}"
        with process("call", ticket, "node/ping", home=cli.home) as calling:
            assert select.select([never_answers], [], [], PATIENCE_S)[0]
            calling.signal(signal.SIGINT)
            assert calling.end().status == 130

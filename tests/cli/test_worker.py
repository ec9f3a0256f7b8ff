"""Joining a hub from the command line, with both nodes as processes of their own."""

from __future__ import annotations

import os
import re
import select
import signal
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from alknet.core.invitation import Invitation
from tests.cli.kit import (
    PATIENCE_S,
    PROGRAM,
    Cli,
    RunningNode,
    process,
    running_node,
    terminal,
    wait_until,
)


@pytest.fixture
def hub_cli(node: RunningNode, monkeypatch: pytest.MonkeyPatch) -> Cli:
    """Commands on the home of the hub, which runs."""
    return Cli(node.home, monkeypatch)


@pytest.fixture
def invitation(hub_cli: Cli) -> Iterator[str]:
    """An invitation of the hub for ``w1``; the peer is forgotten after the test."""
    yield hub_cli.ok("peer", "invite", "w1", "--scope", "echo", "--json").json["invitation"]
    hub_cli("peer", "remove", "w1")


def joined(cli: Cli) -> list[str]:
    return [one["peer"] for one in cli.ok("worker", "list", "--json").json["hubs"]]


def test_join_makes_each_known_to_the_other(
    made: Cli, hub_cli: Cli, node: RunningNode, invitation: str
) -> None:
    done = made.ok("worker", "join", "--allow", "jobs:run", "--allow", "echo", stdin=invitation)
    assert "it may do here   jobs:run, echo" in done.out
    assert "we may do there  echo" in done.out
    assert "'alknet up' connects it" in done.err
    hub = made.ok("peer", "show", "hub", "--json").json
    assert hub["ids"] == [node.ready["id"]]
    assert hub["scopes"] == ["jobs:run", "echo"]
    assert hub["addresses"] == [node.ticket.partition("@")[2]]
    us = hub_cli.ok("peer", "show", "w1", "--json").json
    assert us["ids"] == [made.ok("id", "--json").json["id"]]
    assert us["scopes"] == ["echo"]
    assert joined(made) == ["hub"]
    assert made.ok("whoami", "@hub", "--json").json["id"] == "peer:w1"


def test_by_default_the_hub_may_do_nothing_and_that_is_said(made: Cli, invitation: str) -> None:
    done = made.ok("worker", "join", "--name", "centre", stdin=f"\n{invitation}\n")
    assert "it may do here   nothing but public operations" in done.out
    assert made.ok("peer", "show", "centre", "--json").json["scopes"] == []
    assert joined(made) == ["centre"]


def test_join_can_be_repeated_also_when_the_invitation_is_forgotten(
    made: Cli, hub_cli: Cli, invitation: str, tmp_path: Path
) -> None:
    file = tmp_path / "w1.invite"
    file.write_text(invitation)
    file.chmod(0o600)
    first = made.ok("worker", "join", "--file", file, "--allow", "echo", "--json").json
    assert (first["as"], first["allowed"], first["granted"]) == ("w1", ["echo"], ["echo"])
    assert made.ok("worker", "join", "--file", file, "--json").json == first
    rows = made.ok("audit", "--json").lines
    assert [row["action"] for row in rows].count("outbound.add") == 1
    other = hub_cli.ok("peer", "invite", "w9", "--json").json
    hub_cli.ok("peer", "uninvite", other["id"])
    assert made.ok("worker", "join", "--json", stdin=other["invitation"]).json == first
    changed = made.ok("worker", "join", "--file", file, "--allow", "a", "--json").json
    assert changed["allowed"] == ["a"]


def test_what_the_hub_refuses_says_what_to_do(made: Cli, hub_cli: Cli, invitation: str) -> None:
    wrong = made.fails(3, "worker", "join", "--as", "w2", "--json", stdin=invitation)
    assert wrong.error["message"] == "the hub refuses: the invitation is for 'w1', not for 'w2'"
    one = hub_cli.ok("peer", "invite", "w5", "--json").json
    hub_cli.ok("peer", "uninvite", one["id"])
    revoked = made.fails(3, "worker", "join", "--json", stdin=one["invitation"])
    assert "unknown or was revoked" in revoked.error["message"]
    assert "alknet peer invite" in revoked.error["hint"]
    assert one["invitation"][-20:] not in revoked.err
    made.ok("worker", "join", stdin=invitation)
    taken = hub_cli.ok("peer", "invite", "w6", "--json").json["invitation"]
    again = made.fails(1, "worker", "join", "--json", stdin=taken)
    assert again.error["code"] == "CONFLICT"
    assert "belongs to peer 'w1'" in again.error["message"]


def test_what_conflicts_here_is_refused_before_the_invitation_is_used(
    made: Cli, hub_cli: Cli, node: RunningNode, invitation: str
) -> None:
    made.ok("peer", "add", "centre", node.ticket)
    result = made.fails(1, "worker", "join", "--json", stdin=invitation)
    assert "belongs to peer 'centre' on this node" in result.error["message"]
    assert "--name and the name of the peer that has the key" in result.error["hint"]
    unused = hub_cli.ok("peer", "invites", "--json").json["invitations"]
    assert "w1" in [one["name"] for one in unused]
    made.ok("worker", "join", "--name", "centre", stdin=invitation)


@pytest.mark.parametrize("text", ["", "nonsense", "alknet://abc@h:1", "alknet-invite://x@h:1/yyy"])
def test_what_is_no_invitation_is_wrong_usage_and_not_repeated(made: Cli, text: str) -> None:
    result = made.fails(2, "worker", "join", stdin=text)
    assert "standard input" in result.err
    assert "yyy" not in result.err


def test_an_invitation_as_an_argument_is_refused_and_not_repeated(made: Cli) -> None:
    secret = "s3cr3t" * 8
    text = f"alknet-invite://{'y' * 52}@h:1/{secret}"
    assert str(Invitation.parse(text)) == text
    result = made.fails(2, "worker", "join", text)
    assert "not an argument" in result.err
    assert secret not in result.err


def test_on_a_terminal_it_asks_and_does_not_show_what_is_pasted(made: Cli, invitation: str) -> None:
    with terminal("worker", "join", home=made.home) as screen:
        screen.expect("Invitation: ")
        screen.type(f"{invitation}\n")
        assert screen.end() == 0
        assert invitation[-20:] not in screen.seen
        assert "we are there" in screen.seen
    assert joined(made) == ["hub"]


def test_a_node_does_not_join_itself(hub_cli: Cli, invitation: str) -> None:
    result = hub_cli.fails(1, "worker", "join", "--json", stdin=invitation)
    assert "of the very node" in result.error["message"]


def test_a_file_that_others_may_read_is_pointed_out(
    made: Cli, invitation: str, tmp_path: Path
) -> None:
    file = tmp_path / "w1.invite"
    file.write_text(invitation)
    file.chmod(0o644)
    assert "chmod 600" in made.ok("worker", "join", "--file", file).err


def test_nobody_there_is_unreachable_and_uses_nothing(made: Cli) -> None:
    text = f"alknet-invite://{'ab' * 32}@127.0.0.1:1/{'y' * 52}"
    failed = made.fails(4, "worker", "join", "--name", "gone", stdin=text)
    assert "'alknet peer invite NAME --address HOST:PORT' there" in failed.err
    assert made.ok("worker", "list", "--json").json == {"running": False, "hubs": []}


def test_a_running_worker_connects_lists_and_leaves(
    made: Cli, hub_cli: Cli, invitation: str
) -> None:
    with running_node(made.home):
        done = made.ok("worker", "join", "--allow", "echo", stdin=invitation)
        assert "does not run" not in done.err

        def state() -> str:
            [row] = made.ok("worker", "list", "--json").json["hubs"]
            found = row["connection"]
            return "none" if found is None else str(found["state"])

        wait_until(lambda: state() == "connected")
        assert "connected for" in made.ok("worker", "list").out
        assert "connected to hub" in made("doctor").out
        connections = hub_cli.ok("status", "--json").json["connections"]
        assert "peer:w1" in {one["identity"] for one in connections}
        assert "outbound" in made.ok("status", "--json").json
        made.ok("worker", "leave", "hub", "--forget")
        wait_until(
            lambda: (
                "peer:w1"
                not in {
                    one["identity"] for one in hub_cli.ok("status", "--json").json["connections"]
                }
            )
        )
    assert joined(made) == []
    made.fails(1, "peer", "show", "hub")
    made.fails(1, "worker", "leave", "hub")


@pytest.mark.slow
def test_a_worker_with_a_new_key_comes_back_once_its_hub_follows(
    made: Cli, hub_cli: Cli, invitation: str
) -> None:
    made.ok("worker", "join", "--allow", "echo", stdin=invitation)
    made.ok("key", "rotate", "--yes")
    assert joined(made) == ["hub"]
    with running_node(made.home):
        wait_until(lambda: hub_cli("peer", "follow", "w1", "--yes").status == 0)
        wait_until(lambda: "connected for" in made.ok("worker", "list").out)
    made.ok("worker", "leave", "hub")
    assert joined(made) == []


def test_a_hub_of_node_toml_is_listed_and_left_only_there(made: Cli) -> None:
    (made.home / "node.toml").write_text('[[outbound]]\nname = "hub"\n')
    [row] = made.ok("worker", "list", "--json").json["hubs"]
    assert (row["in_config"], row["problem"]) == (True, "there is no peer named 'hub'")
    assert "there is no peer" in made.ok("worker", "list").out
    result = made.fails(1, "worker", "leave", "hub", "--json")
    assert "node.toml" in result.error["message"]


def test_what_keeps_a_hub_from_being_dialled_is_shown(made: Cli) -> None:
    (made.home / "node.toml").write_text('[[outbound]]\nname = "hub"\n')
    with running_node(made.home):
        expected = "no connection to hub: there is no peer named 'hub'"
        wait_until(lambda: expected in made("doctor").out)
        [row] = made.ok("worker", "list", "--json").json["hubs"]
        assert row["connection"]["state"] == "stopped"
        assert "stopped" in made.ok("status").out
        made.ok("peer", "add", "hub", f"alknet://{'ab' * 32}@127.0.0.1:1")
        wait_until(lambda: "waiting" in made.ok("worker", "list").out)
        assert "connection refused" in made.ok("worker", "list").out


def test_killed_at_any_time_a_repeat_completes_it(
    made: Cli, hub_cli: Cli, invitation: str, tmp_path: Path
) -> None:
    """Killed by the clock, at times that cover all of it: whatever was done, the rest follows."""
    file = tmp_path / "w1.invite"
    file.write_text(invitation)
    command = [*PROGRAM, "--home", str(made.home), "worker", "join", "--file", str(file)]
    for after_ms in range(100, 900, 160):
        with subprocess.Popen(
            command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=os.environ
        ) as running:
            try:
                running.wait(after_ms / 1000)
            except subprocess.TimeoutExpired:
                running.send_signal(signal.SIGKILL)
    done = made.ok("worker", "join", "--file", file, "--json").json
    assert done["as"] == "w1"
    assert joined(made) == ["hub"]
    assert [one["name"] for one in hub_cli.ok("peer", "list", "--json").json["peers"]] == ["w1"]


def test_interrupted_it_says_so_and_a_repeat_completes_it(
    made: Cli, invitation: str, tmp_path: Path
) -> None:
    silent = tmp_path / "silent.invite"
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as never_answers:
        never_answers.bind(("127.0.0.1", 0))
        port = never_answers.getsockname()[1]
        silent.write_text(re.sub(r":\d+/", f":{port}/", invitation))
        with process("worker", "join", "--file", silent, home=made.home) as running:
            assert select.select([never_answers], [], [], PATIENCE_S)[0]
            running.signal(signal.SIGINT)
            assert running.end().status == 130
    assert joined(made) == []
    assert made.ok("worker", "join", "--json", stdin=invitation).json["as"] == "w1"

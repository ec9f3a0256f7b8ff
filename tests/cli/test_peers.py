"""A hub, a worker that has joined it, and a laptop that calls the one by the other."""

from __future__ import annotations

import re
import signal
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pytest

from tests.cli.kit import (
    Cli,
    Json,
    RunningNode,
    process,
    running_node,
    seen_when,
    terminal,
    wait_until,
)

HUB = """
[federation]
list_peers = true

[[re_export]]
peers = ["w*", "any"]
operations = ["echo/*"]
scopes_all = ["echo"]
"""
HI = '{"message": "hi"}'


@dataclass
class Fleet:
    """Commands on the homes of three nodes, of which hub and worker run."""

    hub: Cli
    worker: Cli
    laptop: Cli
    node: RunningNode


@pytest.fixture(scope="module")
def homes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, RunningNode]]:
    patched = pytest.MonkeyPatch()
    root = tmp_path_factory.mktemp("fleet")
    hub, worker, laptop = (Cli(root / name, patched) for name in ("hub", "worker", "laptop"))
    for cli in (hub, worker, laptop):
        cli.ok("init", "--words-file", f"{cli.home}.words")
    (hub.home / "node.toml").write_text(HUB)
    with running_node(hub.home) as node:
        invitation = hub.ok("peer", "invite", "w1", "--scope", "echo", "--json").json["invitation"]
        worker.ok("worker", "join", "--allow", "echo", stdin=invitation)
        laptop.ok("peer", "add", "hub", node.ticket)
        hub.ok("peer", "add", "laptop", laptop.ok("id", "--json").json["id"], "--scope", "echo")
        with running_node(worker.home):
            for cli in (hub, worker):
                wait_until(partial(offered, cli))
            yield root, node


@pytest.fixture
def fleet(homes: tuple[Path, RunningNode], monkeypatch: pytest.MonkeyPatch) -> Fleet:
    root, node = homes
    hub, worker, laptop = (Cli(root / name, monkeypatch) for name in ("hub", "worker", "laptop"))
    return Fleet(hub, worker, laptop, node)


def offered(cli: Cli, *options: str) -> list[str]:
    found = cli.ok("ops", "--peers", "--json", *options).json["operations"]
    return [one["name"] for one in found]


def test_peers_are_shown_as_a_tree_with_their_paths(fleet: Fleet) -> None:
    fleet.hub.ok("call", "@w1", "echo/unary", HI)
    [w1] = fleet.hub.ok("peers", "--json").json["peers"]
    assert (w1["name"], w1["is_healthy"], w1["in_flight"]) == ("w1", True, 0)
    assert w1["rtt_ms"] > 0
    assert w1["path_rtt_ms"] > 0
    # By which transport is a race, which QUIC may lose on a loaded machine.
    assert re.match(r"(quic|tcp) 127\.0\.0\.1:", w1["paths"][0])
    assert "echo/unary" in w1["operations"]
    header, row = fleet.hub.ok("peers", "--depth", "1", "--connected").out.splitlines()
    assert "RTT MS  CALL MS" in header
    assert re.match(r"└─ w1  up     (quic|tcp) +127\.0\.0\.1:", row)
    # The worker sees the hub, and what the hub tells it of itself.
    tree = fleet.worker.ok("peers", "--json").json["peers"]
    assert [(one["name"], [p["name"] for p in one["peers"]]) for one in tree] == [("hub", ["w1"])]
    assert "   └─ w1" in fleet.worker.ok("peers").out


def test_peers_that_are_away_are_shown_as_that(fleet: Fleet) -> None:
    def others() -> dict[str, Json]:
        found = fleet.hub.ok("peers", "--json").json
        assert [one["name"] for one in found["peers"]] == ["w1"]
        return {one["name"]: one for one in found["others"]}

    fleet.hub.ok("peer", "add", "never", f"ed25519:{'ab' * 32}")
    fleet.hub.ok("peer", "add", "off", f"ed25519:{'cd' * 32}")
    fleet.hub.ok("peer", "disable", "off")
    wait_until(lambda: others().get("off", {}).get("state") == "disabled")
    assert (others()["never"]["state"], others()["never"]["away_for_s"]) == ("away", None)
    shut_out = fleet.hub.fails(4, "call", "@off", "echo/unary", "--json").error
    assert shut_out["hint"] == "this node has disabled it: 'alknet peer enable off'"
    # A laptop that only calls is a peer, too.
    fleet.laptop.ok("call", "@hub", "echo/unary", HI)
    wait_until(lambda: others()["laptop"]["away_for_s"] is not None)
    out = fleet.hub.ok("peers").out
    assert re.search(r"─ laptop  away [0-9.m ]+s ", out)
    assert re.search(r"└─ off +disabled  +-  +-  +-  +-  +-$", out, re.MULTILINE)
    assert fleet.hub.ok("peers", "--connected", "--json").json["others"] == []
    for name in ("never", "off"):
        fleet.hub.ok("peer", "remove", name)


def test_a_peer_that_is_here_and_serves_nothing_is_not_away(fleet: Fleet) -> None:
    stream = ("call", "@hub", "echo/stream", '{"count": 1000, "interval_ms": 1000}')
    with process(*stream, home=fleet.laptop.home) as calls:
        assert calls.line() == '{"n":0}'
        # Peers that another test has removed may be there for a moment more.
        [laptop] = seen_when(
            lambda: fleet.hub.ok("peers", "--json").json["others"], lambda found: len(found) == 1
        )
        assert (laptop["state"], laptop["away_for_s"]) == ("serves none", None)
        assert re.search(r"laptop  serves none  (quic|tcp) 127", fleet.hub.ok("peers").out)
        calls.signal(signal.SIGINT)
        assert calls.end().status == 130


def test_of_another_node_those_are_shown_that_it_lets_us_reach(fleet: Fleet) -> None:
    [w1] = fleet.laptop.ok("peers", "@hub", "--json").json["peers"]
    assert w1["operations"] == ["echo/bidi", "echo/stream", "echo/unary", "echo/upload"]
    assert "node_id" not in w1


def test_what_another_node_does_not_tell_is_not_said_to_be_missing(fleet: Fleet) -> None:
    assert "@w1 tells of no peers" in fleet.hub.ok("peers", "@w1").err
    assert "none that are told of" in fleet.hub.ok("ops", "@w1", "--peers").err
    failed = fleet.laptop.fails(1, "peers", "@hub/w1", "--json")
    assert failed.error["message"] == "cannot ask @hub/w1"
    assert "ask the node itself" in failed.error["hint"]


@pytest.mark.parametrize("name", ["w1", "hub/w1"])
def test_a_peer_without_its_at_sign_is_told_how_it_is_written(fleet: Fleet, name: str) -> None:
    failed = fleet.laptop.fails(2, "peers", name)
    assert f"a peer is written '@{name}'" in failed.err


def test_what_is_dialled_in_vain_is_told_with_the_reason(
    fleet: Fleet, made: Cli, tmp_path: Path
) -> None:
    one = fleet.hub.ok("peer", "invite", "w9", "--json").json
    made.ok("worker", "join", stdin=one["invitation"])
    made.ok("peer", "set", "hub", "--address", "127.0.0.1:9")
    with running_node(made.home):
        wait_until(lambda: "hub is not connected" in made.ok("peers").err)
    fleet.hub.ok("peer", "remove", "w9")


@pytest.mark.parametrize("target", ["@any", "@w1"])
def test_the_hub_calls_a_worker_by_name_or_any(fleet: Fleet, target: str) -> None:
    assert fleet.hub.ok("call", target, "echo/unary", HI).json == {"message": "hi"}
    stream = fleet.hub.ok("call", target, "echo/stream", '{"count": 2}')
    assert stream.lines == [{"n": 0}, {"n": 1}]
    assert fleet.hub.ok("call", target, "echo/upload", stdin="1\n2\n").json == {"count": 2}
    assert fleet.hub.ok("call", target, "echo/bidi", stdin="1\n2\n").lines == [1, 2]
    again = fleet.hub.ok("call", target, "echo/unary", HI, "--retry", "1")
    assert again.json == {"message": "hi"}


@pytest.mark.parametrize("target", ["@hub/any", "@hub/w1"])
def test_others_call_a_worker_through_the_hub(fleet: Fleet, target: str) -> None:
    assert fleet.laptop.ok("call", target, "echo/unary", HI).json == {"message": "hi"}
    stream = fleet.laptop.ok("call", target, "echo/stream", '{"count": 2}')
    assert stream.lines == [{"n": 0}, {"n": 1}]
    schema = fleet.laptop.ok("ops", target, "echo/stream", "--json").json
    assert schema["op_type"] == "subscription"
    assert "echo/unary" in offered(fleet.laptop, "@hub")


def test_operations_of_a_peer_are_listed_in_one_form_whatever_the_way(fleet: Fleet) -> None:
    for cli, target in ((fleet.hub, "@w1"), (fleet.laptop, "@hub/w1"), (fleet.laptop, "@hub")):
        listed = cli.ok("ops", target, "--prefix", "echo/s").out
        header, row = listed.splitlines()
        assert header == "OPERATION    TYPE          DESCRIPTION"
        assert row.startswith("echo/stream  subscription  Send the numbers from 0 to count-1")
        [one] = cli.ok("ops", target, "--json", "--prefix", "echo/s").json["operations"]
        assert set(one) == {"name", "namespace", "op_type", "title", "description"}
    offered_by = fleet.laptop.ok("ops", "@hub/any", "--json", "--prefix", "echo/s").json
    assert offered_by == {"operations": [{"name": "echo/stream", "peers": ["w1"]}]}
    assert "OFFERED BY" in fleet.hub.ok("ops", "@any").out


def test_what_only_peers_of_a_node_offer_is_told_with_how_to_call_it(fleet: Fleet) -> None:
    node = fleet.worker.home / "node.toml"
    node.write_text(
        '[[command]]\nname = "jobs/x"\nrun = ["/bin/echo", "1"]\nscopes_all = ["echo"]\n'
    )
    wait_until(lambda: "jobs/x" in offered(fleet.hub))
    at_hub = fleet.hub.fails(1, "call", "jobs/x", "--json").error
    assert at_hub["hint"] == "w1 offers it: name it as @w1, or any that does as @any"
    # A caller is told only of what it may call there, and so is this one.
    beyond = fleet.laptop.fails(1, "call", "@hub", "jobs/x", "--json").error
    assert "'alknet ops' with the same target" in beyond["hint"]


def test_a_description_of_many_lines_is_one_in_the_list(fleet: Fleet) -> None:
    listed = fleet.hub.ok("ops", "@w1", "--prefix", "peers/").out
    assert "on the connection by which it says so." in listed
    assert len(listed.splitlines()) == 2
    assert "\\n" not in listed


def test_ping_says_what_to_use_beyond_neighbours(fleet: Fleet) -> None:
    assert fleet.hub.ok("ping", "@w1", "-c", "1", "--json").json["received"] == 1
    far = fleet.laptop.fails(1, "ping", "@hub/w1", "-c", "1", "--json").error
    assert far["message"].startswith("@hub does not pass node/ping on to w1")
    assert "'alknet ping @hub'" in far["hint"]
    assert "'alknet peers @hub'" in far["hint"]
    assert "name a peer" in fleet.laptop.fails(2, "ping", "@hub/any").err
    for command in ("whoami", "status"):
        error = fleet.laptop.fails(1, command, "@hub/w1", "--json").error
        assert "ask the node itself" in error["hint"]


def test_what_to_do_about_a_peer_that_is_not_connected_is_said(fleet: Fleet) -> None:
    fleet.hub.ok("peer", "add", "w8", f"ed25519:{'ab' * 32}")
    call = ("echo/unary", HI)

    def told(cli: Cli, target: str) -> str:
        wait_until(lambda: cli("call", target, *call).status == 4)
        return str(cli.fails(4, "call", target, *call, "--json").error["hint"])

    assert "it dials this node, and was last here: not since this node" in told(fleet.hub, "@w8")
    assert "'alknet peers @hub' shows whom" in told(fleet.laptop, "@hub/w8")
    fleet.hub.ok("peer", "remove", "w8")
    unknown = fleet.hub.fails(1, "call", "@w11", *call, "--json").error
    assert unknown["hint"].startswith("did you mean 'w1'? ")


def test_a_peer_that_is_dialled_in_vain_is_told_with_the_reason(fleet: Fleet, made: Cli) -> None:
    one = fleet.hub.ok("peer", "invite", "w9", "--json").json
    made.ok("worker", "join", stdin=one["invitation"])
    made.ok("peer", "set", "hub", "--no-addresses")
    with running_node(made.home):
        wait_until(lambda: "stopped" in made.ok("worker", "list").out)
        hint = made.fails(4, "call", "@hub", "node/ping", "--json").error["hint"]
        assert hint.startswith("this node dials it: no address is known for the peer; ")
    gone = made.fails(1, "worker", "leave", "hubs", "--json").error
    assert gone["hint"] == "did you mean 'hub'? 'alknet worker list' lists them"
    for command in (("remove", "hubs"), ("rename", "hubs", "x")):
        assert "did you mean 'hub'?" in made.fails(1, "peer", *command).err
    fleet.hub.ok("peer", "remove", "w9")


def test_an_error_says_which_worker_it_came_from(fleet: Fleet) -> None:
    wrong = ("echo/unary", "[1]")
    for target in ("@hub/w1", "@hub/any"):
        failed = fleet.laptop.fails(1, "call", target, *wrong, "--json")
        assert (failed.error["code"], failed.error["by"]) == ("INVALID_INPUT", ["w1"])
        assert "(said by w1)\n" in fleet.laptop.fails(1, "call", target, *wrong).err
    assert fleet.hub.fails(1, "call", "@any", *wrong, "--json").error["by"] == ["w1"]
    assert "by" not in fleet.hub.fails(1, "call", *wrong, "--json").error
    missing = fleet.laptop.fails(1, "call", "@hub/w1", "echo/none", "--json")
    assert "by" not in missing.error


@pytest.mark.parametrize(
    ("target", "operation", "status"),
    [
        ("@hub/w1", "node/whoami", 1),
        ("@hub/w2", "echo/unary", 1),
        ("@hub/w1/w1", "echo/unary", 1),
        ("@hub/W 1", "echo/unary", 2),
        ("@hub/any/w1", "echo/unary", 2),
        ("@any/w1", "echo/unary", 2),
        ("@", "echo/unary", 2),
    ],
)
def test_what_the_hub_does_not_pass_on_is_not_there(
    fleet: Fleet, target: str, operation: str, status: int
) -> None:
    fleet.laptop.fails(status, "call", target, operation)


def test_a_peer_without_an_address_needs_a_node_that_it_is_connected_to(
    fleet: Fleet, made: Cli
) -> None:
    other = fleet.hub.ok("id", "--json").json["id"]
    made.ok("peer", "add", "w7", other)
    failed = made.fails(4, "call", "@w7", "node/ping", "--json")
    assert "no address is known for peer 'w7', and no node runs" in failed.error["message"]
    assert "--address" in failed.error["hint"]
    with running_node(made.home):
        absent = made.fails(4, "call", "@w7", "node/ping", "--json")
        assert "'w7' is not connected for calls" in absent.error["message"]
        nobody = made.fails(1, "call", "@any", "math/add", "--json")
        assert "offers 'math/add'" in nobody.error["message"]


def test_top_looks_once_or_again_and_again(fleet: Fleet) -> None:
    # A call of another test may be ending still.
    once = seen_when(
        lambda: fleet.hub.ok("top", "--count", "1").out, lambda out: "calls 0  connections" in out
    )
    for row in once.splitlines()[3:]:  # nobody works: that all look on is none
        assert re.search(r"alknet/call +[0-9.ms ]+s +0 ", row), row
    assert "peers 1" in once
    assert "peer:w1" in once
    assert "None" not in once
    looks = fleet.hub.ok("top", "--count", "2", "--interval", "0.05", "--json").lines
    assert [look["peers"][0]["name"] for look in looks] == ["w1", "w1"]
    second = fleet.hub.ok("top", "--count", "2", "--interval", "0.05").out
    assert second.count("IDENTITY") == 2


def test_top_paints_on_a_terminal_and_leaves_it_as_it_was(fleet: Fleet) -> None:
    with terminal("top", "--interval", "0.1", home=fleet.hub.home) as screen:
        screen.expect("IDENTITY")
        screen.expect("IDENTITY")
        assert screen.interrupt() == 130
        # Of a key that was pressed again, while Python ended, the terminal itself shows a trace.
        assert screen.seen.replace("^C", "").endswith("\x1b[?25h\x1b[?1049l")

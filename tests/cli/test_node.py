"""Commands that talk to a running node, which is a process of its own."""

from __future__ import annotations

import fcntl
import json
import re
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.cli.kit import (
    PATIENCE_S,
    STARTED,
    Cli,
    RunningNode,
    all_files,
    process,
    running_node,
    wait_until,
)

pytestmark = pytest.mark.slow


@pytest.fixture
def own(node: RunningNode, monkeypatch: pytest.MonkeyPatch) -> Cli:
    """Commands on the home of the running node."""
    return Cli(node.home, monkeypatch)


@pytest.fixture
def peer(own: Cli, made: Cli, node: RunningNode) -> Iterator[Cli]:
    """Commands of another home, which the node knows as a peer with the scope ``echo``."""
    key = made.ok("id", "--json").json["fingerprint"]
    own.ok("peer", "add", "guest", key, "--scope", "echo")
    made.ok("peer", "add", "node", node.ticket)
    wait_until(lambda: made.ok("whoami", "@node", "--json").json["id"] == "peer:guest")
    yield made
    own.ok("peer", "remove", "guest")


def stream(cli: Cli, *arguments: str) -> list[Any]:
    return cli.ok("call", *arguments).lines


# --- the formats that scripts rely on


def test_the_first_line_of_up_says_who_and_where(node: RunningNode, own: Cli) -> None:
    ready = node.ready
    assert list(ready) == ["event", "id", "ticket", "listen"]
    assert ready["event"] == "ready"
    assert re.fullmatch(r"[a-z0-9]{52}", ready["id"])
    assert [one["transport"] for one in ready["listen"]] == ["quic", "tcp"]
    addresses = {one["address"] for one in ready["listen"]}
    assert len(addresses) == 1, "the same number for UDP and TCP"
    [address] = addresses
    assert re.fullmatch(r"127\.0\.0\.1:[1-9][0-9]*", address)
    assert ready["ticket"] == f"alknet://{ready['id']}@{address}"
    assert all("alknet/call" in one["alpns"] for one in ready["listen"])
    identity = own.ok("id", "--json").json
    assert own.ok("id", "--ticket").out == f"{node.ticket}\n"
    assert identity == {
        "id": ready["id"],
        "fingerprint": identity["fingerprint"],
        "ticket": ready["ticket"],
    }
    assert re.fullmatch("ed25519:[0-9a-f]{64}", identity["fingerprint"])


@pytest.mark.parametrize("transport", ["quic", "tcp"])
def test_a_peer_calls_over_each_transport(peer: Cli, node: RunningNode, transport: str) -> None:
    options = ("--transport", transport, "--json")
    pong = peer.ok("call", "@node", "node/ping", *options).json
    assert set(pong) == {"id", "time"}
    assert pong["id"] == node.ready["id"]
    data = '{"message": [1, "é", null]}'
    assert peer.ok("call", "@node", "/echo/unary", data, *options).json == json.loads(data)
    items = stream(peer, "@node", "echo/stream", '{"count": 3}', *options)
    assert items == [{"n": 0}, {"n": 1}, {"n": 2}]
    assert peer.ok("whoami", "@node", *options).json["carrier"] == transport


def test_items_are_read_from_standard_input(own: Cli) -> None:
    assert own.ok("call", "echo/upload", stdin='1\n\n{"a": 2}\n3').json == {"count": 3}
    assert own.ok("call", "echo/upload").json == {"count": 0}
    assert own.ok("call", "echo/bidi", stdin='"x"\n[1]\n').lines == ["x", [1]]
    for kind in ("upload", "bidi"):
        refused = own("call", f"echo/{kind}", stdin="1\n{]\n")
        assert (refused.status, "line 2 of standard input" in refused.err) == (2, True)
        refused = own("call", f"echo/{kind}", "-", stdin="{}")
        assert (refused.status, "cannot give the input too" in refused.err) == (2, True)


def test_operations_are_listed_without_a_leading_slash(own: Cli, peer: Cli) -> None:
    listed = own.ok("call", "services/list", "--json").json["operations"]
    names = {one["name"] for one in listed}
    assert {"node/ping", "echo/unary", "echo/stream", "node/status"} <= names
    assert all({"name", "namespace", "op_type"} <= set(one) for one in listed)
    assert own.ok("ops", "--json").json["operations"] == listed
    assert "node/status" not in peer.ok("ops", "@node").out
    assert "subscription" in peer.ok("ops", "@node", "--prefix", "echo/").out
    assert peer.ok("ops", "@node", "echo/unary", "--json").json["input_schema"]


def test_a_token_is_made_and_revoked_beside_the_running_node(
    own: Cli, cli: Cli, node: RunningNode, tmp_path: Path
) -> None:
    made = own.ok("token", "create", "ci", "--scope", "echo", "--json").json
    token_file = tmp_path / "token"
    token_file.write_text(made["token"] + "\n")
    call = ("call", node.ticket, "echo/unary", '{"message": 1}', "--json")

    def is_allowed() -> bool:
        return cli(*call, "--token-file", token_file).status == 0

    wait_until(is_allowed)
    assert cli.ok(*call, "--token-file", "-", stdin=made["token"]).json == {"message": 1}
    identity = cli.ok("whoami", node.ticket, "--token-file", token_file, "--json").json
    assert identity["id"] == f"key:{made['prefix']}"
    own.ok("token", "revoke", made["prefix"])
    wait_until(lambda: not is_allowed())
    assert cli.fails(3, *call, "--token-file", token_file).error["code"] == "FORBIDDEN"


def test_a_token_comes_from_the_environment(
    own: Cli, cli: Cli, node: RunningNode, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = own.ok("token", "create", "env", "--scope", "echo", "--json").json
    monkeypatch.setenv("ALKNET_TOKEN", made["token"])
    wait_until(lambda: cli("whoami", node.ticket, "--json").status == 0)
    assert cli.ok("whoami", node.ticket, "--json").json["scopes"] == ["echo"]


# --- call


def test_without_a_target_the_owner_calls_its_node(own: Cli) -> None:
    assert own.ok("whoami", "--json").json["id"] == "owner"
    assert own.ok("call", "echo/unary", "-", stdin='{"message": 1}\n').json == {"message": 1}


def test_the_input_is_sent_as_it_is(own: Cli) -> None:
    assert own.ok("call", "echo/unary", '{"message": 1e2}').json == {"message": 100}
    assert own.fails(1, "call", "echo/unary", "[1]", "--json").error["code"] == "INVALID_INPUT"
    assert own.fails(1, "call", "echo/unary", "--json").error["code"] == "INVALID_INPUT"


@pytest.mark.parametrize(
    "arguments",
    [
        (),
        ("@node",),
        ("node/ping", "{}", "{}"),
        ("node/ping", "{"),
        ("@node", "ping"),
        ("alknet://nonsense@h:1", "node/ping"),
        ("h:99999", "node/ping"),
        ("node/ping", "--transport", "tcp"),
        ("node/ping", "-", "--token-file", "-"),
        ("@node/B", "node/ping"),
        ("node/ping", "--timeout", "never"),
    ],
)
def test_wrong_usage_ends_with_2(own: Cli, arguments: tuple[str, ...]) -> None:
    assert own.fails(2, "call", *arguments, "--json").error["code"] == "USAGE"


def test_a_stranger_is_denied(cli: Cli, node: RunningNode) -> None:
    assert cli.ok("call", node.ticket, "node/ping").json["id"] == node.ready["id"]
    result = cli.fails(3, "call", node.ticket, "echo/unary", '{"message": 1}')
    assert result.err.startswith("error: FORBIDDEN: ")
    assert "hint: " in result.err


def test_unknown_operations_and_peers_fail_with_1(own: Cli) -> None:
    assert own.fails(1, "call", "no/thing", "--json").error["code"] == "NOT_FOUND"
    assert own.fails(1, "call", "@nobody", "node/ping", "--json").error["code"] == "NOT_FOUND"


def test_another_key_at_the_address_is_unreachable(cli: Cli, node: RunningNode) -> None:
    address = node.ready["listen"][0]["address"]
    other = "y" * 51 + "o"
    error = cli.fails(4, "call", f"alknet://{other}@{address}", "node/ping", "--json").error
    assert error["code"] == "UNAVAILABLE"
    assert {one["transport"] for one in error["attempts"]} == {"quic", "tcp"}


def test_a_bare_address_fails_closed_but_can_be_trusted_on_first_use(
    made: Cli, node: RunningNode
) -> None:
    address = node.ready["listen"][0]["address"]
    made.fails(4, "call", address, "node/ping")
    options = ("call", address, "node/ping", "--trust-first-use")
    assert made.ok(*options).json["id"] == node.ready["id"]
    assert made.ok(*options).json["id"] == node.ready["id"]


def test_a_slow_call_times_out_with_5(own: Cli) -> None:
    data = '{"message": 1, "delay_ms": 60000}'
    error = own.fails(5, "call", "echo/unary", data, "--timeout", "0.1s", "--json").error
    assert error["code"] == "TIMEOUT"


# --- ping, status, doctor


def test_ping_counts_and_measures(peer: Cli, own: Cli, node: RunningNode) -> None:
    report = peer.ok("ping", "@node", "-c", "3", "-i", "0", "--json").json
    assert (report["sent"], report["received"], report["id"]) == (3, 3, node.ready["id"])
    assert report["rtt_ms"]["min"] <= report["rtt_ms"]["avg"] <= report["rtt_ms"]["max"]
    assert "2 of 2 answered" in own.ok("ping", "-c", "2", "-i", "0").out


def test_status_shows_who_is_connected(own: Cli, node: RunningNode) -> None:
    def identities() -> list[str]:
        return [one["identity"] for one in own.ok("status", "--json").json["connections"]]

    wait_until(lambda: identities() == ["owner"])  # those of other tests may be ending still
    assert own.ok("status", "--json").json["ticket"] == node.ticket
    out = own.ok("status").out
    assert node.ticket in out
    assert re.search(r"^quic +127\.0\.0\.1:\d+ +alknet/call", out, re.MULTILINE)
    assert "call node/tasks" in own.ok("status", "--tasks").out


def test_status_of_another_node_takes_the_scope_for_it(peer: Cli) -> None:
    peer.fails(3, "status", "@node")


def test_doctor_reaches_the_running_node_by_both_transports(own: Cli) -> None:
    report = own.ok("doctor", "--json").json
    found = {one["check"]: one["level"] for one in report["checks"]}
    assert (found["node"], found["quic"], found["tcp"]) == ("ok", "ok", "ok")


# --- up


def test_a_second_up_on_one_home_is_refused(own: Cli, node: RunningNode) -> None:
    result = own.fails(1, "up", "--listen", "127.0.0.1:0", "--json")
    assert result.error["code"] == "CONFLICT"
    assert f"process {node.process.process.pid}" in result.error["message"]
    assert own.ok("call", "node/ping").json["id"] == node.ready["id"]


def test_a_port_that_is_taken_is_named(made: Cli, node: RunningNode) -> None:
    address = node.ready["listen"][0]["address"]
    error = made.fails(1, "up", "--listen", address, "--json").error
    assert address in error["message"]
    assert all_files(made.home) <= STARTED


@pytest.mark.parametrize("listen", ["127.0.0.1", "127.0.0.1:x", "h o:1"])
def test_an_address_that_makes_no_sense_is_wrong_usage(made: Cli, listen: str) -> None:
    made.fails(2, "up", "--listen", listen)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_drains_and_ends_with_0(made: Cli, number: signal.Signals) -> None:
    with running_node(made.home) as running:
        running.process.signal(number)
        result = running.process.end()
    assert result.status == 0, result.err
    events = [json.loads(line)["event"] for line in result.out.splitlines()]
    assert events == ["node.draining", "stopped"]
    assert all_files(made.home) <= STARTED


def test_events_are_json_lines(made: Cli) -> None:
    with running_node(made.home) as running:
        made.ok("call", running.ready["ticket"], "node/ping")
        seen = running.process.lines_until("connection.ended")
        assert seen[0]["event"] == "connection.accepted"
        assert seen[0]["identity"] == "anonymous"


def test_people_get_the_ticket_and_what_listens(made: Cli) -> None:
    with process("up", "--listen", "127.0.0.1:0", home=made.home) as started:
        assert started.line().startswith("node ")
        assert re.fullmatch(r"ticket +alknet://\S+@127\.0\.0\.1:\d+", started.line())
        served = "alknet/call, alknet/register, h3"
        assert re.fullmatch(rf"listens quic 127\.0\.0\.1:\d+  {served}", started.line())
        assert started.line().startswith("listens tcp ")
        started.signal(signal.SIGTERM)
        assert started.end().status == 0


def test_a_reader_that_stops_reading_does_not_stop_the_node(made: Cli) -> None:
    with running_node(made.home) as running:
        assert running.process.process.stdout is not None
        fcntl.fcntl(running.process.process.stdout, fcntl.F_SETPIPE_SZ, 4096)
        for _ in range(30):
            made.ok("call", running.ready["ticket"], "node/ping")
        running.process.signal(signal.SIGTERM)
        assert running.process.process.wait(PATIENCE_S) == 0


def test_an_edit_of_the_config_is_taken_over_while_it_runs(made: Cli, tmp_path: Path) -> None:
    with running_node(made.home) as running:
        text = f'[[peers]]\nname = "carol"\nid = "{"y" * 51 + "o"}"\n'
        (made.home / "node.toml").write_text(text)
        running.process.lines_until("config.reloaded")
        names = [one["name"] for one in made.ok("status", "--json").json["peers"]]
        assert names == ["carol"]


def test_the_service_manager_is_told(made: Cli, tmp_path: Path) -> None:
    import socket

    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(tmp_path / "notify"))
        manager.settimeout(PATIENCE_S)
        env = {"NOTIFY_SOCKET": str(tmp_path / "notify"), "WATCHDOG_USEC": "200000"}
        with running_node(made.home, **env) as running:
            assert {manager.recv(99) for _ in range(3)} == {b"READY=1", b"WATCHDOG=1"}
            running.process.signal(signal.SIGTERM)
            while manager.recv(99) != b"STOPPING=1":
                pass
            assert running.process.end().status == 0

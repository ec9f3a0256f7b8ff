"""``alknet worker list`` where something is wrong: with node.toml, or with the hub."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from alknet.cli.dialled import MOST_CHARS, error_lines, short_error
from alknet.cli.hubs import _condition
from tests.cli.kit import Cli, refusing_port, running_node, wait_until

BAD = "nonsense = 1\n"
REFUSED = (
    "cannot reach 127.0.0.1:9 and 1 more: tcp 127.0.0.1:9: connection refused; "
    "quic 127.0.0.1:9: connection refused; tcp [::1]:9: network is unreachable"
)


@pytest.fixture
def joined(made: Cli) -> Iterator[Cli]:
    """A worker of a hub that has gone since, from an address that nobody takes over."""
    hub = Cli(made.home.parent / "hub", made._monkeypatch)
    hub.ok("init", "--words-file", hub.home.parent / "hub.words")
    with running_node(hub.home):
        invitation = hub.ok("peer", "invite", "w1", "--json").json["invitation"]
        made.ok("worker", "join", stdin=invitation)
    with refusing_port() as port:
        made.ok("peer", "set", "hub", "--address", f"127.0.0.1:{port}")
        yield made


def test_a_bad_file_hides_no_hub_that_was_joined(joined: Cli) -> None:
    (joined.home / "node.toml").write_text(BAD)
    listed = joined.fails(1, "worker", "list")
    assert "hub  the node does not run" in listed.out
    assert "node.toml:1: nonsense: unknown key" in listed.err
    as_json = joined.fails(1, "worker", "list", "--json")
    assert [one["peer"] for one in as_json.json["hubs"]] == ["hub"]
    assert as_json.error["code"] == "CONFIG"


def test_a_bad_file_hides_no_hub_that_the_running_node_dials(joined: Cli) -> None:
    config = joined.home / "node.toml"
    config.write_text('[[outbound]]\nname = "other"\n')
    with running_node(joined.home):
        wait_until(lambda: "waiting" in joined.ok("worker", "list").out)
        config.write_text(BAD)
        hubs = joined.fails(1, "worker", "list", "--json").json["hubs"]
        assert [(one["peer"], one["in_config"]) for one in hubs] == [
            ("hub", False),
            ("other", True),
        ]
        # What an attempt met stands below the table, whole; in it, once.
        listed = joined.fails(1, "worker", "list").out
        table, below = listed.split("hub: cannot reach")
        assert "connection refused  127.0.0.1:" in table
        assert "\n  tcp  127.0.0.1:" in below
        assert "hub: cannot reach" not in joined.ok("status").out
        assert (
            "hub is not connected: nobody listens there, connection refused"
            in joined.ok("peers").err
        )


def test_a_bad_file_and_no_node_say_what_is_wrong(cli: Cli, made: Cli) -> None:
    (made.home / "node.toml").write_text(BAD)
    listed = made.fails(1, "worker", "list")
    assert listed.out == ""
    assert "no hubs" not in listed.err
    assert "unknown key" in listed.err
    nobody = Cli(made.home.parent / "nobody", made._monkeypatch)
    assert "there is no node" in nobody.fails(1, "worker", "list").err


def test_a_failed_dial_is_short_without_addresses_and_with_each_outcome_once() -> None:
    assert short_error(REFUSED) == "connection refused, network is unreachable"
    assert error_lines("hub", REFUSED) == [
        "hub: cannot reach 127.0.0.1:9 and 1 more",
        "  tcp  127.0.0.1:9: connection refused",
        "  quic 127.0.0.1:9: connection refused",
        "  tcp  [::1]:9: network is unreachable",
    ]


def test_what_is_no_failed_dial_is_cut() -> None:
    assert short_error("there is no peer named 'hub'") == "there is no peer named 'hub'"
    long = "the connection ended: " + "because " * 20
    assert len(short_error(long)) <= MOST_CHARS
    assert short_error(long).endswith("…")
    assert error_lines("hub", "a\x1b[2Jb") == ["hub: a\\x1b[2Jb"]


def test_a_hub_that_takes_no_operations_is_not_shown_as_one_that_calls() -> None:
    connection: dict[str, object] = {"state": "connected", "connected_for_s": 3.0}
    connection |= {"attempts": 0, "last_error": None}
    hub = {"connection": connection, "problem": None}
    assert _condition(hub, True) == ("connected for 3.0s", "-", "-")
    connection["is_called"] = False
    state, _, error = _condition(hub, True)
    assert state == "connected for 3.0s, not called"
    assert error == "it takes no operations from this node"

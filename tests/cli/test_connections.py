"""``alknet status --connections`` and ``alknet up --qlog``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from alknet.cli.units import amount, milliseconds
from tests.cli.kit import Cli, RunningNode, running_node, seen_when, wait_until

COLUMNS = (
    "CONNECTION IDENTITY BY ADDRESS ALPN AGE RTT MS CWND IN FLIGHT LOST MTU OUT IN STREAMS CALLS"
)


@pytest.mark.slow
def test_connections_are_a_table_of_transports(
    node: RunningNode, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = Cli(node.home, monkeypatch)

    def table() -> list[str]:
        return own.ok("status", "--connections").out.splitlines()

    # Those of other tests may be ending still.
    head, row = seen_when(table, lambda lines: len(lines) == 2)
    assert " ".join(head.split()) == COLUMNS
    assert "owner" in row
    assert " - " in row


@pytest.mark.slow
@pytest.mark.parametrize("transport", ["quic", "tcp"])
def test_the_json_has_all_fields_with_their_units(
    node: RunningNode, made: Cli, transport: str
) -> None:
    own_key = made.ok("id", "--json").json["fingerprint"]
    made.ok("peer", "add", "node", node.ticket)
    admin = Cli(node.home, made._monkeypatch)
    admin.ok("peer", "add", f"admin-{transport}", own_key, "--scope", "admin:node")

    def is_admin() -> bool:
        return made("status", "@node", "--json").status == 0

    wait_until(is_admin)
    arguments = ("status", "@node", "--connections", "--transport", transport, "--json")

    def own_connections() -> list[dict[str, Any]]:
        found = made.ok(*arguments).json["connections"]
        return [one for one in found if one["identity"] == f"peer:admin-{transport}"]

    # That of the look before may be ending still.
    (one,) = seen_when(own_connections, lambda found: len(found) == 1)
    admin.ok("peer", "remove", f"admin-{transport}")
    assert one["carrier"] == transport
    assert one["calls"] == 0  # to look on is no work
    status: dict[str, Any] = one["transport"]
    assert set(status) == {
        *("rtt_s", "rtt_min_s", "rtt_latest_s", "congestion_window_bytes", "in_flight_bytes"),
        *("packets_sent", "packets_received", "packets_lost", "mtu_bytes", "sent_bytes"),
        *("received_bytes", "streams"),
    }
    assert status["rtt_s"] > 0
    assert status["mtu_bytes"] >= 1200
    assert status["received_bytes"] > 100


def test_two_views_at_once_are_wrong_usage(made: Cli) -> None:
    made.fails(2, "status", "--connections", "--tasks")


@pytest.mark.parametrize(
    ("count", "text"),
    [(0, "0"), (1023, "1023"), (1024, "1.0Ki"), (15 * 1024, "15Ki"), (3 * 2**30, "3.0Gi")],
)
def test_amounts_of_bytes(count: int, text: str) -> None:
    assert amount(count) == text


def test_short_times() -> None:
    assert [milliseconds(seconds) for seconds in (0.00012, 0.00999, 0.25)] == [
        "0.12",
        "9.99",
        "250",
    ]


@pytest.mark.slow
@pytest.mark.parametrize("by_environment", [False, True])
def test_up_writes_qlog_files(made: Cli, tmp_path: Path, by_environment: bool) -> None:
    directory = tmp_path / "qlog"
    arguments = () if by_environment else ("--qlog", directory)
    env = {"ALKNET_QLOG": str(directory)} if by_environment else {}
    with running_node(made.home, *arguments, **env) as node:
        made.ok("call", node.ticket, "node/ping", "--transport", "quic")
        node.process.process.terminate()
        assert node.process.end().status == 0
    (path,) = directory.iterdir()
    assert path.name.endswith("_server.sqlog")
    assert b'"packet_received"' not in path.read_bytes().split(b"\x1e")[1]
    assert path.stat().st_mode & 0o077 == 0


def test_up_says_when_it_cannot_write_qlog_files(made: Cli, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    command = ("up", "--listen", "127.0.0.1:0", "--qlog", tmp_path / "file" / "x")
    assert "cannot write qlog files" in made.fails(1, *command).err


def test_the_help_says_what_qlog_costs(cli: Cli) -> None:
    assert "slow way" in " ".join(cli.ok("up", "--help").out.split())

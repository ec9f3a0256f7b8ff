"""The benchmarks measure what they say, in a form so small that the figures mean nothing."""

from __future__ import annotations

import io
import os
import sys
from pathlib import Path
from typing import Any

import msgspec
import pytest
import trio

from alknet.core.ticket import Ticket
from benchmarks import __main__ as program
from benchmarks import (
    bench_bulk,
    bench_call,
    bench_connect,
    bench_hostile,
    bench_mix,
    bench_packet,
    bench_routing,
    bench_vault,
)
from benchmarks.attacks import ATTACKS
from benchmarks.table import Aim, Row, Table, as_json, figure, row_of
from benchmarks.workers import Peer, left_out, running

pytestmark = pytest.mark.slow
CALL_METRICS = ["calls/s", "p50 us", "p99 us", "server CPU us/call", "client CPU us/call"]


def test_calls_are_measured_beside_the_floor() -> None:
    peers = (bench_call.OURS[0], bench_call.FLOOR)
    rows = bench_call.measure(peers, [(1, 2), (2, 2)], seconds=0.05, rounds=2)
    cases = ["2 in flight", "2 connections x 1 in flight"]
    assert [(r.case, r.peer) for r in rows] == [(c, p.name) for c in cases for p in peers]
    for row in rows:
        assert list(row.values) == CALL_METRICS
        assert all(value > 0 for value in row.values.values())
        assert row.values["p50 us"] <= row.values["p99 us"]


def test_the_vault_is_measured_beside_the_floor() -> None:
    rows = bench_vault.measure(rounds=1, count=10)
    assert {row.peer for row in rows} == {bench_vault.OURS, bench_vault.FLOOR}
    assert all(row.values["per s"] > 0 for row in rows)


def test_choosing_a_peer_is_measured_beside_calls_without_a_choice() -> None:
    rows = trio.run(bench_routing.measure, (3,), (2,), 20, 1)
    for case in ("3 attached", "2 attached, by QUIC"):
        found = {row.peer for row in rows if row.case == case}
        assert {bench_routing.DIRECT, bench_routing.SPECIFIC, *bench_routing.POLICIES} <= found
    assert {bench_routing.ATTACH, bench_routing.LIST, bench_routing.IMPORT} <= {
        row.peer for row in rows
    }


def test_bulk_is_measured_both_ways() -> None:
    peers = (bench_bulk.OURS[1], bench_bulk.FLOOR)
    rows = bench_bulk.measure(peers, size=300_000, limit_s=5, rounds=1)
    ways = [bench_bulk.DOWN, bench_bulk.UP]
    assert [(r.case, r.peer) for r in rows] == [(w, p.name) for w in ways for p in peers]
    assert all(value > 0 for row in rows for value in row.values.values())


def test_connecting_is_measured_with_its_memory() -> None:
    rows = bench_connect.measure([bench_call.OURS[0]], count=20)
    for row in rows:
        assert row.values["handshakes/s"] > 0
        assert row.values["server CPU ms"] > 0
        assert "KiB per idle connection" in row.values


def test_calls_are_measured_beside_bulk() -> None:
    rows = bench_mix.measure(bench_call.OURS[:1], seconds=0.3, rounds=1, links=3)
    by_case = {row.case: row.values for row in rows}
    assert by_case[bench_mix.ALONE].keys() == {"p50 us", "p99 us", "calls/s"}
    assert by_case[bench_mix.BULK].keys() == {"bulk MB/s"}
    assert by_case[bench_mix.BESIDE].keys() == {"p50 us", "p99 us", "calls/s", "bulk MB/s"}
    assert by_case["calls on 2 connections, bulk on one"]["bulk MB/s"] > 0


def test_calls_are_measured_under_attack() -> None:
    names = ["noise", "PINGs", "TLS byte by byte"]
    rows = bench_hostile.measure(names, [200], seconds=0.1, rounds=1)
    cases = [bench_hostile.case_name(name, 200) for name in (bench_hostile.DEAF, *names)]
    assert [row.case for row in rows] == [bench_hostile.IDLE, *cases]
    assert all(row.values["p99 us"] > 0 for row in rows)
    assert all(row.values["packets/s"] > 0 for row in rows[2:])


def test_every_attack_strikes(monkeypatch: pytest.MonkeyPatch) -> None:
    # A dozen attackers that have only what others leave of a core take minutes on a busy machine.
    monkeypatch.setattr(os, "sched_setscheduler", lambda *_: None)
    with running(bench_call.OURS[:1]) as (bench,):
        found = Ticket.parse(bench.address["ticket"]).addresses[0]
        target = (found.host, found.port)
        bench.open(1)
        for name in ATTACKS:
            with bench_hostile.attacking(name, target, 500) as sent:
                bench.client.ask("calls", seconds=0.05, in_flight=1)
            assert sent["packets"] > 0, name


def test_packets_are_measured_both_ways_and_in_parts() -> None:
    table = bench_packet.run(True)
    ours = {row.case for row in table.rows if row.peer == bench_packet.OURS}
    stock = {row.case for row in table.rows if row.peer == bench_packet.STOCK}
    assert stock < ours
    assert {"socket, sending singly", "of it, AEAD, encrypting"} <= ours
    assert all(row.values[bench_packet.METRIC] > 0 for row in table.rows)
    assert {aim.ratio for aim in bench_packet.AIMS} <= table.ratios().keys()


def test_a_worker_that_fails_says_so() -> None:
    with running([bench_call.FLOOR]) as (bench,):
        with pytest.raises(RuntimeError, match=r"client: .*ConnectionRefused|client: .*OSError"):
            bench.client.ask("open", address={**bench.address, "port": 1}, links=1, parallel=1)


@pytest.mark.parametrize("need", ["needs", "program", "venv"])
def test_a_peer_without_what_it_needs_is_named(need: str) -> None:
    options: dict[str, Any] = {need: "something_that_nobody_has"}
    absent = Peer("Absent", "nothing", **options)
    with running([absent]) as benches:
        assert benches == []
    assert left_out([absent, bench_call.FLOOR]) == ["Left out, not installed: Absent."]


ROWS = [
    Row("alknet over QUIC", "busy", {"MB/s": 50.0, "p50 us": 10.0}),
    Row("alknet over TCP", "busy", {"MB/s": 100.0}),
    Row("floor", "busy", {"MB/s": 200.0, "p50 us": 5.0}),
    Row("floor", "idle", {"MB/s": 1.0}),
]


def test_ratios_are_to_the_foreign_peers_of_the_same_case() -> None:
    assert Table("t", "T", "floor", ROWS).ratios() == {
        "alknet over QUIC / floor, busy, MB/s": 0.25,
        "alknet over QUIC / floor, busy, p50 us": 2.0,
        "alknet over TCP / floor, busy, MB/s": 0.5,
    }


def test_ratios_by_case_are_within_one_peer() -> None:
    table = Table("t", "T", "idle", ROWS[2:], is_by_case=True)
    assert table.ratios() == {
        "busy / idle, floor, MB/s": 200.0,
        "idle / busy, floor, MB/s": 0.005,
    }


def test_a_table_says_which_aims_are_met() -> None:
    key = "alknet over QUIC / floor, busy, MB/s"
    aims = [Aim(key, 0.2), Aim(key, 0.3), Aim(key, 0.3, is_at_least=False), Aim("absent", 1)]
    text = Table("t", "T", "floor", ROWS, aims=aims).markdown()
    assert "| alknet over QUIC | busy | 50.0 | 10.0 |  | 0.25 |" in text
    outcomes = [line[2:].split(":")[0] for line in text.splitlines() if line.startswith("- ")]
    assert outcomes == ["met", "missed", "met"]


def test_a_row_is_the_median_of_its_rounds() -> None:
    row = row_of("p", "c", [{"a": 1.0}, {"a": 4.0}, {"a": 2.0}])
    assert row == Row("p", "c", {"a": 2.0}, 1.5)


def test_figures_have_what_counts() -> None:
    assert [figure(v) for v in (0.123, 12.34, 1234.5)] == ["0.12", "12.3", "1,234"]


def test_json_is_one_object_with_rows_and_ratios() -> None:
    found = msgspec.json.decode(as_json([Table("t", "T", "floor", ROWS)]))
    assert found.keys() == {"machine", "rows", "ratios"}
    assert found["rows"][0]["bench"] == "t"
    assert found["ratios"]["t: alknet over TCP / floor, busy, MB/s"] == 0.5


def test_the_command_runs_what_is_named_and_writes_json(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    asked: list[bool] = []

    def run(is_quick: bool) -> Table:
        asked.append(is_quick)
        return Table("call", "Calls", "floor", ROWS)

    def never(is_quick: bool) -> Table:
        raise AssertionError("not asked for")

    output = io.StringIO()
    monkeypatch.setattr(program, "BENCHES", {"call": run, "bulk": never})
    monkeypatch.setattr(sys, "stdout", output)
    monkeypatch.setattr(sys, "argv", ["b", "call", "--quick", "--json", str(tmp_path / "j")])
    program.main()
    assert asked == [True]
    assert "## Calls" in output.getvalue()
    assert msgspec.json.decode((tmp_path / "j").read_bytes())["rows"]

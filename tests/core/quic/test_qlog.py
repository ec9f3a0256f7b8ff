"""qlog files: what is in them, what is not, and what a bad disk does to them."""

from __future__ import annotations

import json
import logging
import stat
from pathlib import Path
from typing import Any

import pytest
import trio
from aioquic.quic.packet import QuicTransportParameters

from alknet.client import open_session
from alknet.core.quic import qlog
from alknet.core.quic.qlog import QlogDirectory, QlogTrace
from alknet.errors import AlknetError, LocalError
from alknet.node import Node
from tests.scenarios.rig import eventually

Json = dict[str, Any]

# What qvis (QlogSchema02.ts) knows of the names that we write.
KNOWN = {
    "connectivity": {"spin_bit_updated"},
    "generic": {"info"},
    "recovery": {"metrics_updated", "packet_lost"},
    "security": {"key_updated", "key_retired"},
    "transport": {
        *("version_information", "alpn_information", "parameters_set", "packet_sent"),
        *("packet_received", "packet_dropped", "datagrams_sent", "datagrams_received"),
    },
}


def read(path: Path) -> tuple[Json, list[Json]]:
    """Read as RFC 7464 and qvis do: the header, and the events."""
    before, *records = path.read_bytes().split(b"\x1e")
    assert before == b""
    assert all(record.endswith(b"\n") for record in records)
    header, *events = map(json.loads, records)
    return header, events


def trace_in(directory: QlogDirectory, odcid: bytes, *, is_client: bool = True) -> QlogTrace:
    trace = directory.start_trace(is_client, odcid)
    assert isinstance(trace, QlogTrace)
    return trace


def a_packet(trace: QlogTrace) -> None:
    trace.log_event(category="transport", event="packet_sent", data={"frames": []})


def only_file(directory: Path) -> Path:
    (path,) = directory.iterdir()
    return path


def events_in(directory: Path) -> int:
    return sum(len(read(path)[1]) for path in directory.iterdir() if path.stat().st_size)


async def one_call(directory: Path) -> Path:
    async with Node(qlog=directory) as node:
        async with open_session(str(node.ticket), transports=["quic"]) as session:
            with pytest.raises(AlknetError):
                await session.call("echo/unary", {"message": "private"}, token="alk_secret_abc")
    return only_file(directory)


async def test_a_connection_writes_what_qvis_reads(tmp_path: Path) -> None:
    path = await one_call(tmp_path / "new" / "qlog")
    header, events = read(path)
    assert header["qlog_format"] == "JSON-SEQ"
    assert header["qlog_version"] == "0.3"
    assert header["trace"]["vantage_point"]["type"] == "server"
    common = header["trace"]["common_fields"]
    assert path.name == f"{common['ODCID']}_server.sqlog"
    assert common["time_format"] == "relative"
    assert common["reference_time"] > 1e12, "milliseconds since the epoch"
    times = [event["time"] for event in events]
    assert times == sorted(times)
    assert times[0] >= 0
    for event in events:
        category, _, name = event["name"].partition(":")
        assert name in KNOWN[category], event
    ways = {"transport:packet_sent", "transport:packet_received"}
    packets = [one["data"] for one in events if one["name"] in ways]
    assert {packet["header"]["packet_type"] for packet in packets} == {
        *("initial", "handshake", "1RTT")
    }
    assert all(packet["frames"] and packet["raw"]["length"] for packet in packets)
    metrics = [one["data"] for one in events if one["name"] == "recovery:metrics_updated"]
    assert {"congestion_window", "bytes_in_flight"} <= metrics[0].keys()


async def test_files_are_the_owners_alone(tmp_path: Path) -> None:
    path = await one_call(tmp_path / "qlog")
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700


async def test_no_secret_and_no_payload_is_in_a_file(tmp_path: Path) -> None:
    text = (await one_call(tmp_path)).read_text()
    assert "new_connection_id" in text
    for secret in ("reset_token", "alk_secret", "private", "echo/unary"):
        assert secret not in text


async def test_tokens_are_left_out_of_each_kind_of_event(tmp_path: Path) -> None:
    trace = trace_in(QlogDirectory(tmp_path), b"12345678")
    token = bytes(range(16))
    made = [
        trace.encode_new_connection_id_frame(b"abcd", 0, 1, token),
        trace.encode_new_token_frame(token),
        trace.encode_transport_parameters(
            "local", QuicTransportParameters(stateless_reset_token=token)
        ),
    ]
    assert token.hex() not in json.dumps(made)
    assert made[1] == {"frame_type": "new_token", "length": 16}


async def test_a_lost_packet_is_named_as_qvis_looks_it_up(tmp_path: Path) -> None:
    directory = QlogDirectory(tmp_path)
    trace = trace_in(directory, b"12345678")
    data = {"type": "1RTT", "packet_number": 7}
    trace.log_event(category="recovery", event="packet_lost", data=data)
    directory.close()
    (event,) = read(only_file(tmp_path))[1]
    assert event["data"] == {"header": {"packet_type": "1RTT", "packet_number": 7}}


async def test_what_is_not_quics_is_not_logged(tmp_path: Path) -> None:
    """HTTP events would hold header fields, and so cookies."""
    directory = QlogDirectory(tmp_path)
    trace = trace_in(directory, b"12345678")
    trace.log_event(category="http", event="frame_parsed", data={"cookie": "crumbs"})
    directory.close()
    assert "crumbs" not in only_file(tmp_path).read_text()


async def test_a_file_can_be_read_while_its_connection_lives(
    tmp_path: Path, nursery: trio.Nursery, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(qlog, "FLUSH_S", 0.001)
    directory = QlogDirectory(tmp_path)
    nursery.start_soon(directory.run)
    trace = trace_in(directory, b"12345678")
    for count in (1, 2):
        a_packet(trace)
        await eventually(lambda count=count: events_in(tmp_path) == count)
    nursery.cancel_scope.cancel()


async def test_a_full_file_says_so_and_grows_no_more(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(qlog, "MAX_FILE_BYTES", 100_000)
    directory = QlogDirectory(tmp_path)
    trace = trace_in(directory, b"12345678")
    for _ in range(5_000):
        a_packet(trace)
    directory.close()
    path = only_file(tmp_path)
    assert path.stat().st_size < 100_000 + 2 * qlog.CHUNK_BYTES
    last = read(path)[1][-1]
    assert last["name"] == "generic:info"
    assert "100000 bytes" in last["data"]["message"]


async def test_a_slow_disk_costs_records_and_the_file_says_how_many(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(qlog, "MAX_UNWRITTEN_BYTES", 50_000)
    directory = QlogDirectory(tmp_path)
    trace = trace_in(directory, b"12345678")
    for _ in range(2_000):
        a_packet(trace)  # nobody writes
    directory._writer.write_rest()
    a_packet(trace)
    directory.close()
    path = only_file(tmp_path)
    assert path.stat().st_size < 2 * 50_000
    messages = [one["data"]["message"] for one in read(path)[1] if one["name"] == "generic:info"]
    assert any("too slow" in message for message in messages)


async def test_a_file_begins_with_its_header_whatever_was_dropped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    directory = QlogDirectory(tmp_path)
    trace = trace_in(directory, b"12345678")
    a_packet(trace)
    with monkeypatch.context() as patch:
        patch.setattr(qlog, "MAX_UNWRITTEN_BYTES", 10)
        trace.flush()
    a_packet(trace)
    directory.close()
    header, events = read(only_file(tmp_path))
    assert header["qlog_format"] == "JSON-SEQ"
    assert [event["name"] for event in events] == ["generic:info", "transport:packet_sent"]


async def test_a_failing_disk_ends_the_logging_and_not_the_connections(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    directory = tmp_path / "qlog"
    async with Node(qlog=directory) as node:
        directory.rmdir()
        directory.write_text("no directory any more")
        for _ in range(2):
            async with open_session(str(node.ticket), transports=["quic"]) as session:
                await session.call("node/ping", {})
    stopped = [record for record in caplog.records if record.message == "qlog.stopped"]
    assert [record.levelno for record in stopped] == [logging.WARNING]


async def test_too_many_files_end_the_logging(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(qlog, "MAX_FILES", 3)
    directory = QlogDirectory(tmp_path)
    for number in range(5):
        trace = trace_in(directory, bytes([number]) * 8)
        a_packet(trace)
        directory.close()
    assert len(list(tmp_path.iterdir())) == 3
    assert directory.is_stopped


async def test_noise_leaves_no_file(tmp_path: Path) -> None:
    directory = QlogDirectory(tmp_path)
    trace = trace_in(directory, b"12345678", is_client=False)
    trace.log_event(category="transport", event="packet_dropped", data={})
    directory.end_trace(trace)
    directory.close()
    assert list(tmp_path.iterdir()) == []


async def test_connections_of_the_same_name_have_files_of_their_own(tmp_path: Path) -> None:
    """The client chooses the ODCID."""
    directory = QlogDirectory(tmp_path)
    for _ in range(2):
        trace = trace_in(directory, b"\0" * 8)
        a_packet(trace)
        directory.end_trace(trace)
    directory.close()
    names = {path.name for path in tmp_path.iterdir()}
    assert names == {"0000000000000000_client.sqlog", "0000000000000000_client.2.sqlog"}


async def test_a_directory_that_cannot_be_written_is_refused_at_the_start(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(LocalError, match="cannot write qlog files"):
        QlogDirectory(tmp_path / "file" / "qlog")

from __future__ import annotations

import io
import json
import logging
import re

import pytest
import trio

from alknet.core.log import MAX_FIELD_CHARS, bind, configure
from alknet.core.logfloods import FAULTS_PER_WINDOW

log = logging.getLogger("alknet.tests.log")
TOKEN = "alk_0123abcd_" + "S" * 43


@pytest.fixture
def stream() -> io.StringIO:
    return io.StringIO()


def lines(stream: io.StringIO) -> list[dict[str, object]]:
    return [json.loads(line) for line in stream.getvalue().splitlines()]


def test_a_json_line_has_time_level_logger_event_and_fields(stream: io.StringIO) -> None:
    configure("info", "json", stream)
    log.info("peer.accepted", extra={"alpn": "alknet/call", "count": 3, "raw": b"\xff"})
    (line,) = lines(stream)
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", str(line.pop("time")))
    assert line == {
        "level": "info",
        "logger": "alknet.tests.log",
        "event": "peer.accepted",
        "alpn": "alknet/call",
        "count": 3,
        "raw": "ff",
    }


def test_a_human_line_has_event_and_fields(stream: io.StringIO) -> None:
    configure("info", "human", stream)
    log.warning("peer.refused", extra={"reason": "too many", "code": 3})
    assert re.fullmatch(
        r'\d\d:\d\d:\d\d warning peer\.refused  reason="too many" code=3\n', stream.getvalue()
    )


async def test_child_tasks_inherit_the_ids_and_siblings_do_not_mix(stream: io.StringIO) -> None:
    configure("info", "json", stream)

    async def call(name: str) -> None:
        with bind(call=name):
            await trio.lowlevel.checkpoint()
            log.info("call.done")

    with bind(peer="alice", connection="c1"):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(call, "d1")
            nursery.start_soon(call, "d2")
    log.info("after")
    found = lines(stream)
    done = {(e.get("peer"), e.get("connection"), e.get("call")) for e in found[:2]}
    assert done == {("alice", "c1", "d1"), ("alice", "c1", "d2")}
    assert not {"peer", "connection", "call"} & found[2].keys()


def test_a_field_of_the_call_wins_over_the_context(stream: io.StringIO) -> None:
    configure("info", "json", stream)
    with bind(connection="c1"):
        log.info("event", extra={"connection": "c2"})
        with bind(connection="c3"):
            log.info("event")
        log.info("event")
    assert [line["connection"] for line in lines(stream)] == ["c2", "c3", "c1"]


@pytest.mark.parametrize("form", ["json", "human"])
def test_what_looks_like_a_secret_is_blanked_wherever_it_stands(
    form: str, stream: io.StringIO
) -> None:
    configure("info", form, stream)  # type: ignore[arg-type]  # a Literal from a parameter
    try:
        raise ValueError(f"bad token {TOKEN}")
    except ValueError:
        log.exception(f"failed with {TOKEN}", extra={"header": f"Bearer {TOKEN}"})  # noqa: G004
    log.info("event", extra={"auth_token": "hunter2", "body": {"password": "hunter2"}})
    log.info("event", extra={"list": [TOKEN], "words": ["abandon"]})
    log.info("event", extra={"invite": "alknet-invite://abc@h:1/hunter2"})
    text = stream.getvalue()
    assert "alk_0123abcd_***" in text
    for secret in ("SSSS", "hunter2", "abandon"):
        assert secret not in text


def test_a_crash_carries_its_traceback(stream: io.StringIO) -> None:
    configure("info", "json", stream)
    try:
        raise ZeroDivisionError("on purpose")
    except ZeroDivisionError as exc:
        log.error("handler.crashed", exc_info=exc)
    assert "ZeroDivisionError: on purpose" in str(lines(stream)[0]["traceback"])


def test_a_peers_text_cannot_fake_a_line_or_drive_the_terminal(stream: io.StringIO) -> None:
    configure("info", "human", stream)
    log.info("event", extra={"reason": "x\n12:00:00 error fake\x1b[2J"})
    assert stream.getvalue().count("\n") == 1
    log.error("event", exc_info=ValueError("\x1b[2J"))
    assert "\x1b" not in stream.getvalue()


def test_endless_fields_are_cut(stream: io.StringIO) -> None:
    configure("info", "json", stream)
    log.info("event", extra={"reason": "x" * 1_000_000})
    assert len(stream.getvalue()) < MAX_FIELD_CHARS + 200


def test_the_level_is_of_our_records_and_others_are_heard_from_warning_on(
    stream: io.StringIO,
) -> None:
    configure("debug", "json", stream)
    log.debug("ours")
    logging.getLogger("other").info("theirs")
    logging.getLogger("other").warning("their warning")
    configure("error", "json", stream)
    log.warning("not now")
    assert [line["event"] for line in lines(stream)] == ["ours", "their warning"]


def test_configuring_again_replaces_the_handler(stream: io.StringIO) -> None:
    configure("info", "json", io.StringIO())
    configure("info", "json", stream)
    log.info("once")
    assert len(lines(stream)) == 1


def test_an_unknown_level_is_named() -> None:
    with pytest.raises(ValueError, match="'loud' is not a log level"):
        configure("loud", "json", io.StringIO())


def test_faults_of_strangers_do_not_fill_the_log(stream: io.StringIO) -> None:
    configure("info", "json", stream)
    for _ in range(1_000):
        log.warning("call.protocol_fault", extra={"fault": "nonsense"})
    assert len(lines(stream)) == FAULTS_PER_WINDOW
    assert "others_withheld_s" in lines(stream)[-1]

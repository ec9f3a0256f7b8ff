"""Events that strangers can cause take only so many lines of the log."""

from __future__ import annotations

import logging

from alknet.core.logfloods import FAULTS_PER_WINDOW, WINDOW_S, FloodFilter

EVENT = "call.protocol_fault"


def record(event: str = EVENT, at: float = 1_000.0) -> logging.LogRecord:
    made = logging.makeLogRecord({"msg": event, "levelno": logging.WARNING})
    made.created = at
    return made


def test_the_first_records_of_a_minute_pass() -> None:
    flood = FloodFilter()
    passed = [flood.filter(record(at=1_000 + n / 100)) for n in range(3 * FAULTS_PER_WINDOW)]
    assert passed == [True] * FAULTS_PER_WINDOW + [False] * 2 * FAULTS_PER_WINDOW


def test_the_last_record_of_a_minute_says_that_it_is_the_last() -> None:
    flood = FloodFilter()
    records = [record(at=1_000.0 + n / 10) for n in range(FAULTS_PER_WINDOW)]
    for each in records:
        flood.filter(each)
    told = [vars(each).get("others_withheld_s") for each in records]
    assert told == [None] * (FAULTS_PER_WINDOW - 1) + [54]


def test_the_next_minute_says_how_many_were_withheld() -> None:
    flood = FloodFilter()
    for _ in range(FAULTS_PER_WINDOW + 17):
        flood.filter(record())
    first, second = record(at=1_000 + WINDOW_S), record(at=1_001 + WINDOW_S)
    assert flood.filter(first)
    assert flood.filter(second)
    assert vars(first)["withheld"] == 17
    assert "withheld" not in vars(second)


def test_a_quiet_minute_withholds_nothing() -> None:
    flood = FloodFilter()
    flood.filter(record())
    later = record(at=2_000)
    assert flood.filter(later)
    assert "withheld" not in vars(later)


def test_events_are_counted_apart_and_others_are_not_counted() -> None:
    flood = FloodFilter()
    for _ in range(FAULTS_PER_WINDOW + 1):
        flood.filter(record())
    assert not flood.filter(record())
    assert flood.filter(record("handshake.failed"))
    assert all(flood.filter(record("config.reloaded")) for _ in range(1_000))


def test_a_clock_that_is_set_back_silences_nothing() -> None:
    flood = FloodFilter()
    for _ in range(FAULTS_PER_WINDOW + 1):
        flood.filter(record(at=9_000))
    assert flood.filter(record(at=1_000))

"""Every row of tests/vectors/call.json, for other implementations to check themselves by."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import msgspec
import pytest

from alknet.call.proto import Event, Faulty, FrameDecoder, decode_envelope_untrusted
from alknet.errors import Malformed
from tests.fuzz import fuzz_call_proto

VECTORS = json.loads((Path(__file__).parent.parent / "vectors" / "call.json").read_text())

# What the message of `Malformed` says for each reason of the file.
WORDS = {
    "length": "frame of",
    "truncated": "amid a frame",
    "json": "not an envelope: (JSON is malformed|Input data was truncated)",
    "utf-8": "UTF-8",
    "envelope": "not an envelope: (Expected|Object missing)|payload is not an object",
    "id": "an id has",
    "duplicate": "duplicate key",
    "depth": "nested deeper",
}


def _decode(data: bytes) -> Event:
    decoder = FrameDecoder(VECTORS["limit"])
    decoder.receive_data_untrusted(data)
    frame = decoder.next_frame()
    if frame is None:
        raise Malformed("the stream ended amid a frame")
    assert decoder.next_frame() is None
    return decode_envelope_untrusted(frame)


def _field(event: Event, name: str) -> Any:
    if isinstance(event, Faulty) and name == "code":
        return event.error.code
    value = getattr(event, name)
    if isinstance(value, msgspec.Raw):
        return json.loads(bytes(value))
    return list(value) if isinstance(value, tuple) else value


@pytest.mark.parametrize("row", VECTORS["good"], ids=lambda row: row["name"])
def test_good_vectors(row: dict[str, Any]) -> None:
    event = _decode(bytes.fromhex(row["bytes"]))
    assert type(event).__name__ == row["event"]
    assert {name: _field(event, name) for name in row["fields"]} == row["fields"]


@pytest.mark.parametrize("row", VECTORS["bad"], ids=lambda row: row["name"])
def test_bad_vectors(row: dict[str, Any]) -> None:
    with pytest.raises(Malformed, match=WORDS[row["reason"]]):
        _decode(bytes.fromhex(row["bytes"]))


def test_names_are_unique() -> None:
    names = [row["name"] for row in VECTORS["good"] + VECTORS["bad"]]
    assert len(set(names)) == len(names)


def test_the_fuzz_target_takes_every_seed_and_its_mutations() -> None:
    for seed in fuzz_call_proto.seeds():
        for data in (seed, seed[4:], seed[::-1], seed + seed, bytes([0, *seed]), seed[:-1]):
            fuzz_call_proto.fuzz_one(data)

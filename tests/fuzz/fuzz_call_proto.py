"""Fuzz the wire of ``alknet/call``: ``python -m tests.fuzz.fuzz_call_proto [corpus]`` (atheris)."""

from __future__ import annotations

import contextlib
import json
import sys
from pathlib import Path

from alknet.call.proto import (
    Faulty,
    FrameDecoder,
    Unknown,
    decode_envelope_untrusted,
    encode_event,
)
from alknet.errors import Malformed

LIMIT = 65_536
VECTORS = Path(__file__).parent.parent / "vectors" / "call.json"


def fuzz_one(data: bytes) -> None:
    """Feed *data* as a stream, cut at a place that it chooses itself, and as one envelope."""
    with contextlib.suppress(Malformed):
        _envelope(data)
    decoder = FrameDecoder(LIMIT)
    cut = data[0] if data else 0
    with contextlib.suppress(Malformed):
        for piece in (data[:cut], data[cut:]):
            decoder.receive_data_untrusted(piece)
            while (frame := decoder.next_frame()) is not None:
                _envelope(frame)


def _envelope(data: bytes) -> None:
    event = decode_envelope_untrusted(data)
    if not isinstance(event, Faulty | Unknown):
        assert decode_envelope_untrusted(encode_event(event)) == event


def seeds() -> list[bytes]:
    """Return the published vectors, where a fuzzer best begins."""
    vectors = json.loads(VECTORS.read_text())
    return [bytes.fromhex(row["bytes"]) for row in vectors["good"] + vectors["bad"]]


def main() -> None:
    """Run atheris with the command line's arguments."""
    import atheris  # only where fuzzing is wanted

    atheris.instrument_all()
    atheris.Setup(sys.argv, fuzz_one)
    atheris.Fuzz()


if __name__ == "__main__":
    main()

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from alknet.call.codes import CallError
from alknet.call.proto import (
    MAX_CREDIT,
    MAX_DEPTH,
    Aborted,
    Completed,
    ConnectionClose,
    Credit,
    Event,
    Failed,
    Faulty,
    FrameDecoder,
    InputEnd,
    InputItem,
    Requested,
    Responded,
    Unknown,
    decode_envelope_untrusted,
    encode_event,
    encode_frame,
)
from alknet.core.identity import Grant, Identity
from alknet.errors import Malformed

RAW = msgspec.Raw(b'{"a":[1,"\xc3\xa9"]}')

EVENTS: list[Event] = [
    Requested(id="d1", operation="echo/unary"),
    Requested(
        id="é" * 64,
        operation="a/b/c.d_e-f",
        input=RAW,
        auth_token="alk_a_b",
        forwarded_for=Identity("peer:w", ("a:b",), (Grant("file", "x", None),)),
        timeout_ms=1,
        traceparent="00-0-0-00",
        window=MAX_CREDIT,
        peer=("w1", "w2"),
        path=("n1",),
        has_input_items=True,
        idempotency_key="k",
    ),
    Responded("d1", RAW),
    Responded('quote"\\', msgspec.Raw(b"null")),
    Completed("d1"),
    Aborted("d1"),
    Aborted("d1", "shutdown"),
    Failed("d1", "FISH", "gone", True, {"kind": "cod", "path": "/a/0"}),
    Failed("d1", "TIMEOUT", "", True),
    InputItem("d1", RAW),
    InputEnd("d1"),
    Credit("d1", 1),
    ConnectionClose(4, "shutting down"),
]


@pytest.mark.parametrize("event", EVENTS, ids=lambda event: type(event).__name__)
def test_every_event_survives_the_wire(event: Event) -> None:
    encoded = encode_event(event)
    assert decode_envelope_untrusted(encoded) == event
    # The same in the other order of keys, with spaces: the slow path agrees with the fast one.
    spaced = json.dumps(json.loads(encoded), sort_keys=True, indent=1, ensure_ascii=False).encode()
    again = decode_envelope_untrusted(spaced)
    assert type(again) is type(event)
    assert json.loads(encode_event(again)) == json.loads(encoded)


def test_a_token_is_in_no_repr() -> None:
    event = Requested(id="d1", operation="a/b", auth_token="alk_secret")
    assert "alk_secret" not in f"{event!r} {event} {[event]}"


@pytest.mark.parametrize("depth", [MAX_DEPTH, MAX_DEPTH + 1])
@pytest.mark.parametrize("open_close", ["[]", "{}"])
def test_the_depth_limit_counts_the_envelope(depth: int, open_close: str) -> None:
    inner = depth - 2  # the envelope and the payload are levels
    opener = "[" if open_close == "[]" else '{"k":'
    closer = open_close[1]
    value = opener * inner + "0" + closer * inner
    data = f'{{"type":"call.responded","id":"d1","payload":{{"output":{value}}}}}'.encode()
    if depth <= MAX_DEPTH:
        assert isinstance(decode_envelope_untrusted(data), Responded)
    else:
        with pytest.raises(Malformed, match="nested"):
            decode_envelope_untrusted(data)


def test_brackets_in_strings_are_no_depth() -> None:
    text = json.dumps('[[{"\\' * 200)
    data = f'{{"type":"call.responded","id":"d1","payload":{{"output":[{text},{text}]}}}}'.encode()
    assert isinstance(decode_envelope_untrusted(data), Responded)


def test_a_wide_value_is_not_deep() -> None:
    wide = json.dumps([{"n": n} for n in range(50_000)])
    data = f'{{"type":"call.responded","id":"d1","payload":{{"output":{wide}}}}}'.encode()
    assert isinstance(decode_envelope_untrusted(data), Responded)


@pytest.mark.parametrize("make", [lambda n: b"[" * n, lambda n: b'{"a":' * n])
def test_a_hundred_thousand_levels_are_malformed(make: Callable[[int], bytes]) -> None:
    for head in (
        b'{"type":"call.requested","id":"d1","payload":{"operationId":"/a/b","input":',
        b'{"x":',
        b"",
    ):
        with pytest.raises(Malformed):
            decode_envelope_untrusted(head + make(100_000))


@pytest.mark.parametrize(
    ("number", "is_safe"),
    [
        ("9007199254740991", True),
        ("-9007199254740991", True),
        ("9007199254740992", False),
        ("-9007199254740992", False),
        ("1" + "0" * 5000, False),
        ("9007199254740992.5", True),
        ("0.12345678901234567890", True),
        ("1e300", True),
        ('"9007199254740992"', True),
        ('"a\\"9007199254740992"', True),
    ],
)
def test_integers_stay_within_what_everyone_holds(number: str, is_safe: bool) -> None:
    request = f'"operationId":"/a/b","input":[{number}]'
    data = f'{{"type":"call.requested","id":"d1","payload":{{{request}}}}}'.encode()
    event = decode_envelope_untrusted(data)
    assert isinstance(event, Requested if is_safe else Faulty)
    if isinstance(event, Faulty):
        assert event.error.code == "INVALID_INPUT"


@pytest.mark.parametrize(
    ("name", "code"),
    [
        ("/echo/unary", None),
        ("echo/unary", None),
        ("/a/b/c", None),
        ("/" + "a" * 64 + "/b", None),
        ("/a/" + "/".join("b" * 50 for _ in range(4)), None),
        ("/a/" + "/".join("b" * 50 for _ in range(6)), "NOT_FOUND"),
        ("/" + "a" * 65 + "/b", "NOT_FOUND"),
        ("/echo", "NOT_FOUND"),
        ("//echo/unary", "NOT_FOUND"),
        ("/echo/unary/", "NOT_FOUND"),
        ("/echo/un ary", "NOT_FOUND"),
        ("/écho/unary", "NOT_FOUND"),
        ("", "NOT_FOUND"),
    ],
)
def test_operation_names(name: str, code: str | None) -> None:
    payload = {"type": "call.requested", "id": "d1", "payload": {"operationId": name}}
    event = decode_envelope_untrusted(json.dumps(payload).encode())
    if code is None:
        assert isinstance(event, Requested)
        assert event.operation == name.removeprefix("/")
    else:
        assert isinstance(event, Faulty)
        assert event.error.code == code


@pytest.mark.parametrize(
    "field",
    [
        {"window": 0},
        {"window": -1},
        {"window": 2**31},
        {"window": 2**63},
        {"window": "many"},
        {"timeout_ms": 0},
        {"timeout_ms": 1.5},
        {"auth_token": 7},
        {"auth_token": "x" * 1025},
        {"path": ["n"] * 9},
        {"forwarded_for": {"scopes": []}},
        {"forwarded_for": {"id": "x" * 5000}},
    ],
)
def test_a_bad_field_is_the_fault_of_one_call(field: dict[str, object]) -> None:
    payload = {"operationId": "/a/b", **field}
    data = json.dumps({"type": "call.requested", "id": "d1", "payload": payload}).encode()
    event = decode_envelope_untrusted(data)
    assert isinstance(event, Faulty)
    assert (event.id, event.type, event.error.code) == ("d1", "call.requested", "INVALID_INPUT")


def test_unknown_keys_are_ignored_everywhere() -> None:
    data = (
        b'{"v":[1,{"type":2}],"type":"call.requested","id":"d1","payload":{"operationId":"/a/b",'
        b'"forwarded_for":{"id":"x","mood":"good"},"later":{"id":[]}},"x":"}","y":-1.5e3}'
    )
    event = decode_envelope_untrusted(data)
    assert isinstance(event, Requested)
    assert event.forwarded_for == Identity("x")


def test_unknown_types_are_known_as_such() -> None:
    data = b'{"type":"call.paused","id":"d1","payload":{"n":9007199254740992}}'
    assert decode_envelope_untrusted(data) == Unknown("call.paused", "d1")


def test_an_error_without_its_optional_parts_has_the_default_of_its_code() -> None:
    data = b'{"type":"call.error","id":"d1","payload":{"code":"TIMEOUT","details":[1]}}'
    event = decode_envelope_untrusted(data)
    assert event == Failed("d1", "TIMEOUT", "", True, None)
    assert isinstance(event, Failed)
    error = event.to_error()
    assert isinstance(error, CallError)
    assert error.retryable


@given(st.binary(max_size=200))
def test_any_bytes_are_an_event_or_malformed(data: bytes) -> None:
    with contextlib.suppress(Malformed):
        decode_envelope_untrusted(data)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner),
    max_leaves=8,
)
TYPES = st.sampled_from([json.loads(encode_event(event))["type"] for event in EVENTS])
KEYS = st.sampled_from(
    ["operationId", "input", "auth_token", "forwarded_for", "timeout_ms", "window", "peer", "path"]
) | st.sampled_from(["output", "code", "message", "retryable", "details", "item", "n", "reason"])


@given(TYPES, st.text(max_size=130), st.dictionaries(KEYS, JSON))
def test_any_payload_is_an_event_or_a_fault_of_its_call(
    kind: str, call_id: str, payload: dict[str, object]
) -> None:
    data = json.dumps({"type": kind, "id": call_id, "payload": payload}).encode()
    try:
        event = decode_envelope_untrusted(data)
    except Malformed:
        return
    assert getattr(event, "id", call_id) == call_id
    if not isinstance(event, Faulty):
        assert decode_envelope_untrusted(encode_event(event)) == event


@given(
    st.lists(st.binary(min_size=1, max_size=40), max_size=8),
    st.lists(st.integers(min_value=1, max_value=30), min_size=1, max_size=30),
)
def test_frames_come_out_however_the_bytes_are_split(frames: list[bytes], cuts: list[int]) -> None:
    data = b"".join(map(encode_frame, frames))
    decoder = FrameDecoder(40)
    out: list[bytes] = []
    while data:
        cut = cuts[len(out) % len(cuts)]
        decoder.receive_data_untrusted(data[:cut])
        data = data[cut:]
        while (frame := decoder.next_frame()) is not None:
            out.append(frame)
    assert out == frames
    assert decoder.buffered_bytes == 0


@pytest.mark.parametrize("length", [0, 101, 2**32 - 1])
def test_a_bad_length_is_refused_before_its_bytes_come(length: int) -> None:
    decoder = FrameDecoder(100)
    decoder.receive_data_untrusted(length.to_bytes(4, "big"))
    with pytest.raises(Malformed):
        decoder.next_frame()
    with pytest.raises(Malformed):
        decoder.receive_data_untrusted(b"x")
    assert decoder.buffered_bytes == 4


def test_the_limit_can_be_raised_between_frames() -> None:
    decoder = FrameDecoder(10)
    decoder.receive_data_untrusted(encode_frame(b"small") + encode_frame(b"x" * 20))
    assert decoder.next_frame() == b"small"
    decoder.limit = 20
    assert decoder.next_frame() == b"x" * 20
    assert decoder.next_frame() is None


def test_an_originator_with_more_rights_than_fit_is_sent_without_them() -> None:
    grants = tuple(Grant("file", f"f{n}", None) for n in range(500))
    few = ("a:b",)
    many = tuple(f"scope:{n}" for n in range(2_000))
    for scopes, expected in ((few, few), (many, ())):
        origin = Identity("peer:w", scopes, grants)
        event = decode_envelope_untrusted(
            encode_event(Requested(id="d1", operation="a/b", forwarded_for=origin))
        )
        assert isinstance(event, Requested)
        assert event.forwarded_for == Identity("peer:w", expected)

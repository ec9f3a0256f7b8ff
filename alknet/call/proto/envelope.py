"""Envelopes: bytes of one message to an `Event` and back."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Annotated, Any

import msgspec
from msgspec import Meta, Raw

from alknet.call.codes import CallError, ErrorCode, code_info
from alknet.call.proto.events import (
    MAX_CREDIT,
    MAX_ID_BYTES,
    MAX_KEY_BYTES,
    Aborted,
    Completed,
    ConnectionClose,
    Credit,
    Event,
    Failed,
    Faulty,
    InputEnd,
    InputItem,
    Requested,
    Responded,
    Unknown,
)
from alknet.call.proto.scan import (
    check_depth_untrusted,
    check_text_untrusted,
    check_unique_keys_untrusted,
    has_unsafe_integer,
)
from alknet.core.identity import Grant, Identity
from alknet.errors import Malformed

__all__ = ["decode_envelope_untrusted", "encode_event"]


def decode_envelope_untrusted(data: bytes) -> Event:
    """Decode one message.

    The JSON that stays encoded in the event (``input``, ``output``, ``item``) is sound. It may
    refer to *data*, which lives as long, unless *data* is much longer.

    Returns:
        The event; `Unknown` for a type of a later version, `Faulty` where only the payload is
        bad, so that the call alone ends.

    Raises:
        Malformed: The bytes are no envelope, and their stream means nothing any more.
    """
    check_text_untrusted(data)
    check_depth_untrusted(data)
    event = _decode_usual(data)
    if event is None:
        event = _decode_any_untrusted(data)
    if not isinstance(event, Unknown) and has_unsafe_integer(data):
        return _faulty_integer(event, data)
    return event


def encode_event(event: Event) -> bytes:
    """Return the JSON of *event*, without a frame around it."""
    # The two of every call; what they hold is JSON already.
    if type(event) is Responded:
        return b'{"type":"call.responded","id":%b,"payload":{"output":%b%b}}' % (
            _encode(event.id),
            bytes(event.output),
            b',"more":true' if event.more else b"",
        )
    if type(event) is Requested and _is_plain(event):
        return b'{"type":"call.requested","id":%b,"payload":{"operationId":%b,"input":%b%b}}' % (
            _encode(event.id),
            _encode("/" + event.operation),
            bytes(event.input),
            b"" if event.timeout_ms is None else b',"timeout_ms":%d' % event.timeout_ms,
        )
    name, payload = _TO_WIRE[type(event)](event)
    call_id = getattr(event, "id", _CLOSE_ID)
    return _encode(_Envelope(name, call_id, Raw(_encode(payload))))


# --- decoding


def _decode_usual(data: bytes) -> Event | None:
    # Keys in our order, no escapes in type and id, and the payload last: if what lies between the
    # match and the last brace is one JSON value, then nothing else is there, no duplicate either.
    match = _USUAL.match(data)
    if match is None or data[-1] != _CLOSING_BRACE:
        return None
    name, call_id = match.groups()
    build = _FROM_WIRE.get(name)
    try:
        payload = memoryview(data)[match.end() : -1]
        if build is None:
            _ANYTHING.decode(payload)
            return Unknown(name.decode(), call_id.decode())
        return build(call_id.decode(), payload)
    except (msgspec.DecodeError, RecursionError):
        return None


def _decode_any_untrusted(data: bytes) -> Event:
    try:
        envelope = _ENVELOPE.decode(data)
    except (msgspec.DecodeError, RecursionError) as exc:
        raise Malformed(f"not an envelope: {str(exc)[:200]}") from None
    payload = bytes(envelope.payload)
    if not payload.startswith(b"{"):
        raise Malformed("the payload is not an object")
    check_unique_keys_untrusted(data, payload)
    if not 1 <= len(envelope.id.encode()) <= MAX_ID_BYTES:
        raise Malformed(f"an id has 1 to {MAX_ID_BYTES} bytes")
    try:
        return _event(envelope.type, envelope.id, payload)
    except (msgspec.DecodeError, RecursionError) as exc:
        error = CallError(ErrorCode.INVALID_INPUT, f"bad {envelope.type}: {str(exc)[:200]}")
        return Faulty(envelope.type, envelope.id, error)


def _event(name: str, call_id: str, payload: bytes) -> Event:
    build = _FROM_WIRE.get(name.encode())
    if build is None:
        _ANYTHING.decode(payload)
        return Unknown(name, call_id)
    return build(call_id, payload)


def _faulty_integer(event: Event, data: bytes) -> Event:
    if isinstance(event, ConnectionClose):
        raise Malformed("an integer beyond 2^53-1")
    if isinstance(event, Faulty):
        return event
    error = CallError(ErrorCode.INVALID_INPUT, "an integer beyond ±(2^53-1): send it as a string")
    return Faulty(_ENVELOPE.decode(data).type, event.id, error)


def _requested(call_id: str, payload: bytes | memoryview) -> Event:
    wire = _REQUESTED.decode(payload)
    operation = wire.operationId.removeprefix("/")
    if len(wire.operationId) > _MAX_OPERATION or _OPERATION.fullmatch(operation) is None:
        error = CallError(ErrorCode.NOT_FOUND, "no operation has such a name")
        return Faulty("call.requested", call_id, error)
    return Requested(
        id=call_id,
        operation=operation,
        input=_own(wire.input, payload),
        auth_token=wire.auth_token,
        forwarded_for=None if wire.forwarded_for is None else _originator(wire.forwarded_for),
        timeout_ms=wire.timeout_ms,
        traceparent=wire.traceparent,
        window=wire.window,
        peer=wire.peer,
        path=wire.path,
        has_input_items=wire.input_items,
        idempotency_key=None if wire.idempotency_key is None else _key(wire.idempotency_key),
    )


def _key(text: str) -> str:
    if not 1 <= len(text.encode()) <= MAX_KEY_BYTES:
        raise msgspec.ValidationError(f"`idempotency_key` has 1 to {MAX_KEY_BYTES} bytes")
    return text


def _originator(wire: _Originator) -> Identity:
    if len(_encode(wire)) > _MAX_FORWARDED:
        raise msgspec.ValidationError(f"`forwarded_for` is over {_MAX_FORWARDED} bytes")
    grants = tuple(Grant(grant.type, grant.id, grant.action) for grant in wire.resources)
    return Identity(wire.id, wire.scopes, grants)


def _responded(call_id: str, payload: bytes | memoryview) -> Event:
    wire = _RESPONDED.decode(payload)
    return Responded(call_id, _own(wire.output, payload), wire.more)


def _own(value: Raw, payload: bytes | memoryview) -> Raw:
    """Copy *value* out of a payload that is mostly ignored keys, which would live as long."""
    return value.copy() if len(payload) > 2 * len(value) + _MAX_REST else value


def _failed(call_id: str, payload: bytes | memoryview) -> Event:
    wire = _FAILED.decode(payload)
    retryable = code_info(wire.code).retryable if wire.retryable is None else wire.retryable
    details = wire.details if isinstance(wire.details, dict) else None
    by = () if wire.by is None else _by_untrusted(wire.by)
    return Failed(call_id, wire.code, wire.message, retryable, details, by)


def _by_untrusted(value: object) -> tuple[str, ...]:
    """Return the route that an error came, or nothing if it is none: what it says counts more."""
    if not isinstance(value, list) or len(value) > _MOST_HOPS:
        return ()
    if not all(isinstance(name, str) and _HOP.fullmatch(name) for name in value):
        return ()
    return tuple(value)


def _connection_close(_call_id: str, payload: bytes | memoryview) -> Event:
    wire = _CLOSE.decode(payload)
    return ConnectionClose(wire.code, wire.reason[:_MAX_REASON])


# --- encoding


def _is_plain(event: Requested) -> bool:
    """Whether it has nothing but an operation, an input and a time-out."""
    return (
        event.window is None
        and event.auth_token is None
        and event.forwarded_for is None
        and event.traceparent is None
        and event.idempotency_key is None
        and event.peer is None
        and not event.path
        and not event.has_input_items
    )


def _wire_requested(event: Requested) -> _Requested:
    origin = event.forwarded_for
    return _Requested(
        operationId="/" + event.operation,
        input=event.input,
        auth_token=event.auth_token,
        forwarded_for=None if origin is None else _wire_originator(origin),
        timeout_ms=event.timeout_ms,
        traceparent=event.traceparent,
        window=event.window,
        peer=event.peer,
        path=event.path,
        input_items=event.has_input_items,
        idempotency_key=event.idempotency_key,
    )


def _wire_originator(origin: Identity) -> _Originator:
    """Return *origin* with as much of its rights as may be sent: all, the scopes, or none."""
    grants = tuple(_WireGrant(g.type, g.id, g.action) for g in origin.resources)
    wire = _Originator(origin.id, origin.scopes, grants)
    if len(_encode(wire)) > _MAX_FORWARDED:
        wire = _Originator(origin.id, origin.scopes)
    if len(_encode(wire)) > _MAX_FORWARDED:
        wire = _Originator(origin.id)
    return wire


def _wire_failed(event: Failed) -> _Failed:
    by = event.by or None
    return _Failed(event.code, event.message, event.retryable, event.details, by)


# --- the payloads as they stand on the wire

ShortText = Annotated[str, Meta(max_length=256)]


class _Envelope(msgspec.Struct):
    type: str
    id: str
    payload: Raw


class _Nothing(msgspec.Struct):
    pass


class _WireGrant(msgspec.Struct, omit_defaults=True):
    type: str
    id: str
    action: str | None = None


class _Originator(msgspec.Struct, omit_defaults=True):
    id: str
    scopes: tuple[str, ...] = ()
    resources: tuple[_WireGrant, ...] = ()


class _Requested(msgspec.Struct, omit_defaults=True):
    operationId: str  # noqa: N815  the wire's spelling
    input: Raw = Raw(b"{}")
    auth_token: Annotated[str, Meta(max_length=1024)] | None = None
    forwarded_for: _Originator | None = None
    timeout_ms: Annotated[int, Meta(ge=1)] | None = None
    traceparent: ShortText | None = None
    window: Annotated[int, Meta(ge=1, le=MAX_CREDIT)] | None = None
    peer: Annotated[tuple[ShortText, ...], Meta(max_length=8)] | None = None
    path: Annotated[tuple[ShortText, ...], Meta(max_length=8)] = ()
    input_items: bool = False
    idempotency_key: ShortText | None = None


class _Responded(msgspec.Struct):
    output: Raw = Raw(b"null")
    more: bool = False


class _Aborted(msgspec.Struct, omit_defaults=True):
    reason: str | None = None


class _Failed(msgspec.Struct, omit_defaults=True):
    code: Annotated[str, Meta(min_length=1, max_length=128)]
    message: str = ""
    retryable: bool | None = None
    details: Any = None
    by: Any = None


class _Item(msgspec.Struct):
    item: Raw


class _Credit(msgspec.Struct):
    n: Annotated[int, Meta(ge=1, le=MAX_CREDIT)]


class _Close(msgspec.Struct):
    code: Annotated[int, Meta(ge=0)]
    reason: str = ""


_CLOSE_ID = "connection"
_CLOSING_BRACE = 0x7D
_MAX_REASON = 512
_MAX_FORWARDED = 4096
_MAX_OPERATION = 256
# As long as a route.
_MOST_HOPS = 8
# What an honest message holds beside its input or output, and more.
_MAX_REST = 16 * 1024

_OPERATION = re.compile(r"[A-Za-z0-9_.-]{1,64}(?:/[A-Za-z0-9_.-]{1,64})+")
# The name of a peer, or "any".
_HOP = re.compile(r"[a-z0-9][a-z0-9._-]{0,62}")
_USUAL = re.compile(
    rb'\{"type":[ ]?"([a-z_.]{1,64})",[ ]?"id":[ ]?"([^"\\\x00-\x1f]{1,128})",[ ]?'
    rb'"payload":[ ]?(?=\{)'
)

_encode = msgspec.json.Encoder().encode
_ENVELOPE = msgspec.json.Decoder(_Envelope)
_ANYTHING = msgspec.json.Decoder(_Nothing)
_REQUESTED = msgspec.json.Decoder(_Requested)
_RESPONDED = msgspec.json.Decoder(_Responded)
_ABORTED = msgspec.json.Decoder(_Aborted)
_FAILED = msgspec.json.Decoder(_Failed)
_ITEM = msgspec.json.Decoder(_Item)
_CREDIT = msgspec.json.Decoder(_Credit)
_CLOSE = msgspec.json.Decoder(_Close)


def _completed(call_id: str, payload: bytes | memoryview) -> Event:
    _ANYTHING.decode(payload)
    return Completed(call_id)


def _input_item(call_id: str, payload: bytes | memoryview) -> Event:
    return InputItem(call_id, _own(_ITEM.decode(payload).item, payload))


def _input_end(call_id: str, payload: bytes | memoryview) -> Event:
    _ANYTHING.decode(payload)
    return InputEnd(call_id)


_FROM_WIRE: Mapping[bytes, Callable[[str, bytes | memoryview], Event]] = {
    b"call.requested": _requested,
    b"call.responded": _responded,
    b"call.completed": _completed,
    b"call.aborted": lambda call_id, data: Aborted(call_id, _ABORTED.decode(data).reason),
    b"call.error": _failed,
    b"call.input": _input_item,
    b"call.input_end": _input_end,
    b"call.credit": lambda call_id, data: Credit(call_id, _CREDIT.decode(data).n),
    b"connection.close": _connection_close,
}

_TO_WIRE: Mapping[type, Callable[[Any], tuple[str, object]]] = {
    Requested: lambda event: ("call.requested", _wire_requested(event)),
    Completed: lambda event: ("call.completed", _Nothing()),
    Aborted: lambda event: ("call.aborted", _Aborted(event.reason)),
    Failed: lambda event: ("call.error", _wire_failed(event)),
    InputItem: lambda event: ("call.input", _Item(event.item)),
    InputEnd: lambda event: ("call.input_end", _Nothing()),
    Credit: lambda event: ("call.credit", _Credit(event.n)),
    ConnectionClose: lambda event: ("connection.close", _Close(event.code, event.reason)),
}

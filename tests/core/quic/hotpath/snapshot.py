"""All that two engines must have in common, as one flat table of values."""

from __future__ import annotations

import copy
from collections import deque
from enum import Enum
from functools import partial
from types import BuiltinMethodType, FunctionType, MethodType
from typing import Any
from weakref import WeakSet

from aioquic._buffer import Buffer
from aioquic.quic.connection import QuicConnection
from aioquic.quic.crypto import CryptoContext
from aioquic.quic.rangeset import RangeSet
from aioquic.quic.recovery import QuicPacketSpace
from aioquic.quic.stream import QuicStream

from alknet.core.quic.engine import Engine

# What two engines share, or what says nothing about the connection.
NOT_COMPARED = frozenset(
    {
        "_configuration",
        "_policy",
        "_cids",
        "tls",
        "_logger",
        "_quic_logger",
        "_crypto_buffers",
        "_token_handler",
        "_session_ticket_fetcher",
        "_session_ticket_handler",
        "_QuicConnection__frame_handlers",
        "_send_probe",
        "_released",  # by stream, below
        "_cold_packets",  # of the long way, which is the difference
        "is_hot",
    }
)
# Names of the caches of the short way begin so; the long way leaves them empty.
CACHE_PREFIX = "_hot"
PACKET_FIELDS = (
    "packet_number",
    "in_flight",
    "is_ack_eliciting",
    "is_crypto_packet",
    "sent_time",
    "sent_bytes",
    "epoch",
    "packet_type",
    "delivery_handlers",
)
FREQUENT = frozenset({int, float, bool, bytes, str, type(None)})
ATOMS = (int, float, str, bytes, Enum, type(None))


def snapshot(engine: Engine) -> dict[str, object]:
    """Return the state of *engine*: streams, windows, spaces, recovery, timers, events, closing."""
    table: dict[str, object] = {}
    for name, value in _fields(engine):
        _flatten(name, value, table)
    for epoch, space in engine._spaces.items():
        for name, value in _fields(space):
            _flatten(f"{epoch.name}.{name}", value, table)
    for stream_id, stream in engine._streams.items():
        table[f"stream {stream_id} is released"] = stream in engine._released
        for name, value in _fields(stream):
            _flatten(f"stream {stream_id}.{name}", value, table)
    return table


def differences(one: Engine, other: Engine) -> list[str]:
    """Return what the two have not in common."""
    left, right = snapshot(one), snapshot(other)
    if left == right:
        return []
    absent = object()
    return [
        f"{name}: {left.get(name, absent)!r} != {right.get(name, absent)!r}"
        for name in sorted(left.keys() | right.keys())
        if left.get(name, absent) != right.get(name, absent)
    ]


def clone(engine: Engine) -> Engine:
    """Return a second engine in the same state, with the same secrets and the same policy."""
    memo: dict[int, Any] = {}

    def share(value: object) -> None:
        memo[id(value)] = value

    for name in ("_configuration", "_policy", "_cids", "_logger"):
        share(getattr(engine, name))
    for crypto in [*engine._cryptos.values(), *engine._cryptos_initial.values()]:
        for context in (crypto.recv, crypto.send):
            if context.aead is not None and context.hp is not None:
                share(context.aead._aead)
                share(context.hp._encryptor)
    share(engine.__dict__["_QuicConnection__frame_handlers"]._table)
    for buffer in engine._crypto_buffers.values():
        memo[id(buffer)] = Buffer(capacity=buffer.capacity)
    memo[id(engine.tls)] = copy.copy(engine.tls)
    memo[id(engine._released)] = WeakSet()
    twin = copy.deepcopy(engine, memo)
    for stream_id, stream in engine._streams.items():
        if stream in engine._released:
            twin._released.add(twin._streams[stream_id])
    return twin


def _fields(value: object) -> list[tuple[str, Any]]:
    slots = getattr(type(value), "__slots__", ())
    fields = {name: getattr(value, name) for name in slots if hasattr(value, name)}
    fields |= getattr(value, "__dict__", {})
    return [
        (name, field)
        for name, field in fields.items()
        if name not in NOT_COMPARED and not name.startswith(CACHE_PREFIX)
    ]


def _flatten(path: str, value: Any, table: dict[str, object]) -> None:
    if type(value) in FREQUENT or isinstance(value, ATOMS):
        table[path] = value
    elif isinstance(value, bytearray):
        table[path] = bytes(value)
    elif isinstance(value, RangeSet):
        table[path] = [(part.start, part.stop) for part in value]
    elif isinstance(value, dict):
        _flatten_dict(path, value, table)
    elif isinstance(value, (list, tuple, deque)):
        table[path] = len(value)
        for place, item in enumerate(value):
            _flatten(f"{path}[{place}]", item, table)
    elif isinstance(value, (set, frozenset)):
        table[path] = frozenset(value)
    else:
        _flatten_object(path, value, table)


def _flatten_dict(path: str, value: dict[Any, Any], table: dict[str, object]) -> None:
    table[path] = list(value)  # the order of sent packets matters
    if path in {"_spaces", "_streams"}:
        return  # each on its own
    for key, item in value.items():
        _flatten(f"{path}[{key}]", item, table)


def _flatten_object(path: str, value: Any, table: dict[str, object]) -> None:
    if isinstance(value, QuicStream):
        table[path] = f"stream {value.stream_id}"
    elif isinstance(value, QuicPacketSpace):
        table[path] = "a space"
    elif isinstance(value, (MethodType, FunctionType, BuiltinMethodType)):
        table[path] = value.__qualname__
    elif isinstance(value, partial):
        _flatten(path, [value.func, value.args, value.keywords], table)
    elif isinstance(value, CryptoContext):
        table[path] = (value.secret, value.key_phase, value.is_valid())
    elif hasattr(value, "delivery_handlers"):
        for name in PACKET_FIELDS:
            _flatten(f"{path}.{name}", getattr(value, name), table)
    else:
        assert not isinstance(value, QuicConnection), path
        for name, field in _fields(value):
            _flatten(f"{path}.{name}", field, table)

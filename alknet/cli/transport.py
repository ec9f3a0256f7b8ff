"""``alknet status --connections``: the transport of each connection."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from alknet.cli.options import is_json
from alknet.cli.output import emit, table
from alknet.cli.units import amount, duration, milliseconds

__all__ = ["show"]

_HEADERS = (
    *("connection", "identity", "by", "address", "alpn", "age", "rtt ms", "cwnd", "in flight"),
    *("lost", "mtu", "out", "in", "streams", "calls"),
)


def show(output: bytes) -> None:
    """Show what ``node/status`` said of connections."""
    import msgspec

    connections = msgspec.json.decode(output, type=dict[str, Any])["connections"]
    if is_json():
        emit({"connections": connections})
        return
    table(_HEADERS, [_row(one) for one in connections], empty="no connections")


def _row(one: Mapping[str, Any]) -> tuple[object, ...]:
    # An older node says nothing of its transports.
    known: Mapping[str, Any] = one.get("transport") or {}

    def size(name: str) -> str:
        value = known.get(name)
        return "-" if value is None else amount(value)

    def number(value: int | None) -> object:
        return "-" if value is None else value

    return (
        *(one["id"], one["identity"], one["carrier"], one["address"], one["alpn"]),
        *(duration(one["age_s"]), _rtt(known)),
        *(size("congestion_window_bytes"), size("in_flight_bytes"), _loss(known)),
        *(number(known.get("mtu_bytes")), size("sent_bytes"), size("received_bytes")),
        *(number(known.get("streams")), number(one.get("calls"))),
    )


def _rtt(known: Mapping[str, Any]) -> str:
    """Smoothed, shortest, latest."""
    values = [known.get(name) for name in ("rtt_s", "rtt_min_s", "rtt_latest_s")]
    if values[0] is None:
        return "-"
    return "/".join("-" if value is None else milliseconds(value) for value in values)


def _loss(known: Mapping[str, Any]) -> str:
    lost, sent = known.get("packets_lost"), known.get("packets_sent")
    return "-" if lost is None or sent is None else f"{lost}/{sent}"

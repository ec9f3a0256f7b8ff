"""Every limit of a node in one table: name, default and reason. All can be set in ``[limits]``.

Over a limit, the one thing that exceeded it is refused with its code; nobody else notices.
"""

from __future__ import annotations

from typing import Annotated

import msgspec
from msgspec import Meta

__all__ = ["Limits"]

KIB = 1024
MIB = 1024 * KIB

Seconds = Annotated[float, Meta(gt=0, le=86_400 * 7)]
Count = Annotated[int, Meta(ge=1, le=10_000_000)]
Bytes = Annotated[int, Meta(ge=1 * KIB, le=16 * 1024 * MIB)]


class Limits(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Limits of connections, streams, frames and authentication.

    Units are in the names. The comment beside each default says why it has that value.
    """

    # A handshake is two round trips: 5 s covers a satellite link twice, and bounds a slow loris.
    handshake_timeout_s: Seconds = 5.0
    # Dead peers are noticed within this time; NAT bindings for UDP commonly live 30 s.
    idle_timeout_s: Seconds = 30.0
    # A third of the idle time-out, so that two lost keep-alives do not end a connection.
    keep_alive_s: Seconds = 10.0
    # Time that running work gets to end when the node stops.
    drain_timeout_s: Seconds = 10.0
    # QUIC runs this long alone before TCP joins the race: a UDP round trip to anywhere on Earth.
    quic_head_start_s: Seconds = 0.25
    # One dial as a whole, all addresses included.
    dial_timeout_s: Seconds = 10.0

    # Connections whose peer is not a known, enabled one: per IPv4 address or IPv6 /64.
    connections_per_address: Count = 100
    # A fleet behind one key reconnecting while its old connections time out.
    connections_per_identity: Count = 64
    # Handshakes in progress above which QUIC clients must prove their address first (Retry costs
    # an honest client one round trip, a spoofing one everything).
    half_open_before_retry: Count = 1_000
    # All connections of one node: 90 KiB each with its session (measured), 900 MiB at the limit.
    connections: Count = 10_000
    # Refused tokens on one connection before it is closed: typos are forgiven, guessing is not.
    failed_authentications_per_connection: Count = 5
    # Refused tokens and keys per address and minute, before unproven connections wait a minute.
    failed_authentications_per_minute: Count = 20

    # Streams that a peer may have open at once on one connection, per direction kind.
    streams_per_connection: Count = 256
    # Concurrent calls of one peer: 4 per stream, far above what one client needs.
    calls_per_connection: Count = 1_024
    # Unread plus unsent bytes of one connection; past it the connection closes with `limit`.
    buffered_bytes_per_connection: Bytes = 32 * MIB
    # The same of all connections together: from three quarters on windows shrink, at the limit
    # each connection keeps only what it needs to make progress. A quarter of a small server.
    buffered_bytes_total: Bytes = 1024 * MIB
    # Unacknowledged bytes of one stream above which `send_all` waits, at most: less on a path that
    # takes less, so that calls stay responsive. Fills 300 Mbit/s at a round trip of 100 ms.
    stream_send_buffer_bytes: Bytes = 4 * MIB
    # Unread bytes that one stream accepts before its peer must wait (flow-control window), at
    # most: it begins at 128 KiB and doubles while its reader is faster. 300 Mbit/s at 100 ms.
    stream_receive_window_bytes: Bytes = 4 * MIB
    # Unread bytes of all streams of one connection (flow-control window), at most: 256 KiB first.
    connection_receive_window_bytes: Bytes = 8 * MIB
    # The longest UDP payload that path MTU discovery tries: Ethernet takes 1,472, loopback all.
    # Set it to 1,200 for a path that loses longer ones in ways that probing does not find.
    udp_payload_bytes: Annotated[int, Meta(ge=1_200, le=16_000)] = 16_000
    # Datagrams that wait for `receive_datagram`; the oldest is dropped, as the carrier may too.
    datagrams_queued: Count = 256

    # Call frames before an identity is proven: enough for any request of an honest stranger.
    frame_bytes_unproven: Bytes = 64 * KIB
    # Call frames of a proven peer; bulk belongs on a stream, not in JSON.
    frame_bytes: Annotated[int, Meta(ge=1 * KIB, le=64 * MIB)] = 16 * MIB
    # Time that an operation gets when it declares none.
    call_timeout_s: Seconds = 30.0
    # The longest time that an operation may declare.
    call_timeout_max_s: Seconds = 3_600.0
    # Calls that their handlers let finish when they are ended themselves, on the whole node: as
    # many as one peer may have in flight. Nobody else would bound what callers leave behind.
    surviving_calls: Count = 1_024
    # Items of a subscription in flight on a carrier without flow control per stream.
    subscription_window: Count = 64
    # What handlers have spawned for callers and not released, on the whole node: each is a task,
    # and mostly a process or a container, of which a large machine runs some thousands.
    resources: Count = 4_096
    # Of one identity: a hub is one, and owns here what it spawned for all of its users.
    resources_per_identity: Count = 1_024
    # How long the answer to a call with an idempotency key is kept: clients retry for minutes, not
    # for hours.
    idempotency_window_s: Seconds = 600.0
    # Such answers of one identity, so that one that makes many does not push out the others':
    # nearly two a second throughout the window.
    idempotency_keys_per_identity: Count = 1_024
    # Of all identities: those of sixteen that use up their share.
    idempotency_keys: Count = 16_384
    # What the answers of one identity take in memory: 4 KiB each, at the most of them.
    idempotency_bytes_per_identity: Bytes = 4 * MIB
    # Of all identities: again sixteen shares.
    idempotency_bytes: Bytes = 64 * MIB
    # Programs of `[[command]]` that run at once on the whole node: a few for each core, of which
    # each may take `memory_bytes`.
    commands: Count = 32

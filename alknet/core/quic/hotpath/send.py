"""Sending plain 1-RTT packets: STREAM and ACK frames and flow control, on one validated path.

A pass does what aioquic's `datagrams_to_send` does, packet by packet, with the same state after
it. What the pass cannot be asked to do (`_is_special`) is left to aioquic whole.

Ours on top, each with a switch that comparisons turn off: at most `MAX_PACKETS_PER_PASS` packets,
small streams first, and an acknowledgement that is not yet due rides on data that leaves anyway.
"""

from __future__ import annotations

from typing import Any, cast

from aioquic.quic.congestion.base import K_GRANULARITY
from aioquic.quic.connection import QuicConnectionState, QuicNetworkPath

from alknet.core.quic.hotpath.burst import Burst, Datagrams
from alknet.core.quic.hotpath.ready import ReadyStreams
from alknet.core.quic.hotpath.seal import Sealer
from alknet.core.quic.hotpath.single import send_single

__all__ = ["MAX_PACKETS_PER_PASS", "HotSend"]

# A pass of so many takes 0.1-0.2 ms; then other connections have their turn. At 1200 bytes it is
# one run for the kernel to split (GSO takes 64 segments and 64 KiB).
MAX_PACKETS_PER_PASS = 32


class HotSend(ReadyStreams):
    """`datagrams_to_send` and `get_timer` for plain packets."""

    piggybacks_acks = True
    """Whether an acknowledgement that is not due yet rides on data; off for comparison."""
    max_packets_per_pass = MAX_PACKETS_PER_PASS

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self._hot_has_more = False
        # When an acknowledgement was last written here.
        self._hot_acked_at = 0.0
        self._hot_sealer: Sealer | None = None
        super().__init__(*args, **kwargs)

    @property
    def wants_another_pass(self) -> bool:
        """The last pass ended at its cap and could have gone on."""
        return self._hot_has_more

    def datagrams_to_send(self, now: float) -> Datagrams:
        """Build what can be sent now, `MAX_PACKETS_PER_PASS` packets at most."""
        self._hot_has_more = False
        if not self.is_hot or self._is_special():
            self._forget_notes()
            return super().datagrams_to_send(now)
        space = self._hot_space
        if (
            len(self._hot_ready) == 1
            and (space.ack_at is None or space.ack_at > now)
            and not (self._hot_raised or self._hot_ended or self._has_limit_to_announce())
        ):
            datagrams = send_single(self, now)
            if datagrams is not None:
                return datagrams
        self._pacing_at = None
        if (
            self._hot_ready
            or self._hot_raised
            or self._hot_ended
            or (space.ack_at is not None and space.ack_at <= now)
            or self._has_limit_to_announce()
        ):
            return Burst(self, now).run()
        self._pacing_at = self._loss._pacer.next_send_time(now)
        return []

    def _is_special(self) -> bool:
        """Return whether there is anything that aioquic's own way must do."""
        if (
            self._state is not QuicConnectionState.CONNECTED
            or not self._handshake_confirmed
            or self._close_pending
            or self._probe_pending
            or self._ping_pending
            or self._datagrams_pending
            or self._retire_connection_ids
            or self._streams_blocked_pending
            or self._handshake_done_pending
            or self._quic_logger is not None
            or self._remote_preferred_address is not None
        ):
            return True
        if self._hot_is_stale:
            self._look_at_all()
        return self._hot_is_rare or self._has_rare_path_or_key()

    def _has_rare_path_or_key(self) -> bool:
        paths = self._network_paths
        path = paths[0]
        return (
            not path.is_validated
            or bool(path.remote_challenges)
            or self._hot_crypto._update_key_requested
            or not self._hot_handshake.buffer_is_empty
            or (len(paths) != 1 and any(map(self._has_probe, paths[1:])))
        )

    def _has_probe(self, path: QuicNetworkPath) -> bool:
        """Return whether aioquic would send anything on a path that is not in use."""
        if path.peer_cid is None and not self._peer_cid_available:
            return False
        is_asked = path.is_validated or path.local_challenge_sent
        return bool(path.remote_challenges) or not is_asked

    def _sealer(self) -> Sealer:
        crypto, sealer = self._hot_crypto, self._hot_sealer
        # A new key phase has a new key.
        if (
            sealer is None
            or sealer.aead is not crypto.send.aead
            or sealer.cid is not self._peer_cid.cid
        ):
            sealer = self._hot_sealer = Sealer(crypto, self._peer_cid.cid)
        sealer.spin(self._spin_bit)
        return sealer

    def get_timer(self) -> float | None:
        """Return when `handle_timer` wants to be called."""
        if (
            not self.is_hot
            or self._state is not QuicConnectionState.CONNECTED
            or not self._handshake_confirmed
            or not self._network_paths[0].is_validated
        ):
            return super().get_timer()
        loss, space = self._loss, self._hot_space
        timer = cast(float, self._close_at)
        if space.ack_at is not None and space.ack_at < timer:
            timer = space.ack_at
        at = space.loss_time
        if at is None and space.ack_eliciting_in_flight:
            if loss._rtt_initialized:
                period = loss._rtt_smoothed + max(4 * loss._rtt_variance, K_GRANULARITY)
                period += loss.max_ack_delay
            else:
                period = 2 * loss._rtt_initial
            at = loss._time_of_last_sent_ack_eliciting_packet + period * 2**loss._pto_count
        self._loss_at = at
        if at is not None and at < timer:
            timer = at
        if self._pacing_at is not None and self._pacing_at < timer:
            timer = self._pacing_at
        return timer

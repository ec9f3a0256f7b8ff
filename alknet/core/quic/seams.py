"""What this package uses of aioquic beyond its documented interface, and the guard over it."""

from __future__ import annotations

from aioquic import tls
from aioquic._crypto import AEAD, HeaderProtection
from aioquic.quic.configuration import QuicConfiguration
from aioquic.quic.connection import Limit, QuicConnection, QuicConnectionId
from aioquic.quic.crypto import CryptoContext, CryptoPair
from aioquic.quic.rangeset import RangeSet
from aioquic.quic.recovery import QuicPacketPacer, QuicPacketSpace
from aioquic.quic.stream import QuicStream

from alknet.core.quic import context

__all__ = ["CONNECTION_NAMES", "CONTEXT_NAMES", "lacking", "missing_names", "require"]

CONTEXT_NAMES = (
    "_server_handle_hello _set_peer_certificate _check_certificate_verify_signature"
    " _is_client _request_client_certificate _peer_certificate _peer_certificate_chain"
    " _verify_mode _signature_algorithms _supported_groups handshake_extensions"
    " received_extensions certificate certificate_chain certificate_private_key"
    " _receive_buffer _session_resumed _Context__logger state alpn_negotiated early_data_accepted"
    " new_session_ticket_cb key_schedule"
)
CONNECTION_NAMES = (
    "_close_event _state _events _handshake_confirmed _network_paths _cryptos _packet_number"
    " _streams _remote_max_datagram_frame_size _max_datagram_size _peer_cid"
    " _datagrams_pending _local_next_stream_id_uni _local_next_stream_id_bidi"
    " _remote_max_streams_uni _remote_max_streams_bidi _remote_max_idle_timeout"
    " _local_max_data _local_max_streams_bidi _local_max_streams_uni _is_client"
    " _write_connection_limits _write_stream_limits _on_connection_limit_delivery"
    " _on_max_stream_data_delivery _idle_timeout _close_begin host_cid"
    " _handle_crypto_frame _loss _spaces"
    " _host_cids _local_initial_source_connection_id _replenish_connection_ids _payload_received"
    " _handle_stream_frame _handle_datagram_frame _handle_ack_frame"
    " _handle_retire_connection_id_frame _write_new_connection_id_frame"
    " _crypto_streams _close_pending _quic_logger _configuration"
    " _handle_data_blocked_frame _handle_max_data_frame _handle_max_streams_bidi_frame"
    " _handle_max_streams_uni_frame _handle_new_connection_id_frame"
    " _handle_path_challenge_frame _handle_path_response_frame _handle_ping_frame"
    " _handle_streams_blocked_frame _confirm_handshake _crypto_buffers _cryptos_initial"
    " _local_active_connection_id_limit _flush_builder _send_probing_frames"
    " _parse_transport_parameters _ack_delay _QuicConnection__frame_handlers"
    " _streams_queue _probe_pending _ping_pending _retire_connection_ids _streams_blocked_pending"
    " _handshake_done_pending _remote_preferred_address _spin_bit _pacing_at _loss_at _close_at"
    " _remote_max_data _remote_max_data_used _ack_eliciting_sent_since_receipt"
    " _local_ack_delay_exponent _on_ack_delivery _on_ping_delivery _write_stream_frame"
    " _write_reset_stream_frame _write_stop_sending_frame _on_new_connection_id_delivery"
    " _get_or_create_stream_for_send _stream_limit _handle_reset_stream_frame"
    " _handle_stop_sending_frame _spin_highest_pn _remote_ack_delay_exponent"
    " _peer_cid_available"
)
_LOSS_NAMES = (
    "_pacer _quic_logger _cc _pto_count _rtt_smoothed _rtt_min bytes_in_flight"
    " _time_of_last_sent_ack_eliciting_packet _rtt_initialized _rtt_variance _rtt_initial"
    " max_ack_delay congestion_window _rtt_latest _detect_loss"
)
_SPACE_NAMES = (
    "ack_at ack_eliciting_in_flight ack_queue expected_packet_number largest_acked_packet"
    " largest_received_packet largest_received_time loss_time received_packets sent_packets"
)
_CID_NAMES = "cid stateless_reset_token"
_STREAM_NAMES = (
    "max_stream_data_local max_stream_data_local_sent max_stream_data_remote is_blocked"
    " is_finished receiver sender"
)
_SENDER_NAMES = (
    "is_finished buffer_is_empty reset_pending _buffer_start _buffer_stop _buffer_fin _acked_fin"
    " _pending _pending_eof _acked _buffer _reset_error_code highest_offset next_offset"
)
_RECEIVER_NAMES = "is_finished highest_offset stop stop_pending _ranges _buffer_start _final_size"
_PACER_NAMES = "bucket_max bucket_time packet_time next_send_time update_after_send update_rate"
_LIMIT_NAMES = "frame_type sent used value"
_TLS_NAMES = (
    "pull_client_hello AlertBadCertificate AlertDecodeError AlertUnsupportedCertificate"
    " SignatureAlgorithm Group"
)


def missing_names() -> list[str]:
    """Return which of aioquic's private names that we build on the installed release lacks."""
    stream = QuicStream(stream_id=0)
    wanted: list[tuple[object, str]] = [
        (tls, _TLS_NAMES),
        (tls.Context(is_client=True), CONTEXT_NAMES),
        (QuicConnection(configuration=QuicConfiguration()), CONNECTION_NAMES),
        (QuicConnectionId(b"", 0), _CID_NAMES),
        (CryptoContext(), "_setup_cb _teardown_cb aead hp key_phase"),
        (CryptoPair(), "_update_key_requested key_phase"),
        (AEAD(b"aes-128-gcm", bytes(16), bytes(12)), "_aead _iv"),
        (HeaderProtection(b"aes-128-ecb", bytes(16)), "_encryptor _is_chacha20 _mask"),
        (RangeSet(), "_RangeSet__ranges"),
        (QuicPacketSpace(), _SPACE_NAMES),
        (QuicPacketSpace().received_packets, "_lower _received _size"),
        (stream, _STREAM_NAMES),
        (stream.sender, _SENDER_NAMES),
        (stream.receiver, _RECEIVER_NAMES),
        (Limit(0, "", 0), _LIMIT_NAMES),
        (QuicConnection(configuration=QuicConfiguration())._loss, _LOSS_NAMES),
        (QuicPacketPacer(max_datagram_size=1200), _PACER_NAMES),
    ]
    return [name for owner, names in wanted for name in lacking(owner, names)] + context.unused()


def lacking(owner: object, names: str) -> list[str]:
    """Return those of the space-separated *names* that *owner* has not."""
    kind = getattr(owner, "__name__", type(owner).__name__)
    return [f"{kind}.{name}" for name in names.split() if not hasattr(owner, name)]


def require(missing: list[str] | None = None) -> None:
    """Raise ImportError if the installed aioquic lacks what this package builds on."""
    missing = missing_names() if missing is None else missing
    if missing:
        raise ImportError(
            f"this aioquic lacks what alknet builds on: {', '.join(missing)}; "
            "install aioquic>=1.7.2,<1.8"
        )

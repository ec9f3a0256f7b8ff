"""Why a TLS handshake failed, in words, on any transport."""

from __future__ import annotations

from alknet.errors import AlknetError

__all__ = [
    "ALERT_BAD_CERTIFICATE",
    "ALERT_HANDSHAKE_FAILURE",
    "ALERT_NO_APPLICATION_PROTOCOL",
    "HandshakeFailed",
    "alert_name",
]

ALERT_HANDSHAKE_FAILURE = 40
ALERT_BAD_CERTIFICATE = 42
ALERT_NO_APPLICATION_PROTOCOL = 120


class HandshakeFailed(AlknetError):
    """The TLS handshake did not end in a connection that we may use.

    Attributes:
        alert: The TLS alert (RFC 8446 sec. 6) that was sent or received, or None if there was
            none: the other side vanished, or did not speak TLS.
        by_peer: The other side refused us; otherwise we refused it.
    """

    def __init__(self, message: str, *, alert: int | None = None, by_peer: bool = False) -> None:
        super().__init__(message)
        self.alert = alert
        self.by_peer = by_peer


def alert_name(alert: int) -> str:
    """Return the RFC's name of an alert, or ``alert <n>`` for one that it does not list."""
    return _ALERT_NAMES.get(alert, f"alert {alert}")


# RFC 8446 sec. 6 and the IANA registry.
_ALERT_NAMES = {
    0: "close_notify",
    10: "unexpected_message",
    20: "bad_record_mac",
    22: "record_overflow",
    40: "handshake_failure",
    42: "bad_certificate",
    43: "unsupported_certificate",
    44: "certificate_revoked",
    45: "certificate_expired",
    46: "certificate_unknown",
    47: "illegal_parameter",
    48: "unknown_ca",
    49: "access_denied",
    50: "decode_error",
    51: "decrypt_error",
    70: "protocol_version",
    71: "insufficient_security",
    80: "internal_error",
    86: "inappropriate_fallback",
    90: "user_canceled",
    109: "missing_extension",
    110: "unsupported_extension",
    112: "unrecognized_name",
    113: "bad_certificate_status_response",
    115: "unknown_psk_identity",
    116: "certificate_required",
    120: "no_application_protocol",
}

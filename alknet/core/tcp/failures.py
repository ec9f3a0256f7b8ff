"""What OpenSSL's errors and TLS alerts mean, in words that name the side at fault."""

from __future__ import annotations

import trio
from OpenSSL import SSL

from alknet.core.tcp.contexts import Handshake
from alknet.core.tls.errors import ALERT_HANDSHAKE_FAILURE, HandshakeFailed, alert_name
from alknet.errors import AlknetError

__all__ = ["TlsBroken", "broken", "handshake_failure"]


class TlsBroken(trio.BrokenResourceError):
    """The TLS stream cannot be used any more.

    Attributes:
        alert: The TLS alert that ended it, or None: the link broke or ended without one.
        by_peer: The other side (or the network) ended it.
    """

    def __init__(self, message: str, *, alert: int | None = None, by_peer: bool = True) -> None:
        super().__init__(message)
        self.alert = alert
        self.by_peer = by_peer


def handshake_failure(handshake: Handshake, exc: SSL.Error | HandshakeFailed) -> AlknetError:
    """Say why the handshake that ended with *exc* failed: `HandshakeFailed`, or a `LocalError`."""
    sent, received = handshake.alert_sent, handshake.alert_received
    if received is not None:
        return HandshakeFailed(
            f"the other side refused the TLS handshake: {alert_name(received)}",
            alert=received,
            by_peer=True,
        )
    if isinstance(handshake.refusal, HandshakeFailed):
        return HandshakeFailed(str(handshake.refusal), alert=sent)
    return handshake.refusal or HandshakeFailed(_why_we_refused(handshake, exc), alert=sent)


def broken(handshake: Handshake, exc: SSL.Error) -> TlsBroken:
    """Say why an established stream met *exc*."""
    # 0 is close_notify, which is no failure.
    if handshake.alert_received:
        name = alert_name(handshake.alert_received)
        return TlsBroken(
            f"the other side ended the TLS stream: {name}", alert=handshake.alert_received
        )
    return TlsBroken(
        f"the TLS stream is broken: {_reason(exc)}",
        alert=handshake.alert_sent or None,
        by_peer=False,
    )


def _why_we_refused(handshake: Handshake, exc: SSL.Error | HandshakeFailed) -> str:
    offered = handshake.offered_alpns
    if isinstance(exc, HandshakeFailed):
        names = ", ".join(ascii(alpn.decode("latin-1")) for alpn in (offered or [])[:8])
        return f"{exc}: the client offers {names}"
    is_server = handshake.trust is None
    if is_server and offered is None and handshake.alert_sent == ALERT_HANDSHAKE_FAILURE:
        return "the client offers no ALPN, and no handler serves such clients"
    return f"the TLS handshake failed: {_reason(exc)}"


def _reason(exc: SSL.Error) -> str:
    # Error([(library, function, reason), ...]); SysCallError(-1, "Unexpected EOF").
    first = exc.args[0] if exc.args else None
    if isinstance(first, list) and first:
        return str(first[0][-1])
    return str(exc.args[-1]) if exc.args else type(exc).__name__

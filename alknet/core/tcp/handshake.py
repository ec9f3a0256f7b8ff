"""From a byte stream to a connection: TLS handshake, ALPN and whose key it is."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from typing import TYPE_CHECKING

import trio

from alknet.core.contracts import CARRIER_TCP
from alknet.core.tcp.connection import StreamConnection
from alknet.core.tcp.listener import addresses_of
from alknet.core.tcp.tls import TlsStream
from alknet.core.tls.trust import Trust, WebPki

if TYPE_CHECKING:
    from alknet.core.tcp.turns import Turn
    from alknet.core.tls.credentials import NodeCredentials

__all__ = ["accept_tls", "dial_tls"]


async def accept_tls(
    stream: trio.abc.Stream,
    credentials: NodeCredentials,
    alpns: Sequence[str],
    default_alpn: str | None = None,
    *,
    remote_address: str | None = None,
    turn: Turn = nullcontext,
) -> StreamConnection:
    """Shake hands as the server and return the connection.

    Which certificate is shown: that of a configured name, if the client asks for it; else, for
    ``h2``, ``http/1.1`` or no ALPN, the default web certificate; else the node key's. Web clients
    are not asked for a certificate, others are, and need not show one. A certificate whose key is
    not Ed25519 makes an anonymous client (``peer_key`` is None).

    Cancelled or failed, *stream* is closed. The time-out is the caller's.

    Args:
        stream: Belongs to the connection from now on.
        credentials: What to show.
        alpns: What is served, the preferred first.
        default_alpn: What a client that offers no ALPN speaks; None refuses it (alert 40).
        remote_address: What to call the client; by default the socket's peer address.
        turn: Waits for a turn before each step, see `alknet.core.tcp.turns`.

    Raises:
        HandshakeFailed: No connection came of it.
    """
    tls = TlsStream.server(stream, credentials, alpns, serves_without_alpn=default_alpn is not None)
    await _shake_hands(tls, turn)
    return StreamConnection(
        tls,
        alpn=tls.alpn or default_alpn or "",
        carrier=CARRIER_TCP,
        is_dialer=False,
        peer_key=tls.peer_key,
        remote_address=remote_address or addresses_of(stream)[0],
        server_name=tls.server_name,
    )


async def dial_tls(
    stream: trio.abc.Stream,
    *,
    alpn: str,
    credentials: NodeCredentials | None,
    trust: Trust,
    server_name: str | None = None,
    remote_address: str | None = None,
) -> StreamConnection:
    """Shake hands as the client and return the connection.

    A connection is not an admission: a server that refuses our key says so afterwards.
    Cancelled or failed, *stream* is closed. The time-out is the caller's.

    Args:
        stream: Belongs to the connection from now on.
        alpn: What to speak.
        credentials: Whose key to show if asked; None shows none.
        trust: Whom to accept.
        server_name: SNI to send. By default the name of `WebPki`; nothing for a pinned key, whose
            node might have a web certificate for that name, and show that.
        remote_address: What to call the server; by default the socket's peer address.

    Raises:
        HandshakeFailed: It is not whom we trust, or no connection came of it.
        LocalError: The server name or the CA file is unusable.
    """
    if server_name is None and isinstance(trust, WebPki):
        server_name = trust.server_name
    try:
        tls = TlsStream.client(
            stream, alpn=alpn, credentials=credentials, trust=trust, server_name=server_name
        )
    except BaseException:  # raised again: the stream was given to us
        await trio.aclose_forcefully(stream)
        raise
    await _shake_hands(tls)
    return StreamConnection(
        tls,
        alpn=alpn,
        carrier=CARRIER_TCP,
        is_dialer=True,
        peer_key=tls.peer_key,
        remote_address=remote_address or addresses_of(stream)[0],
        server_name=server_name,
    )


async def _shake_hands(tls: TlsStream, turn: Turn = nullcontext) -> None:
    try:
        await tls.do_handshake(turn)
    except BaseException:  # raised again: half a handshake is of no use
        await tls.abort()
        raise

"""What a node shows and trusts in QUIC handshakes (design: TLS identity on one port)."""

from __future__ import annotations

from alknet.core.quic.handshake import AskFor, ClientHello, ClientPolicy, ServerPolicy, Shown
from alknet.core.tls.credentials import NodeCredentials
from alknet.core.tls.trust import Trust

__all__ = ["client_policy", "server_policy"]

OUR_PREFIX = "alknet/"


def server_policy(credentials: NodeCredentials) -> ServerPolicy:
    """Show a raw key to whom it suits, the key's certificate to our own kind, else a web one.

    The client's key is asked for, never required, in the form that the client offers: raw, or for
    an ``alknet/`` protocol with Ed25519 as a certificate. Browsers are asked for nothing.
    """

    def choose(hello: ClientHello) -> tuple[Shown, AskFor]:
        return _show(credentials, hello), _ask_for(hello)

    return ServerPolicy(choose)


def client_policy(trust: Trust, credentials: NodeCredentials | None) -> ClientPolicy:
    """Trust *trust*, and show the key of *credentials*, if any, when asked."""
    return ClientPolicy(trust, credentials.key if credentials else None)


def _show(credentials: NodeCredentials, hello: ClientHello) -> Shown:
    if hello.takes_raw_key:
        return Shown(credentials.key)
    if _is_our_kind(hello):
        return Shown(credentials.key, (credentials.certificate,))
    web = credentials.web_certificate(hello.server_name)
    return Shown(web.key, tuple(web.chain))


def _ask_for(hello: ClientHello) -> AskFor:
    if hello.shows_raw_key:
        return AskFor.RAW
    if _is_our_kind(hello) and not hello.takes_raw_key:
        return AskFor.X509
    return AskFor.NOTHING


def _is_our_kind(hello: ClientHello) -> bool:
    return hello.takes_ed25519 and any(alpn.startswith(OUR_PREFIX) for alpn in hello.alpns)

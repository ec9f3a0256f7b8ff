"""OpenSSL contexts of a node, and the choices made inside OpenSSL's callbacks.

A server must show the right certificate before it knows more than the ClientHello. OpenSSL (1.1.1
and later, TLS 1.3) calls the SNI callback first, for every client; then the ALPN callback, if the
client offers any; then it picks a signature for the certificate that is set by now. So:

1. A connection starts without a certificate.
2. SNI callback: if clients without ALPN are served, set the web certificate of the name.
3. ALPN callback: take the first of *our* names that the client offers, or raise (alert 120);
   then set the chain of a configured name, the web certificate for web protocols, or the key's.

A client without ALPN that is not served ends at step 3 with no certificate: alert 40.

Sessions are never resumed: OpenSSL skips the verify callback then. The ticket messages that it
sends all the same (two empty-handed ones) name sessions that are in no cache.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING
from weakref import WeakKeyDictionary

from cryptography import x509
from OpenSSL import SSL, crypto

from alknet.core.tls.errors import HandshakeFailed
from alknet.core.tls.trust import Trust, check_server, sni_of
from alknet.core.tls.x509 import certificate_untrusted
from alknet.errors import AlknetError, LocalError, Malformed

if TYPE_CHECKING:
    from alknet.core.tls.credentials import NodeCredentials, WebCertificate
    from alknet.core.tls.x509 import CertificateKey

__all__ = [
    "Handshake",
    "check_certificate",
    "client_connection",
    "peer_certificate",
    "server_connection",
]

# Protocols of browsers and ordinary tools, which take the Web PKI's certificates and would ask
# their user for a client certificate if we asked them.
WEB_ALPNS = frozenset({b"h2", b"http/1.1"})


@dataclass(eq=False)
class Handshake:
    """What the callbacks of one connection need, and what they found.

    Attributes:
        alpns: Server: served names in order of preference. Client: the one that is offered.
        serves_without_alpn: Server: clients that offer none are served.
        trust: Client: whom to accept.
        offered_alpns: Server: what the client offered; None if it did not.
        refusal: Why we refused the other side, if we did.
        is_server_trusted: Client: *trust* has accepted the server's certificate.
        alert_sent: The last alert that went out.
        alert_received: The last alert that came in.
    """

    alpns: tuple[bytes, ...]
    credentials: NodeCredentials | None
    serves_without_alpn: bool = False
    trust: Trust | None = None
    offered_alpns: list[bytes] | None = None
    refusal: AlknetError | None = None
    is_server_trusted: bool = False
    alert_sent: int | None = None
    alert_received: int | None = None


def server_connection(
    credentials: NodeCredentials, alpns: Sequence[str], *, serves_without_alpn: bool
) -> tuple[SSL.Connection, Handshake]:
    """Make the server's end of a handshake; bytes go in and out by its memory BIOs."""
    handshake = Handshake(tuple(alpn.encode() for alpn in alpns), credentials, serves_without_alpn)
    connection = SSL.Connection(_contexts_of(credentials).bare, None)
    connection.set_app_data(handshake)
    connection.set_accept_state()
    return connection, handshake


def client_connection(
    credentials: NodeCredentials | None, alpn: str, trust: Trust, server_name: str | None
) -> tuple[SSL.Connection, Handshake]:
    """Make the client's end of a handshake; it shows the key of *credentials* if it is asked.

    Raises:
        LocalError: *server_name* is no DNS name.
    """
    handshake = Handshake((alpn.encode(),), credentials, trust=trust)
    context = _ANONYMOUS_CLIENT if credentials is None else _contexts_of(credentials).client
    connection = SSL.Connection(context, None)
    connection.set_app_data(handshake)
    connection.set_alpn_protos(list(handshake.alpns))
    sni = sni_of(server_name)
    if sni is not None:
        connection.set_tlsext_host_name(sni.encode("ascii"))
    connection.set_connect_state()
    return connection, handshake


def check_certificate(certificate: WebCertificate) -> None:
    """Raise LocalError if OpenSSL will not show *certificate*, for its key or its signatures."""
    try:
        _server_context(certificate.chain, certificate.key)
    except SSL.Error as exc:
        reasons = ", ".join(str(reason[-1]) for reason in exc.args[0])
        raise LocalError(f"TLS refuses the certificate: {reasons}") from exc


@dataclass(eq=False)
class _NodeContexts:
    """The contexts of one node; those of web certificates go when nothing shows them any more."""

    bare: SSL.Context
    key: SSL.Context
    client: SSL.Context
    web: WeakKeyDictionary[WebCertificate, SSL.Context] = field(default_factory=WeakKeyDictionary)

    def of_web(self, certificate: WebCertificate) -> SSL.Context:
        context = self.web.get(certificate)
        if context is None:
            context = self.web[certificate] = _server_context(certificate.chain, certificate.key)
        return context


_contexts: WeakKeyDictionary[NodeCredentials, _NodeContexts] = WeakKeyDictionary()


def _contexts_of(credentials: NodeCredentials) -> _NodeContexts:
    found = _contexts.get(credentials)
    if found is None:
        chain = (credentials.certificate,)
        found = _contexts[credentials] = _NodeContexts(
            bare=_server_context(),
            key=_server_context(chain, credentials.key),
            client=_client_context(chain, credentials.key),
        )
    return found


def _context(chain: Sequence[x509.Certificate], key: CertificateKey | None) -> SSL.Context:
    context = SSL.Context(SSL.TLS_METHOD)
    context.set_min_proto_version(SSL.TLS1_3_VERSION)
    context.set_max_proto_version(SSL.TLS1_3_VERSION)
    context.set_options(SSL.OP_NO_TICKET | SSL.OP_NO_COMPRESSION)
    context.set_session_cache_mode(SSL.SESS_CACHE_OFF)
    # 34 KiB less for each connection that is idle.
    context.set_mode(SSL.MODE_RELEASE_BUFFERS)
    context.set_info_callback(_note_alert)
    if key is not None:
        context.use_certificate(chain[0])
        context.use_privatekey(key)
        for issuer in chain[1:]:
            context.add_extra_chain_cert(issuer)
    return context


def _server_context(
    chain: Sequence[x509.Certificate] = (), key: CertificateKey | None = None
) -> SSL.Context:
    context = _context(chain, key)
    # Without one OpenSSL answers a client that offers a session with internal_error.
    context.set_session_id(b"alknet")
    context.set_verify(SSL.VERIFY_PEER, _accept_any_client)
    context.set_tlsext_servername_callback(_on_server_name)
    context.set_alpn_select_callback(_on_alpn)
    return context


def _client_context(
    chain: Sequence[x509.Certificate] = (), key: CertificateKey | None = None
) -> SSL.Context:
    context = _context(chain, key)
    context.set_verify(SSL.VERIFY_PEER, _check_server)
    return context


def _handshake_of(connection: SSL.Connection) -> Handshake:
    handshake = connection.get_app_data()
    assert isinstance(handshake, Handshake)
    return handshake


def _on_server_name(connection: SSL.Connection) -> None:
    handshake = _handshake_of(connection)
    if handshake.serves_without_alpn:
        _show_web(connection, handshake)


def _on_alpn(connection: SSL.Connection, offered: list[bytes]) -> bytes:
    handshake = _handshake_of(connection)
    handshake.offered_alpns = offered
    chosen = next((alpn for alpn in handshake.alpns if alpn in offered), None)
    if chosen is None:
        # pyOpenSSL: only an exception gives the alert; NO_OVERLAPPING_PROTOCOLS goes on without.
        raise HandshakeFailed("no protocol in common")
    if chosen in WEB_ALPNS:
        _show_web(connection, handshake)
    else:
        _show_node(connection, handshake)
    return chosen


def _show_web(connection: SSL.Connection, handshake: Handshake) -> None:
    assert handshake.credentials is not None
    certificate = handshake.credentials.web_certificate(_server_name(connection))
    connection.set_context(_contexts_of(handshake.credentials).of_web(certificate))
    connection.set_verify(SSL.VERIFY_NONE, _accept_any_client)


def _show_node(connection: SSL.Connection, handshake: Handshake) -> None:
    assert handshake.credentials is not None
    contexts = _contexts_of(handshake.credentials)
    named = handshake.credentials.configured_web_certificate(_server_name(connection))
    connection.set_context(contexts.key if named is None else contexts.of_web(named))
    connection.set_verify(SSL.VERIFY_PEER, _accept_any_client)


def _server_name(connection: SSL.Connection) -> str | None:
    name = connection.get_servername()
    return None if name is None else name.decode("ascii", "replace")


def _accept_any_client(
    connection: SSL.Connection, certificate: crypto.X509, error: int, depth: int, ok: int
) -> bool:
    # No authority vouches for clients, and any key will do: OpenSSL proves that the client holds
    # it (CertificateVerify), the endpoint judges whose it is. Keys that are not Ed25519 make an
    # anonymous client; what is no certificate is refused.
    handshake = _handshake_of(connection)
    try:
        _parse(certificate)
    except Malformed as exc:
        handshake.refusal = HandshakeFailed(f"client certificate: {exc}")
        return False
    return True


def _check_server(
    connection: SSL.Connection, certificate: crypto.X509, error: int, depth: int, ok: int
) -> bool:
    # Called once or more for each certificate, with OpenSSL's own opinion, which does not count.
    handshake = _handshake_of(connection)
    if depth != 0 or handshake.is_server_trusted:
        return True
    assert handshake.trust is not None
    try:
        chain = [_parse(link) for link in connection.get_peer_cert_chain() or []]
        check_server(handshake.trust, chain)
    except Malformed as exc:
        handshake.refusal = HandshakeFailed(f"server certificate: {exc}")
    except AlknetError as exc:
        handshake.refusal = exc
    else:
        handshake.is_server_trusted = True
    return handshake.is_server_trusted


def peer_certificate(connection: SSL.Connection) -> x509.Certificate | None:
    """Return the peer's certificate, whose key the handshake has proven; None if it showed none.

    Raises:
        Malformed: OpenSSL takes it for a certificate, but it is none.
    """
    certificate = connection.get_peer_certificate()
    return None if certificate is None else _parse(certificate)


def _parse(certificate: crypto.X509) -> x509.Certificate:
    return certificate_untrusted(crypto.dump_certificate(crypto.FILETYPE_ASN1, certificate))


def _note_alert(connection: SSL.Connection, where: int, value: int) -> None:
    if where == SSL.SSL_CB_READ_ALERT:
        _handshake_of(connection).alert_received = value & 0xFF
    elif where == SSL.SSL_CB_WRITE_ALERT:
        _handshake_of(connection).alert_sent = value & 0xFF


_ANONYMOUS_CLIENT = _client_context()

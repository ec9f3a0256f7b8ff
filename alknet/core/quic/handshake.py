"""RFC 7250 raw public keys, and the choice of certificates, inside aioquic's TLS 1.3.

Theory of operation. A ClientHello says with extension 20 which types of certificate it takes from
the server, with 19 which it can show itself; each is a list of one-byte types (2 = raw public
key). The server answers with one type each in EncryptedExtensions, 19 only if it asks for the
client's key at all. A raw public key travels in the Certificate message as one entry, the
44-byte SubjectPublicKeyInfo. aioquic knows none of this, but its `tls.Context` can be steered:

* `handshake_extensions` is written to ClientHello or EncryptedExtensions as it is;
* `_server_handle_hello` is where a server can still choose what it shows;
* `_set_peer_certificate` and `_check_certificate_verify_signature` are where a key arrives and
  where its possession is proven. Only after the latter does `peer_key` have a value.

Private names touched here: `Context._server_handle_hello`, `._set_peer_certificate`,
`._check_certificate_verify_signature`, `._is_client`, `._request_client_certificate`,
`._peer_certificate`, `._peer_certificate_chain`, `._verify_mode`, `._signature_algorithms`,
`._supported_groups`. `alknet.core.quic.seams` guards them at import.

Deliberately not here: tickets, resumption and 0-RTT. A key is judged in every handshake.
"""

from __future__ import annotations

import ssl
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any, cast

from aioquic import tls
from aioquic._buffer import Buffer
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from alknet.core.identity import NodeId
from alknet.core.quic.context import SwiftContext
from alknet.core.quic.messages import ReadHello, pull_client_hello
from alknet.core.tls.errors import HandshakeFailed
from alknet.core.tls.trust import PinnedKey, Trust, WebPki, check_server
from alknet.errors import LocalError

__all__ = ["AskFor", "ClientHello", "ClientPolicy", "KeyContext", "ServerPolicy", "Shown"]

EXT_CLIENT_CERTIFICATE_TYPE = 19
EXT_SERVER_CERTIFICATE_TYPE = 20
TYPE_RAW_PUBLIC_KEY = 2
OFFER_RAW = bytes([1, TYPE_RAW_PUBLIC_KEY])
CHOSE_RAW = bytes([TYPE_RAW_PUBLIC_KEY])
SPKI_PREFIX = bytes.fromhex("302a300506032b6570032100")


@dataclass(frozen=True)
class RawPublicKey:
    """Stands where aioquic expects an `x509.Certificate`; it calls only these two methods."""

    key: Ed25519PublicKey

    def public_key(self) -> Ed25519PublicKey:
        return self.key

    def public_bytes(self, encoding: Encoding) -> bytes:
        """Return the 44-byte SubjectPublicKeyInfo; *encoding* is always DER here."""
        return self.key.public_bytes(encoding, PublicFormat.SubjectPublicKeyInfo)


@dataclass(frozen=True)
class ClientHello:
    """What a server may look at before it chooses what to show."""

    alpns: Sequence[str]
    server_name: str | None
    takes_raw_key: bool
    shows_raw_key: bool
    takes_ed25519: bool


@dataclass(frozen=True, repr=False)
class Shown:
    """What one side shows: a raw key (no certificates), or a chain, with its private key."""

    key: Any
    chain: tuple[x509.Certificate, ...] = ()

    @property
    def is_raw(self) -> bool:
        """It is a raw public key, not a certificate."""
        return not self.chain


class AskFor(Enum):
    """Which kind of client key a server asks for. None is ever required by TLS."""

    NOTHING = 0
    RAW = 1
    X509 = 2


@dataclass(frozen=True, repr=False)
class ServerPolicy:
    """How a server answers: *choose* gets the ClientHello and says what to show and ask for."""

    choose: Callable[[ClientHello], tuple[Shown, AskFor]]


@dataclass(frozen=True, repr=False)
class ClientPolicy:
    """What a client offers and whom it trusts.

    Attributes:
        trust: Whom; a pinned key is asked for as a raw key, a name as an X.509 chain.
        own: The key to show when asked for; None to stay anonymous.
    """

    trust: Trust
    own: Ed25519PrivateKey | None


class KeyContext(SwiftContext):
    """aioquic's TLS context with raw public keys; made by changing a context's class (`adopt`)."""

    policy: ServerPolicy | ClientPolicy
    peer_key: NodeId | None
    server_name: str | None
    _own_extensions: list[tuple[int, bytes]]
    _peer_shows_raw: bool

    def adopt(self, policy: ServerPolicy | ClientPolicy) -> None:
        """Take over a context that aioquic has just made, before its first message."""
        self.policy = policy
        self.peer_key = None
        self.server_name = None
        self._own_extensions = []
        self._peer_shows_raw = False
        # Every TLS 1.3 stack in use has one of these two; aioquic sends a share of each group
        # that it knows, and those of all four cost a client 0.35 ms.
        self._supported_groups = [tls.Group.X25519, tls.Group.SECP256R1]
        if isinstance(policy, ClientPolicy):
            self._offer(policy)

    def _offer(self, policy: ClientPolicy) -> None:
        if policy.own is not None:
            self._own_extensions.append((EXT_CLIENT_CERTIFICATE_TYPE, OFFER_RAW))
        if not isinstance(policy.trust, WebPki):
            self._own_extensions.append((EXT_SERVER_CERTIFICATE_TYPE, OFFER_RAW))
            return
        # Without Ed25519 an alknet node shows its web certificate, not its own key's.
        self._signature_algorithms = [
            algorithm
            for algorithm in self._signature_algorithms
            if algorithm != tls.SignatureAlgorithm.ED25519
        ]

    # aioquic assigns the list (again after a version change) and writes it to ClientHello or
    # EncryptedExtensions; ours ride along.
    @property
    def handshake_extensions(self) -> list[tuple[int, bytes]]:
        """What aioquic set, and ours."""
        return (
            cast("list[tuple[int, bytes]]", self.__dict__["base_extensions"]) + self._own_extensions
        )

    @handshake_extensions.setter
    def handshake_extensions(self, extensions: list[tuple[int, bytes]]) -> None:
        self.__dict__["base_extensions"] = extensions

    def show(self, shown: Shown) -> None:
        """Set what aioquic's Certificate and CertificateVerify messages are made from."""
        self.certificate_private_key = shown.key
        if shown.is_raw:
            self.certificate = cast("x509.Certificate", RawPublicKey(shown.key.public_key()))
            self.certificate_chain = []
        else:
            self.certificate, *self.certificate_chain = shown.chain

    # server

    def _server_handle_hello(self, input_buf: Buffer, *output: Buffer) -> None:
        read = ReadHello(pull_client_hello(input_buf), input_buf.data)
        hello = _summary(read.hello)
        assert isinstance(self.policy, ServerPolicy)
        shown, ask_for = self.policy.choose(hello)
        self.server_name = hello.server_name
        self.show(shown)
        if shown.is_raw:
            self._own_extensions.append((EXT_SERVER_CERTIFICATE_TYPE, CHOSE_RAW))
        self._request_client_certificate = ask_for is not AskFor.NOTHING
        self._peer_shows_raw = ask_for is AskFor.RAW
        if self._peer_shows_raw:
            self._own_extensions.append((EXT_CLIENT_CERTIFICATE_TYPE, CHOSE_RAW))
        if self._request_client_certificate:
            # Whoever has another kind of key sends an empty Certificate and stays anonymous.
            self._signature_algorithms = [tls.SignatureAlgorithm.ED25519]
        # Nothing else is asked of the buffer where no tickets are taken.
        super()._server_handle_hello(cast(Buffer, read), *output)

    # both

    def _set_peer_certificate(self, certificate: tls.Certificate) -> None:
        if isinstance(self.policy, ClientPolicy):
            self._client_choose(self.policy)
        if not self._peer_shows_raw:
            super()._set_peer_certificate(certificate)
            return
        if len(certificate.certificates) != 1:
            raise tls.AlertBadCertificate("a raw public key comes as exactly one entry")
        key = _raw_public_key_untrusted(certificate.certificates[0][0])
        self._peer_certificate = cast("x509.Certificate", RawPublicKey(key))
        self._peer_certificate_chain = []

    def _client_choose(self, policy: ClientPolicy) -> None:
        """Read the server's choice of types from its EncryptedExtensions."""
        chosen = dict(self.received_extensions or [])
        self._peer_shows_raw = chosen.get(EXT_SERVER_CERTIFICATE_TYPE) == CHOSE_RAW
        if isinstance(policy.trust, WebPki) == self._peer_shows_raw:
            kind = "a certificate" if self._peer_shows_raw else "a raw public key"
            raise tls.AlertUnsupportedCertificate(f"the server does not show {kind}")
        if policy.own is not None and chosen.get(EXT_CLIENT_CERTIFICATE_TYPE) == CHOSE_RAW:
            self.show(Shown(policy.own))

    def _check_certificate_verify_signature(self, verify: tls.CertificateVerify) -> None:
        super()._check_certificate_verify_signature(verify)
        assert self._peer_certificate is not None
        key = self._peer_certificate.public_key()
        # From here on the peer has proven that it holds the key.
        proven = NodeId.from_public_key(key) if isinstance(key, Ed25519PublicKey) else None
        if isinstance(self.policy, ClientPolicy):
            self._judge_server(self.policy, proven)
        elif proven is None:
            raise tls.AlertUnsupportedCertificate("client keys must be Ed25519")
        self.peer_key = proven

    def _judge_server(self, policy: ClientPolicy, proven: NodeId | None) -> None:
        if isinstance(policy.trust, PinnedKey):
            if proven != policy.trust.node_id:
                found = proven.short if proven else "another kind of key"
                expected = policy.trust.node_id.short
                raise tls.AlertBadCertificate(f"expected the key {expected}, got {found}")
        elif isinstance(policy.trust, WebPki):
            chain = [cast(x509.Certificate, self._peer_certificate), *self._peer_certificate_chain]
            try:
                check_server(policy.trust, chain)
            except (HandshakeFailed, LocalError) as exc:
                raise tls.AlertBadCertificate(str(exc)) from exc
        self._verify_mode = ssl.CERT_NONE  # judged; aioquic need not look again


def _raw_public_key_untrusted(data: bytes) -> Ed25519PublicKey:
    if len(data) != len(SPKI_PREFIX) + 32 or not data.startswith(SPKI_PREFIX):
        raise tls.AlertUnsupportedCertificate("raw public keys must be Ed25519")
    return Ed25519PublicKey.from_public_bytes(data[len(SPKI_PREFIX) :])


def _summary(hello: tls.ClientHello) -> ClientHello:
    other = dict(hello.other_extensions)
    return ClientHello(
        alpns=tuple(hello.alpn_protocols or ()),
        server_name=hello.server_name,
        takes_raw_key=_offers_raw_untrusted(other.get(EXT_SERVER_CERTIFICATE_TYPE)),
        shows_raw_key=_offers_raw_untrusted(other.get(EXT_CLIENT_CERTIFICATE_TYPE)),
        takes_ed25519=tls.SignatureAlgorithm.ED25519 in (hello.signature_algorithms or ()),
    )


def _offers_raw_untrusted(extension: bytes | None) -> bool:
    if extension is None:
        return False
    if len(extension) < 2 or extension[0] != len(extension) - 1:
        raise tls.AlertDecodeError("malformed certificate type extension")
    return TYPE_RAW_PUBLIC_KEY in extension[1:]

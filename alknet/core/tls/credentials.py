"""What a node shows of itself in TLS: its key, that key's certificate, and web certificates."""

from __future__ import annotations

import datetime as dt
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from alknet.core.clock import WallClock, wall_clock
from alknet.core.identity import NodeId
from alknet.core.tls.x509 import (
    CertificateKey,
    load_certificate_chain,
    load_certificate_key,
    node_certificate,
    self_signed_web_certificate,
)
from alknet.errors import LocalError

__all__ = ["NodeCredentials", "WebCertificate"]

# A self-made web certificate is replaced while clients still have this long to accept the old one.
_RENEW_BEFORE = dt.timedelta(days=1)


@dataclass(frozen=True, eq=False)
class WebCertificate:
    """A certificate for names, as the Web PKI has them, with its key.

    Attributes:
        chain: The leaf first, then the issuers that clients may not have.
        key: The leaf's private key.

    Raises:
        LocalError: The chain is empty, or the key is not the leaf's.
    """

    chain: tuple[x509.Certificate, ...]
    key: CertificateKey = field(repr=False)

    def __post_init__(self) -> None:
        if not self.chain:
            raise LocalError("a web certificate needs at least one certificate")
        if self.chain[0].public_key() != self.key.public_key():
            raise LocalError(
                "the private key does not belong to the first certificate of the chain"
            )

    @classmethod
    def load(cls, chain_file: Path, key_file: Path) -> WebCertificate:
        """Read both from PEM files.

        Raises:
            LocalError: A file is missing, unreadable or wrong, or they do not match.
        """
        chain = load_certificate_chain(chain_file)
        key = load_certificate_key(key_file)
        try:
            return cls(chain, key)
        except LocalError as exc:
            raise LocalError(f"{chain_file} and {key_file}: {exc}") from exc


class NodeCredentials:
    """A node's key and everything that it shows in TLS handshakes.

    The web certificates can be replaced while the node runs (`set_web`); handshakes that begin
    afterwards use the new ones.

    Attributes:
        key: The node's private key. Never shown by ``repr``.
        node_id: Its public half.
        certificate: The self-signed certificate that carries it where raw keys cannot be shown.
    """

    def __init__(
        self,
        key: Ed25519PrivateKey,
        web: Mapping[str, WebCertificate] | None = None,
        default_web: WebCertificate | None = None,
        *,
        clock: WallClock = wall_clock,
    ) -> None:
        """Hold *key*; *web* maps server names (or ``*.domain``) to their certificates.

        Args:
            key: The node's identity.
            web: By DNS name in ASCII, any case; ``*.example.org`` covers one label.
            default_web: Shown to clients that name no server of *web*. Without it one is made
                when first needed, self-signed and short-lived.
            clock: Tells when the self-made one has to be replaced.
        """
        self.key = key
        self.node_id = NodeId.from_public_key(key.public_key())
        self.certificate = node_certificate(key)
        self._clock = clock
        self._self_made: WebCertificate | None = None
        self._web: Mapping[str, WebCertificate] = {}
        self._default_web: WebCertificate | None = None
        self.set_web(web or {}, default_web)

    def __repr__(self) -> str:
        return f"<NodeCredentials {self.node_id.short} web={sorted(self._web)}>"

    @property
    def web(self) -> Mapping[str, WebCertificate]:
        """The configured certificates by lower-case name."""
        return MappingProxyType(self._web)

    def set_web(
        self, web: Mapping[str, WebCertificate], default_web: WebCertificate | None = None
    ) -> None:
        """Replace the web certificates; connections that are open keep theirs."""
        self._web = {_folded(name): certificate for name, certificate in web.items()}
        self._default_web = default_web

    def configured_web_certificate(self, server_name: str | None) -> WebCertificate | None:
        """Return the certificate configured for that SNI (exact name, then wildcard), or None."""
        if server_name is None:
            return None
        name = _folded(server_name)
        _, dot, parent = name.partition(".")
        return self._web.get(name) or (self._web.get(f"*.{parent}") if dot else None)

    def web_certificate(self, server_name: str | None) -> WebCertificate:
        """Return what a web client that asks for *server_name* is shown; there is always one."""
        return (
            self.configured_web_certificate(server_name)
            or self._default_web
            or self._self_made_certificate()
        )

    def _self_made_certificate(self) -> WebCertificate:
        made = self._self_made
        now = dt.datetime.fromtimestamp(self._clock(), dt.UTC)
        if made is None or made.chain[0].not_valid_after_utc - now < _RENEW_BEFORE:
            certificate, key = self_signed_web_certificate(clock=self._clock)
            made = self._self_made = WebCertificate((certificate,), key)
        return made


def _folded(server_name: str) -> str:
    return server_name.rstrip(".").lower()

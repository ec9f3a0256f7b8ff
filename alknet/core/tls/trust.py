"""Whom a dialler trusts: one pinned key, or a name that the Web PKI vouches for.

A peer that is neither pinned nor named is not dialled, unless the user asks for trust on first
use; then `AnyKey` lets the handshake pass, and the caller compares the key before it uses it.
"""

from __future__ import annotations

import datetime as dt
import ipaddress
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import certifi
from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.x509 import verification
from cryptography.x509.oid import ExtendedKeyUsageOID

from alknet.core.clock import WallClock, wall_clock
from alknet.core.identity import NodeId
from alknet.core.tls.errors import ALERT_BAD_CERTIFICATE, HandshakeFailed
from alknet.core.tls.x509 import load_authorities, node_id_of_certificate
from alknet.errors import LocalError

__all__ = ["AnyKey", "PinnedKey", "Trust", "WebPki", "check_server", "sni_of", "verify_web_chain"]


@dataclass(frozen=True)
class PinnedKey:
    """The peer must prove that it holds exactly this key."""

    node_id: NodeId


@dataclass(frozen=True)
class AnyKey:
    """The peer must prove that it holds some Ed25519 key; which one, the caller judges.

    Nothing may be sent or believed before that: see `alknet.client.connect`.
    """


@dataclass(frozen=True)
class WebPki:
    """The peer must show a certificate for a name, issued by an authority that we know.

    Attributes:
        server_name: A DNS name, or an IPv4 or IPv6 address.
        ca_file: PEM file of the authorities to trust instead of certifi's.
    """

    server_name: str
    ca_file: Path | None = None

    def check(self) -> None:
        """Raise LocalError if `ca_file` cannot be read or holds no certificates."""
        if self.ca_file is not None:
            _roots(self.ca_file)


Trust = PinnedKey | AnyKey | WebPki


def sni_of(server_name: str | None) -> str | None:
    """Return what to send as SNI: the name in ASCII, None for an address (RFC 6066 sec. 3).

    Raises:
        LocalError: It is not a possible DNS name.
    """
    if server_name is None or _address(server_name) is not None:
        return None
    try:
        name = server_name.rstrip(".").encode("idna").decode("ascii").lower()
    except UnicodeError as exc:
        raise LocalError(f"{server_name!r} is not a DNS name") from exc
    if not name:
        raise LocalError("the server name is empty")
    return name


def check_server(trust: Trust, chain: Sequence[x509.Certificate]) -> None:
    """Judge the certificates that a server showed, the leaf first.

    Raises:
        HandshakeFailed: It is not whom *trust* names; the message says why.
        LocalError: The trust itself is unusable (no such CA file, no such name).
    """
    if not chain:
        raise _refusal("the server showed no certificate")
    if isinstance(trust, WebPki):
        verify_web_chain(trust, chain)
    else:
        _check_key(trust, chain[0])


def verify_web_chain(
    trust: WebPki, chain: Sequence[x509.Certificate], *, clock: WallClock = wall_clock
) -> None:
    """Verify *chain* (leaf first) as RFC 5280 and the CA/Browser Forum ask, and the name.

    With a CA file of one's own the rules are OpenSSL's: key usage and key identifiers may be
    missing, and a self-signed certificate that is itself in the file is trusted.

    Raises:
        HandshakeFailed: It does not verify.
        LocalError: The CA file cannot be read, or the server name is none.
    """
    address = _address(trust.server_name)
    subject: x509.DNSName | x509.IPAddress = (
        x509.DNSName(sni_of(trust.server_name) or "")
        if address is None
        else x509.IPAddress(address)
    )
    now = dt.datetime.fromtimestamp(clock(), dt.UTC)
    builder = verification.PolicyBuilder().time(now)
    if trust.ca_file is None:
        builder = builder.store(_roots(Path(certifi.where())))
    else:
        builder = builder.store(_roots(trust.ca_file)).extension_policies(
            ee_policy=_PRIVATE_LEAF, ca_policy=_PRIVATE_AUTHORITY
        )
    verifier = builder.build_server_verifier(subject)
    try:
        verifier.verify(chain[0], list(chain[1:]))
    except (verification.VerificationError, ValueError, UnsupportedAlgorithm) as exc:
        raise _refusal(
            f"the certificate of {trust.server_name} is not trusted: {_why(exc)}"
        ) from exc


def _check_key(trust: PinnedKey | AnyKey, leaf: x509.Certificate) -> None:
    wanted = f"the key {trust.node_id.short}" if isinstance(trust, PinnedKey) else "a node's key"
    node_id = node_id_of_certificate(leaf)
    if node_id is None:
        raise _refusal(f"expected {wanted}, got one that is not Ed25519")
    if isinstance(trust, PinnedKey) and node_id != trust.node_id:
        raise _refusal(f"expected {wanted}, got {node_id.short}")
    try:
        leaf.verify_directly_issued_by(leaf)
    except (ValueError, TypeError, InvalidSignature) as exc:
        raise _refusal(f"the certificate of {node_id.short} is not self-signed") from exc


def _refusal(message: str) -> HandshakeFailed:
    return HandshakeFailed(message, alert=ALERT_BAD_CERTIFICATE)


def _why(error: Exception) -> str:
    # The library appends the certificate's repr, which says nothing more.
    return str(error).partition(" (encountered processing")[0]


def _address(text: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        return ipaddress.ip_address(text)
    except ValueError:
        return None


@lru_cache(maxsize=8)
def _roots_at(path: Path, mtime_ns: int) -> verification.Store:
    return verification.Store(load_authorities(path))


def _roots(path: Path) -> verification.Store:
    # Parsed once per file and change: certifi holds about 140 certificates.
    try:
        mtime_ns = path.stat().st_mtime_ns
    except OSError as exc:
        raise LocalError(f"cannot read the CA file {path}: {exc.strerror}") from exc
    return _roots_at(path, mtime_ns)


def _check_is_authority(
    policy: verification.Policy, certificate: x509.Certificate, found: x509.BasicConstraints
) -> None:
    if not found.ca:
        raise ValueError("an issuer is not marked as an authority")


def _check_signs_certificates(
    policy: verification.Policy, certificate: x509.Certificate, found: x509.KeyUsage | None
) -> None:
    if found is not None and not found.key_cert_sign:
        raise ValueError("an issuer may not sign certificates")


def _check_is_for_servers(
    policy: verification.Policy, certificate: x509.Certificate, found: x509.ExtendedKeyUsage | None
) -> None:
    allowed = (ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.ANY_EXTENDED_KEY_USAGE)
    if found is not None and not any(usage in found for usage in allowed):
        raise ValueError("the certificate is not for servers")


_AGNOSTIC = verification.Criticality.AGNOSTIC
_PRIVATE_AUTHORITY = (
    verification.ExtensionPolicy.permit_all()
    .require_present(x509.BasicConstraints, _AGNOSTIC, _check_is_authority)
    .may_be_present(x509.KeyUsage, _AGNOSTIC, _check_signs_certificates)
)
_PRIVATE_LEAF = (
    verification.ExtensionPolicy.permit_all()
    .require_present(x509.SubjectAlternativeName, _AGNOSTIC, None)
    .may_be_present(x509.ExtendedKeyUsage, _AGNOSTIC, _check_is_for_servers)
)

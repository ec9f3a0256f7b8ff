"""X.509 certificates: the node's own, web ones from files, and whose key a certificate holds.

Where a raw public key cannot be shown (TLS on TCP), the node's Ed25519 key goes into a
self-signed certificate that is a function of the key alone: same key, same bytes, nothing stored.
"""

from __future__ import annotations

import contextlib
import datetime as dt
import hashlib
import re
import warnings
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, load_pem_private_key
from cryptography.utils import CryptographyDeprecationWarning
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from alknet.core.clock import WallClock, wall_clock
from alknet.core.identity import NodeId
from alknet.errors import LocalError, Malformed

__all__ = [
    "CertificateKey",
    "certificate_untrusted",
    "fingerprint_of_certificate",
    "load_authorities",
    "load_certificate_chain",
    "load_certificate_key",
    "node_certificate",
    "node_id_of_certificate",
    "self_signed_web_certificate",
]

CertificateKey = ed25519.Ed25519PrivateKey | ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey
"""The kinds of private key that a certificate of ours may have."""

# Browsers take a certificate by its hash (WebTransport) only if it is valid for <= 14 days.
WEB_CERTIFICATE_DAYS = 13
# RFC 5280 sec. 4.1.2.5: "no well-defined expiration date"; the start is as arbitrary.
_NEVER_BEFORE = dt.datetime(1970, 1, 1, tzinfo=dt.UTC)
_NEVER_AFTER = dt.datetime(9999, 12, 31, 23, 59, 59, tzinfo=dt.UTC)

_PEM_CERTIFICATE = re.compile(
    rb"-----BEGIN CERTIFICATE-----.+?-----END CERTIFICATE-----", re.DOTALL
)


def node_certificate(key: ed25519.Ed25519PrivateKey) -> x509.Certificate:
    """Return the self-signed certificate of *key*: a function of the key, byte for byte."""
    name = _common_name(str(NodeId.from_public_key(key.public_key())))
    return (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(_NEVER_BEFORE)
        .not_valid_after(_NEVER_AFTER)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .sign(key, None)
    )


def self_signed_web_certificate(
    names: tuple[str, ...] = ("localhost",), *, clock: WallClock = wall_clock
) -> tuple[x509.Certificate, ec.EllipticCurvePrivateKey]:
    """Make an ECDSA P-256 certificate for *names* with a fresh key, valid for 13 days from now.

    For clients that cannot do Ed25519 (browsers), when no certificate is configured. They will
    warn about it, unless they were given its SHA-256 (serverCertificateHashes).
    """
    key = ec.generate_private_key(ec.SECP256R1())
    now = dt.datetime.fromtimestamp(clock(), dt.UTC)
    name = _common_name(names[0])
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        # An hour back, for clients whose clock is slow.
        .not_valid_before(now - dt.timedelta(hours=1))
        .not_valid_after(now - dt.timedelta(hours=1) + dt.timedelta(days=WEB_CERTIFICATE_DAYS))
        .add_extension(
            x509.SubjectAlternativeName([x509.DNSName(n) for n in names]), critical=False
        )
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .sign(key, SHA256())
    )
    return certificate, key


def certificate_untrusted(der: bytes) -> x509.Certificate:
    """Parse a certificate that a peer sent. Nothing about it is verified.

    Raises:
        Malformed: It is not a DER certificate.
    """
    try:
        with warnings.catch_warnings():
            # Odd, but not wrong enough: such keys are judged like any other.
            warnings.simplefilter("ignore", CryptographyDeprecationWarning)
            return x509.load_der_x509_certificate(der)
    except (ValueError, x509.InvalidVersion) as exc:
        raise Malformed("the certificate is not valid DER") from exc


def node_id_of_certificate(certificate: x509.Certificate) -> NodeId | None:
    """Return whose key *certificate* holds, or None if it is not a readable Ed25519 key.

    It says nothing about possession: that is proven by CertificateVerify.
    """
    try:
        key = certificate.public_key()
    except (ValueError, UnsupportedAlgorithm):
        return None
    return NodeId.from_public_key(key) if isinstance(key, ed25519.Ed25519PublicKey) else None


def fingerprint_of_certificate(certificate: x509.Certificate) -> str:
    """``ed25519:<64 hex>`` if the key is Ed25519, else ``SHA256:<64 hex of the DER>``."""
    node_id = node_id_of_certificate(certificate)
    if node_id is not None:
        return node_id.fingerprint
    return f"SHA256:{hashlib.sha256(certificate.public_bytes(Encoding.DER)).hexdigest()}"


def load_certificate_chain(path: Path) -> tuple[x509.Certificate, ...]:
    """Read a PEM file: the leaf first, then its issuers.

    Raises:
        LocalError: The file cannot be read or holds no certificate; the message names it.
    """
    try:
        return tuple(x509.load_pem_x509_certificates(_read(path, "certificate")))
    except ValueError as exc:
        raise LocalError(f"{path} holds no PEM certificate (expected 'BEGIN CERTIFICATE')") from exc


def load_authorities(path: Path) -> list[x509.Certificate]:
    """Read a PEM file of authorities; those that cannot be parsed are passed over, as OpenSSL does.

    Raises:
        LocalError: The file cannot be read or holds no certificate; the message names it.
    """
    found = []
    for block in _PEM_CERTIFICATE.findall(_read(path, "CA")):
        with warnings.catch_warnings(), contextlib.suppress(ValueError):
            # Some public roots have a serial number of zero.
            warnings.simplefilter("ignore", CryptographyDeprecationWarning)
            found.append(x509.load_pem_x509_certificate(block))
    if not found:
        raise LocalError(f"{path} holds no PEM certificate (expected 'BEGIN CERTIFICATE')")
    return found


def load_certificate_key(path: Path) -> CertificateKey:
    """Read a private key (PEM, without a passphrase; EC, RSA or Ed25519).

    Raises:
        LocalError: The file cannot be read or holds no such key; the message names it.
    """
    pem = _read(path, "private key")
    try:
        key = load_pem_private_key(pem, password=None)
    except TypeError as exc:
        raise LocalError(f"the private key in {path} has a passphrase; store it without") from exc
    except (ValueError, UnsupportedAlgorithm) as exc:
        raise LocalError(f"{path} holds no PEM private key (expected 'BEGIN PRIVATE KEY')") from exc
    if not isinstance(key, CertificateKey):
        raise LocalError(f"the private key in {path} is neither EC, RSA nor Ed25519")
    return key


def _read(path: Path, what: str) -> bytes:
    try:
        return path.read_bytes()
    except OSError as exc:
        raise LocalError(f"cannot read the {what} file {path}: {exc.strerror}") from exc


def _common_name(text: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)])

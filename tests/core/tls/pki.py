"""A private authority for tests: root, intermediate, and leaves for names."""

from __future__ import annotations

import datetime as dt
import ipaddress
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
)
from cryptography.x509.oid import NameOID

from alknet.core.tls.credentials import WebCertificate
from alknet.core.tls.x509 import CertificateKey

NOW = dt.datetime.now(dt.UTC)
DAY = dt.timedelta(days=1)


@dataclass(frozen=True)
class Issuer:
    certificate: x509.Certificate
    key: ec.EllipticCurvePrivateKey


def authority(name: str, issuer: Issuer | None = None) -> Issuer:
    key = ec.generate_private_key(ec.SECP256R1())
    extension = x509.BasicConstraints(ca=True, path_length=None)
    return Issuer(_certificate(name, key, issuer or key, [extension]), key)


def leaf(
    issuer: Issuer,
    *names: str,
    key: CertificateKey | None = None,
    until: dt.datetime = NOW + DAY,
    extensions: tuple[x509.ExtensionType, ...] = (),
) -> WebCertificate:
    key = key or ec.generate_private_key(ec.SECP256R1())
    alternatives = x509.SubjectAlternativeName([_general_name(name) for name in names])
    certificate = _certificate(names[0], key, issuer, [alternatives, *extensions], until)
    return WebCertificate((certificate, issuer.certificate), key)


def write_chain(path: Path, *certificates: x509.Certificate) -> Path:
    path.write_bytes(b"".join(c.public_bytes(Encoding.PEM) for c in certificates))
    return path


def write_key(path: Path, key: CertificateKey) -> Path:
    path.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    return path


def _general_name(name: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(name))
    except ValueError:
        return x509.DNSName(name)


def _certificate(
    name: str,
    key: CertificateKey,
    issuer: Issuer | ec.EllipticCurvePrivateKey,
    extensions: list[x509.ExtensionType],
    until: dt.datetime = NOW + DAY,
) -> x509.Certificate:
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer.certificate.subject if isinstance(issuer, Issuer) else subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(min(NOW, until) - DAY)
        .not_valid_after(until)
    )
    for extension in extensions:
        builder = builder.add_extension(extension, critical=False)
    return builder.sign(issuer.key if isinstance(issuer, Issuer) else issuer, SHA256())


ROOT = authority("test root")
INTERMEDIATE = authority("test intermediate", ROOT)

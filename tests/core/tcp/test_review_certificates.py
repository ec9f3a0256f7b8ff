"""Certificates that OpenSSL will not show: refused when they are loaded, not in each handshake."""

from __future__ import annotations

import datetime as dt
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from alknet.core.config import NodeConfig, WebCertificateFiles
from alknet.core.tcp.contexts import check_certificate
from alknet.core.tls.credentials import WebCertificate
from alknet.errors import LocalError
from alknet.node import Node


def web_certificate(key: rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey) -> WebCertificate:
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "x.test")])
    now = dt.datetime.now(dt.UTC)
    certificate = (
        x509.CertificateBuilder(name, name, key.public_key(), 1, now, now + dt.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("x.test")]), critical=False)
        .sign(key, SHA256())
    )
    return WebCertificate((certificate,), key)


def weak() -> WebCertificate:
    return web_certificate(rsa.generate_private_key(65537, 1024))


def test_a_key_that_openssl_finds_too_small_is_refused() -> None:
    with pytest.raises(LocalError, match=r"TLS refuses .*: ee key too small"):
        check_certificate(weak())
    check_certificate(web_certificate(ec.generate_private_key(ec.SECP256R1())))


def test_a_node_with_a_certificate_that_it_cannot_show_does_not_start(tmp_path: Path) -> None:
    made = weak()
    cert, key = tmp_path / "cert.pem", tmp_path / "key.pem"
    cert.write_bytes(made.chain[0].public_bytes(Encoding.PEM))
    key.write_bytes(made.key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    files = WebCertificateFiles(("x.test",), cert, key)
    with pytest.raises(LocalError, match=r"cert\.pem"):
        Node(config=NodeConfig(web_certificates=(files,)))


def test_a_default_alpn_that_nobody_serves_is_refused() -> None:
    with pytest.raises(LocalError, match="default_alpn: 'nosuch' is served by no handler"):
        Node(config=NodeConfig(default_alpn="nosuch"))
    node = Node(config=NodeConfig(default_alpn="http/1.1"))
    with pytest.raises(LocalError, match="nosuch"):
        node.apply(NodeConfig(default_alpn="nosuch"))
    assert node.config.default_alpn == "http/1.1"

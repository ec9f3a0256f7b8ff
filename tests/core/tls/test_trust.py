"""Whom a dialler accepts."""

from __future__ import annotations

from pathlib import Path

import certifi
import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.x509.oid import ExtendedKeyUsageOID

from alknet.core.tls.credentials import NodeCredentials, WebCertificate
from alknet.core.tls.errors import HandshakeFailed, alert_name
from alknet.core.tls.trust import PinnedKey, WebPki, check_server, sni_of, verify_web_chain
from alknet.core.tls.x509 import load_authorities
from alknet.errors import LocalError
from tests.core.tls.pki import DAY, INTERMEDIATE, NOW, ROOT, Issuer, authority, leaf, write_chain

NODE = NodeCredentials(Ed25519PrivateKey.from_private_bytes(b"\1" * 32))
OTHER = NodeCredentials(Ed25519PrivateKey.from_private_bytes(b"\2" * 32))


@pytest.fixture
def ca_file(tmp_path: Path) -> Path:
    return write_chain(tmp_path / "ca.pem", ROOT.certificate)


def test_the_pinned_key_is_accepted() -> None:
    check_server(PinnedKey(NODE.node_id), [NODE.certificate])


def test_another_key_is_refused_with_both_names() -> None:
    with pytest.raises(HandshakeFailed) as caught:
        check_server(PinnedKey(NODE.node_id), [OTHER.certificate])
    assert NODE.node_id.short in str(caught.value)
    assert OTHER.node_id.short in str(caught.value)


def test_another_kind_of_key_is_refused_for_a_pin() -> None:
    with pytest.raises(HandshakeFailed, match="not Ed25519"):
        check_server(PinnedKey(NODE.node_id), leaf(ROOT, "one.test").chain)


def test_a_pinned_key_in_a_certificate_of_someone_else_is_refused() -> None:
    issued = leaf(ROOT, "one.test", key=NODE.key)
    with pytest.raises(HandshakeFailed, match="not self-signed"):
        check_server(PinnedKey(NODE.node_id), issued.chain)


@pytest.mark.parametrize("trust", [PinnedKey(NODE.node_id), WebPki("one.test")])
def test_no_certificate_is_refused(trust: PinnedKey | WebPki) -> None:
    with pytest.raises(HandshakeFailed, match="no certificate"):
        check_server(trust, [])


@pytest.mark.parametrize(
    "name", ["one.test", "ONE.test.", "a.wild.test", "192.0.2.1", "2001:db8::1"]
)
def test_a_chain_to_a_trusted_root_is_accepted_for_its_names(name: str, ca_file: Path) -> None:
    web = leaf(INTERMEDIATE, "one.test", "*.wild.test", "192.0.2.1", "2001:db8::1")
    check_server(WebPki(name, ca_file), web.chain)


@pytest.mark.parametrize("name", ["two.test", "a.one.test", "a.b.wild.test", "192.0.2.2"])
def test_other_names_are_refused(name: str, ca_file: Path) -> None:
    web = leaf(INTERMEDIATE, "one.test", "*.wild.test", "192.0.2.1")
    with pytest.raises(HandshakeFailed, match=r"is not trusted: .*subjectAltName"):
        check_server(WebPki(name, ca_file), web.chain)


def _without_intermediate() -> WebCertificate:
    web = leaf(INTERMEDIATE, "one.test")
    return WebCertificate(web.chain[:1], web.key)


def _issued_by_a_leaf() -> WebCertificate:
    parent = leaf(ROOT, "parent.test")
    issuer = Issuer(parent.chain[0], parent.key)  # type: ignore[arg-type]  # it is an EC key
    return leaf(issuer, "one.test")


@pytest.mark.parametrize(
    "web",
    [
        leaf(authority("another root"), "one.test"),
        leaf(ROOT, "one.test", until=NOW - DAY / 2),
        leaf(
            ROOT,
            "one.test",
            extensions=(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.CLIENT_AUTH]),),
        ),
        _without_intermediate(),
        _issued_by_a_leaf(),
        WebCertificate((NODE.certificate,), NODE.key),
    ],
    ids=["unknown root", "expired", "for clients", "gap", "issued by a leaf", "node's own"],
)
def test_bad_chains_are_refused(web: WebCertificate, ca_file: Path) -> None:
    with pytest.raises(HandshakeFailed, match="is not trusted"):
        check_server(WebPki("one.test", ca_file), web.chain)


def test_a_self_signed_certificate_in_the_ca_file_is_trusted(tmp_path: Path) -> None:
    web = NODE.web_certificate(None)
    path = write_chain(tmp_path / "own.pem", web.chain[0])
    check_server(WebPki("localhost", path), web.chain)
    with pytest.raises(HandshakeFailed):
        check_server(WebPki("other.test", path), web.chain)


def test_a_private_authority_is_not_trusted_without_its_file() -> None:
    with pytest.raises(HandshakeFailed, match="is not trusted"):
        check_server(WebPki("one.test"), leaf(ROOT, "one.test").chain)


def test_time_is_the_callers(ca_file: Path) -> None:
    chain = leaf(ROOT, "one.test").chain
    later = (NOW + 2 * DAY).timestamp()
    with pytest.raises(HandshakeFailed):
        verify_web_chain(WebPki("one.test", ca_file), chain, clock=lambda: later)


def test_a_changed_ca_file_is_read_again(tmp_path: Path) -> None:
    import os

    path = write_chain(tmp_path / "ca.pem", authority("old root").certificate)
    trust = WebPki("one.test", path)
    chain = leaf(ROOT, "one.test").chain
    with pytest.raises(HandshakeFailed):
        check_server(trust, chain)
    write_chain(path, ROOT.certificate)
    os.utime(path, ns=(1, 1))
    check_server(trust, chain)


def test_a_missing_ca_file_is_the_callers_fault(tmp_path: Path) -> None:
    with pytest.raises(LocalError, match="cannot read the CA file"):
        check_server(WebPki("one.test", tmp_path / "none.pem"), leaf(ROOT, "one.test").chain)


def test_the_public_roots_can_be_read() -> None:
    assert len(load_authorities(Path(certifi.where()))) > 100


@pytest.mark.parametrize(
    ("name", "sni"),
    [
        (None, None),
        ("one.test", "one.test"),
        ("One.Test.", "one.test"),
        ("bücher.test", "xn--bcher-kva.test"),
        ("192.0.2.1", None),
        ("2001:db8::1", None),
    ],
)
def test_sni(name: str | None, sni: str | None) -> None:
    assert sni_of(name) == sni


def test_alerts_have_names() -> None:
    assert alert_name(120) == "no_application_protocol"
    assert alert_name(200) == "alert 200"

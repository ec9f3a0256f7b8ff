"""Certificates: ours from a key, web ones from files, anyone's fingerprint."""

from __future__ import annotations

import datetime as dt
import hashlib
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import dsa, ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
)
from hypothesis import given
from hypothesis import strategies as st

from alknet.core.identity import NodeId
from alknet.core.tls.x509 import (
    certificate_untrusted,
    fingerprint_of_certificate,
    load_authorities,
    load_certificate_chain,
    load_certificate_key,
    node_certificate,
    node_id_of_certificate,
    self_signed_web_certificate,
)
from alknet.errors import LocalError, Malformed
from tests.core.tls.pki import INTERMEDIATE, ROOT, leaf, write_chain, write_key

KEY = ed25519.Ed25519PrivateKey.from_private_bytes(b"\1" * 32)
DER = node_certificate(KEY).public_bytes(Encoding.DER)


def test_the_nodes_certificate_is_a_function_of_its_key() -> None:
    # Peers may have stored it: it must not change with a version of this program or its libraries.
    digest = hashlib.sha256(DER).hexdigest()
    assert digest == "5c892679903440b290a887827d18da71fa9c4a9a92d76c4295a3ea8ea5ffca54"


def test_the_nodes_certificate_is_self_signed_and_never_expires() -> None:
    certificate = node_certificate(KEY)
    certificate.verify_directly_issued_by(certificate)
    assert certificate.serial_number == 1
    assert certificate.not_valid_before_utc.year == 1970
    assert certificate.not_valid_after_utc.year == 9999


def test_an_ed25519_certificate_names_its_node() -> None:
    node_id = NodeId.from_public_key(KEY.public_key())
    assert node_id_of_certificate(node_certificate(KEY)) == node_id
    assert fingerprint_of_certificate(node_certificate(KEY)) == node_id.fingerprint


def test_an_ed25519_certificate_of_an_authority_names_its_node_too() -> None:
    issued = leaf(ROOT, "one.test", key=KEY).chain[0]
    assert node_id_of_certificate(issued) == NodeId.from_public_key(KEY.public_key())


def test_another_certificate_has_the_fingerprint_of_its_bytes() -> None:
    certificate = leaf(ROOT, "one.test").chain[0]
    assert node_id_of_certificate(certificate) is None
    digest = hashlib.sha256(certificate.public_bytes(Encoding.DER)).hexdigest()
    assert fingerprint_of_certificate(certificate) == f"SHA256:{digest}"


def test_the_self_made_web_certificate_is_one_that_browsers_take_by_hash() -> None:
    now = dt.datetime(2030, 1, 1, tzinfo=dt.UTC)
    certificate, key = self_signed_web_certificate(("one.test",), clock=now.timestamp)
    assert certificate.not_valid_before_utc < now < certificate.not_valid_after_utc
    validity = certificate.not_valid_after_utc - certificate.not_valid_before_utc
    assert validity <= dt.timedelta(days=14)
    assert isinstance(key.curve, ec.SECP256R1)


@given(st.binary(max_size=400))
def test_any_bytes_are_a_certificate_or_malformed(data: bytes) -> None:
    with pytest.raises(Malformed):
        certificate_untrusted(data)


@given(st.integers(0, len(DER) - 1), st.integers(1, 255))
def test_a_damaged_certificate_is_malformed_or_still_has_a_fingerprint(at: int, flip: int) -> None:
    damaged = bytearray(DER)
    damaged[at] ^= flip
    try:
        certificate = certificate_untrusted(bytes(damaged))
    except Malformed:
        return
    assert fingerprint_of_certificate(certificate).startswith(("ed25519:", "SHA256:"))


def test_a_chain_is_read_in_order(tmp_path: Path) -> None:
    chain = (*leaf(INTERMEDIATE, "one.test").chain, ROOT.certificate)
    assert load_certificate_chain(write_chain(tmp_path / "chain.pem", *chain)) == chain


def test_authorities_that_cannot_be_parsed_are_passed_over(tmp_path: Path) -> None:
    path = write_chain(tmp_path / "ca.pem", ROOT.certificate)
    broken = b"-----BEGIN CERTIFICATE-----\nMAAA\n-----END CERTIFICATE-----\n"
    path.write_bytes(broken + b"a comment\n" + path.read_bytes())
    assert load_authorities(path) == [ROOT.certificate]


@pytest.mark.parametrize(
    "key",
    [KEY, ec.generate_private_key(ec.SECP384R1()), rsa.generate_private_key(65537, 2048)],
    ids=["ed25519", "ec", "rsa"],
)
def test_keys_of_three_kinds_are_read(
    key: ed25519.Ed25519PrivateKey | ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey, tmp_path: Path
) -> None:
    loaded = load_certificate_key(write_key(tmp_path / "key.pem", key))
    assert loaded.public_key() == key.public_key()


@pytest.mark.parametrize("load", [load_certificate_chain, load_certificate_key, load_authorities])
def test_a_file_that_is_missing_or_wrong_is_named(load: object, tmp_path: Path) -> None:
    assert callable(load)
    with pytest.raises(LocalError, match=r"missing\.pem: No such file"):
        load(tmp_path / "missing.pem")
    (tmp_path / "wrong.pem").write_text("hello")
    with pytest.raises(LocalError, match=r"wrong\.pem holds no PEM"):
        load(tmp_path / "wrong.pem")


def test_a_key_with_a_passphrase_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "key.pem"
    path.write_bytes(
        KEY.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(b"secret"))
    )
    with pytest.raises(LocalError, match="passphrase"):
        load_certificate_key(path)


def test_a_key_of_another_kind_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "key.pem"
    numbers = dsa.generate_private_key(1024)
    path.write_bytes(numbers.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    with pytest.raises(LocalError, match="neither EC, RSA nor Ed25519"):
        load_certificate_key(path)

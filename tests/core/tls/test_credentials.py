"""What a node shows, and that it shows no key by accident."""

from __future__ import annotations

from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from alknet.core.tls.credentials import NodeCredentials, WebCertificate
from alknet.errors import LocalError
from tests.core.tls.pki import ROOT, leaf, write_chain, write_key

KEY = Ed25519PrivateKey.from_private_bytes(b"\1" * 32)
EXACT = leaf(ROOT, "one.test")
WILD = leaf(ROOT, "*.one.test")
DEFAULT = leaf(ROOT, "default.test")
DAY_S = 86_400


def test_names_choose_the_certificate() -> None:
    node = NodeCredentials(KEY, {"One.Test": EXACT, "*.one.test": WILD}, DEFAULT)
    assert node.web_certificate("one.test") is EXACT
    assert node.web_certificate("ONE.test.") is EXACT
    assert node.web_certificate("a.one.test") is WILD
    assert node.web_certificate("a.b.one.test") is DEFAULT
    assert node.web_certificate("two.test") is DEFAULT
    assert node.web_certificate("test") is DEFAULT
    assert node.web_certificate(None) is DEFAULT
    assert node.configured_web_certificate("two.test") is None


def test_web_certificates_can_be_replaced() -> None:
    node = NodeCredentials(KEY, {"one.test": EXACT}, DEFAULT)
    node.set_web({"one.test": WILD})
    assert node.web_certificate("one.test") is WILD
    assert node.web_certificate("two.test") is not DEFAULT
    assert dict(node.web) == {"one.test": WILD}


def test_without_a_default_one_is_made_and_renewed_before_it_expires() -> None:
    now = 2_000_000_000.0
    node = NodeCredentials(KEY, clock=lambda: now)
    first = node.web_certificate(None)
    now += 11 * DAY_S
    assert node.web_certificate("any.test") is first
    now += 1 * DAY_S
    assert node.web_certificate(None) is not first


def test_repr_shows_no_key() -> None:
    seed = (b"\1" * 32).hex()
    node = NodeCredentials(KEY, {"one.test": EXACT})
    for text in (repr(node), repr(EXACT)):
        assert seed not in text
        assert "rivate" not in text
    assert node.node_id.short in repr(node)


def test_a_key_of_another_certificate_is_refused(tmp_path: Path) -> None:
    chain = write_chain(tmp_path / "chain.pem", *EXACT.chain)
    key = write_key(tmp_path / "key.pem", WILD.key)
    with pytest.raises(LocalError, match=r"chain\.pem and .*key\.pem: .*does not belong"):
        WebCertificate.load(chain, key)


def test_a_certificate_is_loaded_with_its_key(tmp_path: Path) -> None:
    chain = write_chain(tmp_path / "chain.pem", *EXACT.chain)
    loaded = WebCertificate.load(chain, write_key(tmp_path / "key.pem", EXACT.key))
    assert loaded.chain == EXACT.chain


def test_an_empty_chain_is_refused() -> None:
    with pytest.raises(LocalError, match="at least one"):
        WebCertificate((), EXACT.key)

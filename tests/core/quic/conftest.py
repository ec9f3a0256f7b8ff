"""A key for liars."""

from __future__ import annotations

import pytest
from aioquic import tls
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from tests.core.quic.sansio import Forger


@pytest.fixture
def forged(monkeypatch: pytest.MonkeyPatch) -> Forger:
    """A key that its holder does not hold; aioquic picks the signature algorithm by class."""
    original = tls.Context._signature_algorithms_for_private_key

    def algorithms(context: tls.Context) -> list[tls.SignatureAlgorithm]:
        key: object = context.certificate_private_key
        if isinstance(key, Forger):
            return [tls.SignatureAlgorithm.ED25519]
        return original(context)

    monkeypatch.setattr(tls.Context, "_signature_algorithms_for_private_key", algorithms)
    return Forger(Ed25519PrivateKey.generate(), Ed25519PrivateKey.generate())

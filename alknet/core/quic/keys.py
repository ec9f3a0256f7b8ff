"""The keys of TLS 1.3 (RFC 8446 sec. 7.1) and of QUIC's packets (RFC 9001 sec. 5), in fewer steps.

A handshake derives thirty secrets. aioquic makes objects for each: a label of three pieces, a KDF,
a hash that it copies. Here a derivation is two calls of a hash: no secret is longer than the hash,
so HKDF-Expand is its first block, one HMAC, which OpenSSL takes longer to set up than to compute.
The transcript is hashed once per message, not per question, and what does not depend on the peer
(the early secret, the salt made of it, the labels) is computed once per process.

tests/core/quic/test_keys.py compares all of it with aioquic's, and with the vectors of RFC 8448 and
RFC 9001.
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import NamedTuple

from aioquic import tls
from aioquic._crypto import AEAD, HeaderProtection
from aioquic.quic import crypto as aioquic_crypto
from aioquic.quic.crypto import CryptoContext
from aioquic.quic.packet import QuicProtocolVersion
from aioquic.tls import CipherSuite
from cryptography.hazmat.primitives import hashes

__all__ = ["KeySchedule", "PacketKeys", "expand_label", "initial_secrets", "packet_keys"]

# RFC 9001 sec. 5.1 and RFC 9369 sec. 3.3.2: key, IV, header protection.
_LABELS = (b"quic key", b"quic iv", b"quic hp")
_LABELS_V2 = (b"quicv2 key", b"quicv2 iv", b"quicv2 hp")
_IV_BYTES = 12
# HKDF-Expand's counter (RFC 5869 sec. 2.3): all that we expand fits the first block.
_FIRST_BLOCK = b"\x01"
# HMAC's pads (RFC 2104), as tables for `bytes.translate`.
_INNER = bytes(byte ^ 0x36 for byte in range(256))
_OUTER = bytes(byte ^ 0x5C for byte in range(256))


@dataclass(frozen=True, eq=False)
class _Hash:
    """A hash function, and what every key schedule on it begins with."""

    algorithm: hashes.HashAlgorithm
    new: Callable[..., hashlib._Hash]
    block_bytes: int
    digest_bytes: int
    zeros: bytes
    empty: bytes


def _hash(algorithm: hashes.HashAlgorithm, new: Callable[..., hashlib._Hash]) -> _Hash:
    size = algorithm.digest_size
    return _Hash(algorithm, new, new().block_size, size, bytes(size), new().digest())


class _Suite(NamedTuple):
    """A cipher suite: its hash, and what packets are sealed with."""

    hash: _Hash
    key_bytes: int
    header_cipher: bytes
    packet_cipher: bytes


_SHA256, _SHA384 = _hash(hashes.SHA256(), hashlib.sha256), _hash(hashes.SHA384(), hashlib.sha384)
_SUITES = {
    CipherSuite.AES_128_GCM_SHA256: _Suite(_SHA256, 16, b"aes-128-ecb", b"aes-128-gcm"),
    CipherSuite.AES_256_GCM_SHA384: _Suite(_SHA384, 32, b"aes-256-ecb", b"aes-256-gcm"),
    CipherSuite.CHACHA20_POLY1305_SHA256: _Suite(_SHA256, 32, b"chacha20", b"chacha20-poly1305"),
}


def expand_label(kind: _Hash, secret: bytes, label: bytes, context: bytes) -> bytes:
    """HKDF-Expand-Label (RFC 8446 sec. 7.1), as long as the hash."""
    return _mac(kind, secret, _info(label, context, kind.digest_bytes))


def _mac(kind: _Hash, key: bytes, message: bytes) -> bytes:
    """HMAC (RFC 2104); *key* is no longer than the hash's block."""
    padded = key.ljust(kind.block_bytes, b"\0")
    inner = kind.new(padded.translate(_INNER) + message).digest()
    return kind.new(padded.translate(_OUTER) + inner).digest()


def _macs(kind: _Hash, key: bytes, messages: Iterable[bytes]) -> list[bytes]:
    """Return the HMAC of each of *messages*; the key is hashed once."""
    padded = key.ljust(kind.block_bytes, b"\0")
    inner, outer = kind.new(padded.translate(_INNER)), kind.new(padded.translate(_OUTER))
    found = []
    for message in messages:
        inside, outside = inner.copy(), outer.copy()
        inside.update(message)
        outside.update(inside.digest())
        found.append(outside.digest())
    return found


def _info(label: bytes, context: bytes, length: int) -> bytes:
    return _head(label, length) + bytes((len(context),)) + context + _FIRST_BLOCK


@functools.lru_cache(maxsize=64)  # the protocols know some twenty
def _head(label: bytes, length: int) -> bytes:
    full = b"tls13 " + label
    return length.to_bytes(2) + bytes((len(full),)) + full


# packets


class PacketKeys(CryptoContext):
    """aioquic's keys of one direction, derived in fewer steps."""

    def setup(self, *, cipher_suite: CipherSuite, secret: bytes, version: int) -> None:
        """Derive key, IV and header protection from *secret*, as aioquic does."""
        suite = _SUITES[cipher_suite]
        key, iv, hp = packet_keys(cipher_suite, secret, version)
        self.aead = AEAD(suite.packet_cipher, key, iv)
        self.hp = HeaderProtection(suite.header_cipher, hp)
        self.cipher_suite = cipher_suite
        self.secret = secret
        self.version = version
        self._setup_cb("tls")


def packet_keys(suite: CipherSuite, secret: bytes, version: int) -> tuple[bytes, bytes, bytes]:
    """Return key, IV and header protection key (RFC 9001 sec. 5.1)."""
    kind, size, *_ = _SUITES[suite]
    key, iv, hp = _macs(kind, secret, _packet_infos(version, size))
    return key[:size], iv[:_IV_BYTES], hp[:size]


@functools.cache  # of two versions and two sizes
def _packet_infos(version: int, key_bytes: int) -> tuple[bytes, bytes, bytes]:
    key, iv, hp = _LABELS_V2 if version == QuicProtocolVersion.VERSION_2 else _LABELS
    return (
        _info(key, b"", key_bytes),
        _info(iv, b"", _IV_BYTES),
        _info(hp, b"", key_bytes),
    )


def initial_secrets(cid: bytes, version: int) -> tuple[bytes, bytes]:
    """Return the client's and the server's secret for Initial packets (RFC 9001 sec. 5.2)."""
    is_v2 = version == QuicProtocolVersion.VERSION_2
    salt = aioquic_crypto.INITIAL_SALT_VERSION_2 if is_v2 else aioquic_crypto.INITIAL_SALT_VERSION_1
    client, server = _macs(_SHA256, _mac(_SHA256, salt, cid), _INITIAL_INFOS)
    return client, server


_INITIAL_INFOS = _info(b"client in", b"", 32), _info(b"server in", b"", 32)


# the key schedule


@functools.cache
def _early(kind: _Hash) -> tuple[bytes, bytes]:
    """Return the early secret without a pre-shared key, and the salt that is made of it."""
    secret = _mac(kind, kind.zeros, kind.zeros)
    return secret, expand_label(kind, secret, b"derived", kind.empty)


class KeySchedule(tls.KeySchedule):
    """aioquic's key schedule, on `hashlib`."""

    def __init__(self, cipher_suite: CipherSuite) -> None:  # not the base's: it makes its hashes
        kind = _SUITES[cipher_suite].hash
        self.algorithm = kind.algorithm
        self.cipher_suite = cipher_suite
        self.generation = 0
        self.secret = kind.zeros
        self.hash_empty_value = kind.empty
        self._kind = kind
        self._transcript = kind.new()
        self._digest: bytes | None = kind.empty

    @property
    def transcript_hash(self) -> bytes:
        """The hash of all messages so far."""
        if self._digest is None:
            self._digest = self._transcript.digest()
        return self._digest

    def update_hash(self, data: bytes) -> None:
        """Add a message."""
        self._transcript.update(data)
        self._digest = None

    def certificate_verify_data(self, context_string: bytes) -> bytes:
        """What CertificateVerify signs (RFC 8446 sec. 4.4.3)."""
        return b" " * 64 + context_string + b"\x00" + self.transcript_hash

    def finished_verify_data(self, secret: bytes) -> bytes:
        """What Finished proves (sec. 4.4.4)."""
        key = expand_label(self._kind, secret, b"finished", b"")
        return _mac(self._kind, key, self.transcript_hash)

    def derive_secret(self, label: bytes) -> bytes:
        """Derive-Secret over the messages so far (sec. 7.1)."""
        return expand_label(self._kind, self.secret, label, self.transcript_hash)

    def extract(self, key_material: bytes | None = None) -> None:
        """Go on to the next stage, with a shared secret or without."""
        early, salt = _early(self._kind)
        if self.generation == 0:
            salt = self.secret
        elif self.secret != early:  # with a pre-shared key, or at the last stage
            salt = expand_label(self._kind, self.secret, b"derived", self._kind.empty)
        if self.generation == 0 and key_material is None:
            self.secret = early
        else:
            material = self._kind.zeros if key_material is None else key_material
            self.secret = _mac(self._kind, salt, material)
        self.generation += 1

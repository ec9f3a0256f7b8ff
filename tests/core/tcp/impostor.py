"""A TLS 1.3 peer that signs with whatever key it is told to: OpenSSL refuses to lie.

aioquic's handshake with a small record layer (TLS_AES_128_GCM_SHA256), enough to shake hands.
"""

from __future__ import annotations

import trio
from aioquic import tls
from aioquic._buffer import Buffer
from aioquic.tls import CipherSuite, Context, Direction, Epoch, hkdf_expand_label
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256

ALERT, HANDSHAKE, ENCRYPTED, CHANGE_CIPHER_SPEC = 21, 22, 23, 20
EPOCHS = (Epoch.INITIAL, Epoch.HANDSHAKE, Epoch.ONE_RTT)


class _Keys:
    def __init__(self, secret: bytes) -> None:
        self._aead = AESGCM(hkdf_expand_label(SHA256(), secret, b"key", b"", 16))
        self._iv = int.from_bytes(hkdf_expand_label(SHA256(), secret, b"iv", b"", 12))
        self._count = 0

    def _nonce(self) -> bytes:
        self._count += 1
        return (self._iv ^ (self._count - 1)).to_bytes(12)

    def seal(self, kind: int, data: bytes) -> bytes:
        header = bytes([ENCRYPTED, 3, 3]) + (len(data) + 17).to_bytes(2)
        return header + self._aead.encrypt(self._nonce(), data + bytes([kind]), header)

    def open(self, header: bytes, body: bytes) -> tuple[int, bytes]:
        plain = self._aead.decrypt(self._nonce(), body, header).rstrip(b"\0")
        return plain[-1], plain[:-1]


class Impostor:
    """Shows *certificate* and signs with *key*."""

    def __init__(
        self,
        stream: trio.abc.Stream,
        *,
        is_client: bool,
        alpn: str,
        certificate: x509.Certificate,
        key: Ed25519PrivateKey,
    ) -> None:
        self._stream = stream
        self._is_client = is_client
        self._received = bytearray()
        self._keys: dict[tuple[Direction, Epoch], _Keys] = {}
        context = self._context = Context(
            is_client=is_client,
            alpn_protocols=[alpn],
            cipher_suites=[CipherSuite.AES_128_GCM_SHA256],
            verify_mode=0,
        )
        context.certificate = certificate
        context.certificate_private_key = key
        context.update_traffic_key_cb = self._on_key

    async def shake_hands(self) -> int | None:
        """Return the alert that the other side sent, or None if our part of it is done."""
        done = tls.State.CLIENT_POST_HANDSHAKE, tls.State.SERVER_POST_HANDSHAKE
        if self._is_client:
            await self._handle(b"")
        while self._context.state not in done:
            kind, data = await self._read_record()
            if kind == ALERT:
                return data[1]
            if kind == HANDSHAKE:
                await self._handle(data)
        return None

    def _on_key(
        self, direction: Direction, epoch: Epoch, suite: CipherSuite, secret: bytes
    ) -> None:
        self._keys[direction, epoch] = _Keys(secret)

    async def _handle(self, data: bytes) -> None:
        out = {epoch: Buffer(capacity=16_384) for epoch in EPOCHS}
        self._context.handle_message(data, out)
        for epoch, buffer in out.items():
            if not buffer.data:
                continue
            if epoch is Epoch.INITIAL:
                header = bytes([HANDSHAKE, 3, 3]) + len(buffer.data).to_bytes(2)
                await self._stream.send_all(header + buffer.data)
            else:
                keys = self._keys[Direction.ENCRYPT, epoch]
                await self._stream.send_all(keys.seal(HANDSHAKE, buffer.data))

    async def _read_record(self) -> tuple[int, bytes]:
        header = await self._read(5)
        body = await self._read(int.from_bytes(header[3:5]))
        if header[0] == ENCRYPTED:
            return self._keys[Direction.DECRYPT, Epoch.HANDSHAKE].open(header, body)
        return header[0], body

    async def _read(self, size: int) -> bytes:
        while len(self._received) < size:
            data = await self._stream.receive_some()
            assert data, "the other side closed without an alert"
            self._received += data
        taken = bytes(self._received[:size])
        del self._received[:size]
        return taken

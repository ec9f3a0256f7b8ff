"""Encrypting 1-RTT packets (RFC 9001 sec. 5) without a copy to hide three of their bytes."""

from __future__ import annotations

from aioquic.quic.crypto import CryptoPair

__all__ = ["TAG_BYTES", "Sealer"]

TAG_BYTES = 16
NONCE_BYTES = 12
NUMBER_BYTES = 2
FIXED_BIT, SPIN_BIT, PHASE_SHIFT = 0x40, 0x20, 2
# Of the first byte, what header protection hides in a short header.
HIDDEN_BITS = 0x1F


class Sealer:
    """For one key and one destination connection ID; made anew when one of them changes."""

    __slots__ = (
        "_encrypt",
        "_header",
        "_iv",
        "_mask",
        "_shift",
        "_spinning",
        "_still",
        "aead",
        "cid",
        "header_bytes",
    )

    def __init__(self, crypto: CryptoPair, cid: bytes) -> None:
        send = crypto.send
        assert send.aead is not None
        assert send.hp is not None
        self.cid = cid
        self.aead = send.aead
        self._encrypt = send.aead._aead.encrypt
        self._iv = send.aead._iv
        # AES takes the sample as it is; ChaCha20 takes it for a nonce.
        self._mask = send.hp._mask if send.hp._is_chacha20 else send.hp._encryptor.update
        self.header_bytes = 1 + len(cid) + NUMBER_BYTES
        self._shift = 8 * (self.header_bytes - 1)
        first = FIXED_BIT | crypto.key_phase << PHASE_SHIFT | NUMBER_BYTES - 1
        self._still = first << self._shift | int.from_bytes(cid) << 8 * NUMBER_BYTES
        self._spinning = self._still | SPIN_BIT << self._shift
        self._header = self._still

    def spin(self, spin_bit: bool) -> None:
        """Set the spin bit of what is sealed from now on (RFC 9000 sec. 17.4)."""
        self._header = self._spinning if spin_bit else self._still

    def seal(self, number: int, frames: bytes) -> bytes:
        """Return the datagram of packet *number* with *frames*, at least 2 bytes."""
        header = self._header | number & 0xFFFF
        size = self.header_bytes
        sealed = self._encrypt(
            (self._iv ^ number).to_bytes(NONCE_BYTES), frames, header.to_bytes(size)
        )
        # The sample begins 4 bytes after the number's first (RFC 9001 sec. 5.4.2).
        mask = self._mask(sealed[2:18])
        hidden = (mask[0] & HIDDEN_BITS) << self._shift | mask[1] << 8 | mask[2]
        return (header ^ hidden).to_bytes(size) + sealed

"""The SSH agent protocol, sans-IO, as far as a read-only agent of Ed25519 keys needs it.

::

    u32 length | u8 type | contents        strings: u32 length | bytes; integers big-endian

A client sends one request at a time and each gets one answer, in order. Two requests are
understood: the list of keys, and a signature. All others (adding and removing keys, locking with a
passphrase, smart cards, extensions) are answered with SSH_AGENT_FAILURE, as the protocol says of
what an agent does not support: keys come from the vault alone, and the vault is what is locked.

Source: draft-ietf-sshm-ssh-agent; the key and signature formats are those of RFC 8709.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence

import msgspec

from alknet.errors import Malformed

__all__ = [
    "FAILURE",
    "MAX_MESSAGE_BYTES",
    "AgentKey",
    "ListKeys",
    "MessageDecoder",
    "Request",
    "Sign",
    "Unsupported",
    "decode_request_untrusted",
    "encode_keys",
    "encode_signature",
]

SSH_AGENT_FAILURE = 5
SSH_AGENTC_REQUEST_IDENTITIES = 11
SSH_AGENT_IDENTITIES_ANSWER = 12
SSH_AGENTC_SIGN_REQUEST = 13
SSH_AGENT_SIGN_RESPONSE = 14

SSH_AGENT_RSA_SHA2_256, SSH_AGENT_RSA_SHA2_512 = 2, 4
# They say how to sign with RSA and nothing to an Ed25519 key; any other flag wants what we cannot.
IGNORED_FLAGS = SSH_AGENT_RSA_SHA2_256 | SSH_AGENT_RSA_SHA2_512

# What OpenSSH's agent takes at most (AGENT_MAX_LEN).
MAX_MESSAGE_BYTES = 256 * 1024
KEY_TYPE = b"ssh-ed25519"
PUBLIC_KEY_BYTES = 32
_U32 = struct.Struct(">I")


class AgentKey(msgspec.Struct, frozen=True):
    """A key that the agent signs with.

    Attributes:
        public_key: Ed25519, 32 bytes.
        comment: For people.
    """

    public_key: bytes
    comment: str


class ListKeys(msgspec.Struct, frozen=True):
    """SSH_AGENTC_REQUEST_IDENTITIES."""


class Sign(msgspec.Struct, frozen=True):
    """SSH_AGENTC_SIGN_REQUEST, with flags that matter to no Ed25519 key left out.

    Attributes:
        public_key: Of the key to sign with, 32 bytes; None if it is of another kind.
        data: What to sign.
    """

    public_key: bytes | None
    data: bytes


class Unsupported(msgspec.Struct, frozen=True):
    """Any other request."""

    type: int


Request = ListKeys | Sign | Unsupported


class MessageDecoder:
    """Cuts a stream into messages; holds one at most, and what of the next came with it."""

    def __init__(self) -> None:
        self._buffer = bytearray()

    def receive_data_untrusted(self, data: bytes) -> None:
        """Take bytes as they come.

        Raises:
            Malformed: A message is empty, or longer than 256 KiB.
        """
        self._buffer += data
        self._length()

    def next_message(self) -> bytes | None:
        """Return the next whole message without its length, or None.

        Raises:
            Malformed: The one after it is empty, or too long.
        """
        length = self._length()
        if length is None or len(self._buffer) < _U32.size + length:
            return None
        message = bytes(self._buffer[_U32.size : _U32.size + length])
        del self._buffer[: _U32.size + length]
        return message

    def _length(self) -> int | None:
        if len(self._buffer) < _U32.size:
            return None
        (length,) = _U32.unpack_from(self._buffer)
        if not 0 < length <= MAX_MESSAGE_BYTES:
            raise Malformed(f"an agent message of {length} bytes")
        return int(length)


def decode_request_untrusted(message: bytes) -> Request:
    """Read a message, which is not empty.

    Raises:
        Malformed: It is of a known type, and is cut short or has something after its end.
    """
    if message[0] == SSH_AGENTC_REQUEST_IDENTITIES:
        if len(message) > 1:
            raise Malformed("a request for keys has contents")
        return ListKeys()
    if message[0] != SSH_AGENTC_SIGN_REQUEST:
        return Unsupported(message[0])
    blob, at = _string_untrusted(message, 1)
    data, at = _string_untrusted(message, at)
    if len(message) != at + _U32.size:
        raise Malformed("a request to sign has a wrong length")
    (flags,) = _U32.unpack_from(message, at)
    if flags & ~IGNORED_FLAGS:
        return Unsupported(message[0])
    return Sign(_public_key_untrusted(blob), data)


def encode_keys(keys: Sequence[AgentKey]) -> bytes:
    """Return SSH_AGENT_IDENTITIES_ANSWER."""
    parts = [bytes([SSH_AGENT_IDENTITIES_ANSWER]), _U32.pack(len(keys))]
    for key in keys:
        parts += [_string(_blob(key.public_key)), _string(key.comment.encode())]
    return _message(b"".join(parts))


def encode_signature(signature: bytes) -> bytes:
    """Return SSH_AGENT_SIGN_RESPONSE for the 64 bytes of a signature."""
    encoded = _string(KEY_TYPE) + _string(signature)
    return _message(bytes([SSH_AGENT_SIGN_RESPONSE]) + _string(encoded))


def _message(contents: bytes) -> bytes:
    return _U32.pack(len(contents)) + contents


FAILURE = _message(bytes([SSH_AGENT_FAILURE]))
"""The answer to what cannot be done, for whatever reason."""


def _blob(public_key: bytes) -> bytes:
    return _string(KEY_TYPE) + _string(public_key)


def _public_key_untrusted(blob: bytes) -> bytes | None:
    """Return the key of a blob, None if its kind is another (which is no fault of the client)."""
    kind, at = _string_untrusted(blob, 0)
    if kind != KEY_TYPE:
        return None
    key, end = _string_untrusted(blob, at)
    if len(key) != PUBLIC_KEY_BYTES or end != len(blob):
        raise Malformed("an Ed25519 key has a wrong length")
    return key


def _string(data: bytes) -> bytes:
    return _U32.pack(len(data)) + data


def _string_untrusted(data: bytes, at: int) -> tuple[bytes, int]:
    """Return the string at a place, and where it ends."""
    start = at + _U32.size
    if len(data) < start:
        raise Malformed("an agent message is cut short")
    end = start + int(_U32.unpack_from(data, at)[0])
    if len(data) < end:
        raise Malformed("an agent message is cut short")
    return data[start:end], end

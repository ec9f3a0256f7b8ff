r"""The vault's file, sans-IO: a header that anyone may read, and an index that nobody may.

::

    "alknet vault 1\n" | u32 header length | header | nonce (12) | encrypted index | tag (16)

Integers are big-endian. The header is JSON, the index MessagePack under AES-256-GCM with all bytes
before the nonce as associated data: a slot, the generation or a version that was altered makes
the index unreadable. The index holds names and sealed secrets; each secret is encrypted once more
by a key of its own (`envelope`), so that reading names opens none.

A file of a later format version is refused by name; fields may be added to version 1 only with a
default, so that older programs refuse what they do not know instead of losing it.
"""

from __future__ import annotations

import struct
from typing import Annotated, TypeVar

import msgspec
from msgspec import Meta

from alknet.errors import Malformed
from alknet.vault.envelope import FIRST_KEK, MAX_KEK, Sealed
from alknet.vault.slots import Slot

__all__ = [
    "MAX_KEY_VERSIONS",
    "Container",
    "Header",
    "Index",
    "Secret",
    "SecretVersion",
    "decode_container_untrusted",
    "decode_index_untrusted",
    "encode_header",
    "encode_index",
]

MAGIC_PREFIX = b"alknet vault "
MAGIC = MAGIC_PREFIX + b"1\n"
_LENGTH = struct.Struct(">I")
# 32 slots with age files of 16 KiB would fit.
MAX_HEADER_BYTES = 1024 * 1024
MAX_SLOTS = 32
# All versions in use are derived at each unlock, and every secret is under one of them; with a
# rotation a month they last for eight years, then 'rewrap --retire' makes room.
MAX_KEY_VERSIONS = 100
# Everything is read at once: 64 MiB hold a hundred thousand tokens.
MAX_VAULT_BYTES = 64 * 1024 * 1024

T = TypeVar("T")


class Header(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What is needed to unlock.

    Attributes:
        vault_id: 16 random bytes.
        generation: Grows by one with each write.
        kek_version: The key version that new secrets and the index are under.
        min_kek_version: Secrets under older ones cannot be opened any more.
        created_at: POSIX seconds.
        device: The number of the node's identity key below the words.
        public_key: Of the node's identity, 32 bytes, so that a locked vault can say whose it is;
            empty if it is no node's.
    """

    vault_id: Annotated[bytes, Meta(min_length=16, max_length=16)]
    generation: Annotated[int, Meta(ge=1)]
    kek_version: Annotated[int, Meta(ge=FIRST_KEK, le=MAX_KEK)]
    min_kek_version: Annotated[int, Meta(ge=FIRST_KEK)]
    created_at: float
    slots: Annotated[tuple[Slot, ...], Meta(max_length=MAX_SLOTS)]
    device: Annotated[int, Meta(ge=0, le=2**31 - 1)] = 0
    public_key: Annotated[bytes, Meta(max_length=32)] = b""


class SecretVersion(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """One value that a secret had; ``sealed`` is None once it was destroyed."""

    version: int
    created_at: float
    sealed: Sealed | None


class Secret(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A named secret and its versions, the newest last.

    Attributes:
        expires_at: POSIX seconds after which it is not handed out, None for never.
    """

    versions: tuple[SecretVersion, ...]
    expires_at: float | None = None


class Index(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """All secrets by path."""

    secrets: dict[str, Secret]


class Container(msgspec.Struct, frozen=True):
    """A file taken apart.

    Attributes:
        authenticated: The bytes that the index's tag covers beside the index.
        encrypted_index: Nonce, ciphertext and tag.
    """

    header: Header
    authenticated: bytes
    encrypted_index: bytes


def encode_header(header: Header) -> bytes:
    """Return the file up to the index; followed by the encrypted index it is the whole file."""
    data = msgspec.json.encode(header)
    return MAGIC + _LENGTH.pack(len(data)) + data


def encode_index(index: Index) -> bytes:
    """Return the index before encryption."""
    return msgspec.msgpack.encode(index)


def decode_container_untrusted(data: bytes) -> Container:
    """Take a file apart; nothing of it is proven until its index was decrypted.

    Raises:
        Malformed: It is no vault, of a later version, or cut short.
    """
    if not data.startswith(MAGIC):
        raise Malformed(_not_ours(data))
    start = len(MAGIC) + _LENGTH.size
    if len(data) < start:
        raise Malformed("the file is cut short")
    (length,) = _LENGTH.unpack_from(data, len(MAGIC))
    if length > MAX_HEADER_BYTES:
        raise Malformed("the file's header is too long")
    end = start + length
    if len(data) <= end:
        raise Malformed("the file is cut short")
    header = _decoded(msgspec.json.Decoder(Header), data[start:end], "header")
    _check_versions(header)
    return Container(header, data[:end], data[end:])


def decode_index_untrusted(data: bytes | memoryview) -> Index:
    """Read a decrypted index.

    Raises:
        Malformed: It is something else.
    """
    return _decoded(msgspec.msgpack.Decoder(Index), data, "index")


def _check_versions(header: Header) -> None:
    # The header is not proven yet, and whatever it says would be derived.
    if not 0 <= header.kek_version - header.min_kek_version < MAX_KEY_VERSIONS:
        raise Malformed("the file's header is damaged: its key versions make no sense")


def _decoded(
    decoder: msgspec.json.Decoder[T] | msgspec.msgpack.Decoder[T],
    data: bytes | memoryview,
    what: str,
) -> T:
    try:
        return decoder.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as exc:
        raise Malformed(f"the file's {what} is damaged: {exc}") from exc


def _not_ours(data: bytes) -> str:
    if data.startswith(MAGIC_PREFIX):
        version = data[len(MAGIC_PREFIX) :].partition(b"\n")[0][:8].decode("ascii", "replace")
        return f"the file has format version {version}: this program knows version 1"
    return "the file is no vault"

"""The operations ``vault/…``: for the node's owner, who reaches them over the control socket.

Binary values are base64 in JSON. No private key is in any answer. What a handler of this node
needs it gets from its context, not from here.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator, Sequence
from typing import Annotated, Any

import msgspec
from msgspec import Meta

from alknet.call.operations import Operation, operation, scopes
from alknet.core.vault_service import VaultService, verify
from alknet.vault.container import Header
from alknet.vault.locked import LockedBuffer
from alknet.vault.roles import KeyRole
from alknet.vault.vault import SecretInfo, Vault

__all__ = ["VAULT_SCOPE", "vault_operations"]

VAULT_SCOPE = "vault:use"
"""Reserved, like all that begin with ``vault:``: no ``*`` gives it; the owner needs none."""

DATA_KEY_BYTES = 32
Index = Annotated[int, Meta(ge=0, le=2**31 - 1)]
Version = Annotated[int, Meta(ge=0)]


class SlotView(msgspec.Struct, frozen=True):
    """A way to unlock: what is not secret of it."""

    id: str
    kind: str
    label: str
    created_at: float


class VaultStatus(msgspec.Struct, frozen=True):
    """What anyone at this machine may know of the vault."""

    vault_id: str
    unlocked: bool
    generation: int
    kek_version: int
    min_kek_version: int
    slots: list[SlotView]


class PipeInput(msgspec.Struct, frozen=True):
    """The name of a pipe in the node's home that brings the vault's entropy, 32 bytes."""

    pipe: Annotated[str, Meta(pattern=r"^unlock\.[0-9a-f]{16}$")]


class PutInput(msgspec.Struct, frozen=True):
    """A value for a path; ``expect`` is the version that must be the newest, 0 for none."""

    path: str
    value: bytes
    expect: Version | None = None
    expires_at: float | None = None


class PathInput(msgspec.Struct, frozen=True):
    """A secret, or one version of it."""

    path: str
    version: Annotated[int, Meta(ge=1)] | None = None


class PrefixInput(msgspec.Struct, frozen=True):
    """What the paths begin with."""

    prefix: str = ""


class RewrapInput(msgspec.Struct, frozen=True):
    """Whether to refuse older key versions from now on."""

    retire: bool = False


class SlotInput(msgspec.Struct, frozen=True):
    """A slot's id."""

    id: str


class SignInput(msgspec.Struct, frozen=True):
    """What to sign, for what purpose, with which key."""

    purpose: str
    data: bytes
    key: Index = 0


class VerifyInput(msgspec.Struct, frozen=True):
    """A signature to check; without a public key, against this vault's key of that number."""

    purpose: str
    data: bytes
    signature: bytes
    public_key: bytes | None = None
    key: Index = 0


class DeriveInput(msgspec.Struct, frozen=True):
    """Whose public key is wanted."""

    role: KeyRole
    index: Index = 0


class NamedValue(msgspec.Struct, frozen=True):
    """A value and the name that it is sealed under."""

    name: str
    value: bytes


class NamedText(msgspec.Struct, frozen=True):
    """A sealed value, ``alkv1:…``, and the name that it was sealed under."""

    name: str
    sealed: str


class NameInput(msgspec.Struct, frozen=True):
    """The name that a data key is sealed under."""

    name: str


class ExchangeInput(msgspec.Struct, frozen=True):
    """The other side's X25519 public key."""

    public_key: bytes
    key: Index = 0


class Value(msgspec.Struct, frozen=True):
    """Bytes, in base64."""

    value: bytes


class SealedText(msgspec.Struct, frozen=True):
    """A sealed value that may be kept anywhere."""

    sealed: str


class DataKey(msgspec.Struct, frozen=True):
    """A new random key of 32 bytes, and the same sealed."""

    value: bytes
    sealed: str


class VersionMade(msgspec.Struct, frozen=True):
    """The number of the version that was made."""

    version: int


class Count(msgspec.Struct, frozen=True):
    """How many were changed."""

    count: int


class Verdict(msgspec.Struct, frozen=True):
    """Whether a signature is good."""

    valid: bool


class SecretList(msgspec.Struct, frozen=True):
    """What may be shown of secrets."""

    secrets: list[SecretInfo]


class Failures(msgspec.Struct, frozen=True):
    """The values that do not open, ``path@version``."""

    damaged: list[str]


AnyOperation = Operation[..., Any]


def vault_operations(
    service: VaultService,
    *,
    receive_entropy: Callable[[str], Awaitable[LockedBuffer]],
) -> Sequence[AnyOperation]:
    """Return the operations of a vault, to be registered with ``builtin=True``.

    Args:
        receive_entropy: Reads the pipe of that name in the node's home.
    """
    return (
        *_lock_operations(service, receive_entropy),
        *_secret_operations(service),
        *_sealing_operations(service),
        *_key_operations(service),
    )


def _lock_operations(
    service: VaultService, receive_entropy: Callable[[str], Awaitable[LockedBuffer]]
) -> Iterator[AnyOperation]:
    owner = scopes(VAULT_SCOPE)

    @operation("vault/status", access=owner)
    async def status() -> VaultStatus:
        """Say whether the vault is unlocked, and how it can be."""
        return _status(service)

    @operation("vault/unlock", access=owner)
    async def unlock(sent: PipeInput) -> VaultStatus:
        """Unlock with entropy that comes through a pipe in the node's home, never in JSON."""
        entropy = await receive_entropy(sent.pipe)
        await service.unlock(lambda _: entropy)
        return _status(service)

    @operation("vault/lock", access=owner)
    async def lock() -> VaultStatus:
        """Wipe all keys and secrets; the node's identity goes on."""
        await service.lock()
        return _status(service)

    @operation("vault/slots/remove", access=owner)
    async def remove_slot(sent: SlotInput) -> VaultStatus:
        """Remove a way to unlock."""
        await service.use(Vault.remove_slot, sent.id)
        return _status(service)

    yield from (status, unlock, lock, remove_slot)


def _secret_operations(service: VaultService) -> Iterator[AnyOperation]:
    owner = scopes(VAULT_SCOPE)

    @operation("vault/put", access=owner)
    async def put(sent: PutInput) -> VersionMade:
        """Store a new version of a secret."""
        version = await service.put(
            sent.path, sent.value, expect=sent.expect, expires_at=sent.expires_at
        )
        return VersionMade(version)

    @operation("vault/get", access=owner)
    async def get(sent: PathInput) -> Value:
        """Return a secret's value."""
        with await service.get(sent.path, version=sent.version) as value:
            return Value(bytes(value.view))

    @operation("vault/list", access=owner)
    async def list_secrets(sent: PrefixInput) -> SecretList:
        """List secrets without their values."""
        return SecretList(await service.use(lambda vault: list(vault.secrets(sent.prefix))))

    @operation("vault/remove", access=owner)
    async def remove(sent: PathInput) -> VersionMade:
        """Forget a secret, or destroy one version; answers with that version, or 0 for all."""
        await service.use(Vault.remove, sent.path, version=sent.version)
        return VersionMade(sent.version or 0)

    @operation("vault/check", access=owner)
    async def check() -> Failures:
        """Open every value of every secret and name those that fail."""
        return Failures(await service.use(Vault.verify))

    yield from (put, get, list_secrets, remove, check)


def _sealing_operations(service: VaultService) -> Iterator[AnyOperation]:
    owner = scopes(VAULT_SCOPE)

    @operation("vault/encrypt", access=owner)
    async def encrypt(sent: NamedValue) -> SealedText:
        """Seal a value that somebody else keeps."""
        return SealedText(await service.use(Vault.encrypt, sent.name, sent.value))

    @operation("vault/decrypt", access=owner)
    async def decrypt(sent: NamedText) -> Value:
        """Open a sealed value."""
        with await service.use(Vault.decrypt, sent.name, sent.sealed) as value:
            return Value(bytes(value.view))

    @operation("vault/rewrap-sealed", access=owner)
    async def rewrap_sealed(sent: NamedText) -> SealedText:
        """Put a sealed value under the newest key version; its content does not appear."""
        return SealedText(await service.use(Vault.rewrap_text, sent.name, sent.sealed))

    @operation("vault/datakey", access=owner)
    async def datakey(sent: NameInput) -> DataKey:
        """Make a key for encrypting bulk elsewhere, and seal it for keeping."""
        with LockedBuffer.random(DATA_KEY_BYTES) as key:
            sealed = await service.use(Vault.encrypt, sent.name, key.view)
            return DataKey(bytes(key.view), sealed)

    @operation("vault/rotate", access=owner)
    async def rotate() -> VersionMade:
        """Begin a new key version for what is written from now on."""
        return VersionMade(await service.use(Vault.rotate))

    @operation("vault/rewrap", access=owner)
    async def rewrap(sent: RewrapInput) -> Count:
        """Put every secret of the vault under the newest key version."""
        return Count(await service.use(Vault.rewrap, retire=sent.retire))

    yield from (encrypt, decrypt, rewrap_sealed, datakey, rotate, rewrap)


def _key_operations(service: VaultService) -> Iterator[AnyOperation]:
    owner = scopes(VAULT_SCOPE)

    @operation("vault/derive", access=owner)
    async def derive(sent: DeriveInput) -> Value:
        """Return a public key; the private one stays."""
        return Value(await service.public_key(sent.role, sent.index))

    @operation("vault/sign", access=owner)
    async def sign(sent: SignInput) -> Value:
        """Sign data for a purpose, never with the identity or a host key."""
        return Value(await service.sign(sent.purpose, sent.data, index=sent.key))

    @operation("vault/verify", access=owner)
    async def verify_signature(sent: VerifyInput) -> Verdict:
        """Check a signature that 'vault/sign' made, here or elsewhere."""
        public = sent.public_key or await service.public_key(KeyRole.SIGNING, sent.key)
        return Verdict(verify(public, sent.purpose, sent.data, sent.signature))

    @operation("vault/hmac", access=owner)
    async def hmac(sent: SignInput) -> Value:
        """Return HMAC-SHA256 of data under a key of this vault, for a purpose."""
        return Value(await service.hmac(sent.purpose, sent.data, index=sent.key))

    @operation("vault/x25519", access=owner)
    async def x25519(sent: ExchangeInput) -> Value:
        """Return the secret that this vault's key shares with another's."""
        return Value(await service.x25519(sent.public_key, index=sent.key))

    yield from (derive, sign, verify_signature, hmac, x25519)


def _status(service: VaultService) -> VaultStatus:
    header: Header = service.header
    return VaultStatus(
        vault_id=header.vault_id.hex(),
        unlocked=service.is_unlocked,
        generation=header.generation,
        kek_version=header.kek_version,
        min_kek_version=header.min_kek_version,
        slots=[
            SlotView(slot.id, slot.kind.value, slot.label, slot.created_at) for slot in header.slots
        ],
    )

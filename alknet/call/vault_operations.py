"""The operations ``vault/…``: for the node's owner, who reaches them over the control socket.

Binary values are base64 in JSON. No private key is in any answer. What a handler of this node
needs it gets from its context, not from here.
"""

from __future__ import annotations

import functools
from collections.abc import Awaitable, Callable, Iterator, Sequence
from typing import Annotated, Any, ParamSpec, TypeVar

import msgspec
from msgspec import Meta

from alknet.call.codes import ErrorCode
from alknet.call.operations import Operation, operation, scopes
from alknet.call.spec import ErrorSpec, OperationError
from alknet.core.vault_service import VaultService, verify
from alknet.errors import LocalError, Malformed, NotFound, StoreError
from alknet.vault.container import Header
from alknet.vault.envelope import Damaged, sealed_from_text_untrusted
from alknet.vault.locked import LockedBuffer
from alknet.vault.roles import KeyRole
from alknet.vault.vault import SecretInfo, Vault
from alknet.vault.vaultfile import RolledBack

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
    """The name of a pipe in the node's home that brings the vault's entropy, 32 bytes.

    ``by`` is for the audit log: the kind of the slot that it came from, or ``words``.
    """

    pipe: Annotated[str, Meta(pattern=r"^unlock\.[0-9a-f]{16}$")]
    by: Annotated[str, Meta(pattern=r"^[a-z-]{1,16}$")] | None = None


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


class SshSignInput(msgspec.Struct, frozen=True):
    """What to sign, with which of the SSH user keys."""

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
P = ParamSpec("P")
R = TypeVar("R")

RewrapStored = Callable[[Callable[[str, str], Awaitable[str]]], Awaitable[int]]
"""Stores anew what it gets for each name and sealed text, and returns how many have changed."""

ERRORS = (
    ErrorSpec("DAMAGED", "What was to be opened was altered, or is under another key."),
    ErrorSpec("ROLLED_BACK", "The vault's file is older than one that was in use here."),
    ErrorSpec("STORE", "The vault's file can be neither read nor written."),
)


def vault_operations(
    service: VaultService,
    *,
    receive_entropy: Callable[[str], Awaitable[LockedBuffer]],
    rewrap_stored: RewrapStored,
) -> Sequence[AnyOperation]:
    """Return the operations of a vault, to be registered with ``builtin=True``.

    Args:
        receive_entropy: Reads the pipe of that name in the node's home.
        rewrap_stored: Puts what the node's store keeps sealed under the newest key, before
            older keys are retired.
    """
    return (
        *_lock_operations(service, receive_entropy),
        *_secret_operations(service),
        *_sealing_operations(service, rewrap_stored),
        *_key_operations(service),
    )


def _owned(
    name: str, *, mutation: bool = False
) -> Callable[[Callable[P, Awaitable[R]]], AnyOperation]:
    """Make an operation for the owner that says what the vault says."""

    def decorate(function: Callable[P, Awaitable[R]]) -> AnyOperation:
        @functools.wraps(function)
        async def run(*args: P.args, **kwargs: P.kwargs) -> R:
            try:
                return await function(*args, **kwargs)
            except (LocalError, Malformed, StoreError) as exc:
                raise OperationError(_code(exc), str(exc)) from exc

        return operation(name, access=scopes(VAULT_SCOPE), mutation=mutation, errors=ERRORS)(run)

    return decorate


def _code(exc: Exception) -> str:
    for kind, code in ((Damaged, "DAMAGED"), (RolledBack, "ROLLED_BACK"), (StoreError, "STORE")):
        if isinstance(exc, kind):
            return code
    return ErrorCode.INVALID_INPUT


def _lock_operations(
    service: VaultService, receive_entropy: Callable[[str], Awaitable[LockedBuffer]]
) -> Iterator[AnyOperation]:
    @_owned("vault/status")
    async def status() -> VaultStatus:
        """Say whether the vault is unlocked, and how it can be."""
        await service.reread()
        return _status(service)

    @_owned("vault/unlock", mutation=True)
    async def unlock(sent: PipeInput) -> VaultStatus:
        """Unlock with entropy that comes through a pipe in the node's home, never in JSON."""
        entropy = await receive_entropy(sent.pipe)
        await service.unlock(lambda _: entropy)
        return _status(service)

    @_owned("vault/lock", mutation=True)
    async def lock() -> VaultStatus:
        """Wipe all keys and secrets; the node's identity goes on."""
        await service.lock()
        return _status(service)

    @_owned("vault/slots/remove", mutation=True)
    async def remove_slot(sent: SlotInput) -> VaultStatus:
        """Remove a way to unlock."""
        await service.use(Vault.remove_slot, sent.id)
        return _status(service)

    yield from (status, unlock, lock, remove_slot)


def _secret_operations(service: VaultService) -> Iterator[AnyOperation]:
    @_owned("vault/put", mutation=True)
    async def put(sent: PutInput) -> VersionMade:
        """Store a new version of a secret."""
        version = await service.put(
            sent.path, sent.value, expect=sent.expect, expires_at=sent.expires_at
        )
        return VersionMade(version)

    @_owned("vault/get")
    async def get(sent: PathInput) -> Value:
        """Return a secret's value."""
        with await service.get(sent.path, version=sent.version) as value:
            return Value(bytes(value.view))

    @_owned("vault/list")
    async def list_secrets(sent: PrefixInput) -> SecretList:
        """List secrets without their values."""
        return SecretList(await service.use(lambda vault: list(vault.secrets(sent.prefix))))

    @_owned("vault/remove", mutation=True)
    async def remove(sent: PathInput) -> VersionMade:
        """Forget a secret, or destroy one version; answers with that version, or 0 for all."""
        await service.use(Vault.remove, sent.path, version=sent.version)
        return VersionMade(sent.version or 0)

    @_owned("vault/check")
    async def check() -> Failures:
        """Open every value of every secret and name those that fail."""
        return Failures(await service.use(Vault.verify))

    yield from (put, get, list_secrets, remove, check)


def _sealing_operations(
    service: VaultService, rewrap_stored: RewrapStored
) -> Iterator[AnyOperation]:
    @_owned("vault/encrypt")
    async def encrypt(sent: NamedValue) -> SealedText:
        """Seal a value that somebody else keeps."""
        return SealedText(await service.use(Vault.encrypt, sent.name, sent.value))

    @_owned("vault/decrypt")
    async def decrypt(sent: NamedText) -> Value:
        """Open a sealed value."""
        with await service.use(Vault.decrypt, sent.name, sent.sealed) as value:
            return Value(bytes(value.view))

    @_owned("vault/rewrap-sealed")
    async def rewrap_sealed(sent: NamedText) -> SealedText:
        """Put a sealed value under the newest key version; its content does not appear."""
        return SealedText(await service.use(Vault.rewrap_text, sent.name, sent.sealed))

    @_owned("vault/datakey")
    async def datakey(sent: NameInput) -> DataKey:
        """Make a key for encrypting bulk elsewhere, and seal it for keeping."""
        with LockedBuffer.random(DATA_KEY_BYTES) as key:
            sealed = await service.use(Vault.encrypt, sent.name, key.view)
            return DataKey(bytes(key.view), sealed)

    @_owned("vault/rotate", mutation=True)
    async def rotate() -> VersionMade:
        """Begin a new key version for what is written from now on."""
        return VersionMade(await service.use(Vault.rotate))

    @_owned("vault/rewrap", mutation=True)
    async def rewrap(sent: RewrapInput) -> Count:
        """Put every secret of the vault, and of the store, under the newest key version."""
        count, newest = await service.use(_rewrapped)
        count += await rewrap_stored(functools.partial(_sealed_anew, service))
        if sent.retire:
            await service.use(Vault.rewrap, retire=True, keep_from=newest)
        return Count(count)

    yield from (encrypt, decrypt, rewrap_sealed, datakey, rotate, rewrap)


def _rewrapped(vault: Vault) -> tuple[int, int]:
    """Rewrap; return how many secrets were moved, and to which key version."""
    count = vault.rewrap()
    return count, vault.header.kek_version


async def _sealed_anew(service: VaultService, name: str, sealed: str) -> str:
    try:
        if sealed_from_text_untrusted(sealed).kek_version == service.header.kek_version:
            return sealed
        return await service.use(Vault.rewrap_text, name, sealed)
    except (Damaged, Malformed, NotFound):  # of another node, whose store it is, too
        return sealed


def _key_operations(service: VaultService) -> Iterator[AnyOperation]:
    @_owned("vault/derive")
    async def derive(sent: DeriveInput) -> Value:
        """Return a public key; the private one stays."""
        return Value(await service.public_key(sent.role, sent.index))

    @_owned("vault/sign")
    async def sign(sent: SignInput) -> Value:
        """Sign data for a purpose, never with the identity or a host key."""
        return Value(await service.sign(sent.purpose, sent.data, index=sent.key))

    @_owned("vault/ssh-sign")
    async def ssh_sign(sent: SshSignInput) -> Value:
        """Sign data as it is with an SSH user key, as an SSH agent does."""
        return Value(await service.ssh_sign(sent.data, index=sent.key))

    @_owned("vault/verify")
    async def verify_signature(sent: VerifyInput) -> Verdict:
        """Check a signature that 'vault/sign' made, here or elsewhere."""
        public = sent.public_key or await service.public_key(KeyRole.SIGNING, sent.key)
        return Verdict(verify(public, sent.purpose, sent.data, sent.signature))

    @_owned("vault/hmac")
    async def hmac(sent: SignInput) -> Value:
        """Return HMAC-SHA256 of data under a key of this vault, for a purpose."""
        return Value(await service.hmac(sent.purpose, sent.data, index=sent.key))

    @_owned("vault/x25519")
    async def x25519(sent: ExchangeInput) -> Value:
        """Return the secret that this vault's key shares with another's."""
        return Value(await service.x25519(sent.public_key, index=sent.key))

    yield from (derive, sign, ssh_sign, verify_signature, hmac, x25519)


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

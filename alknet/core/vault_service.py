"""The vault of a running node: one thread at a time, locked again when nobody uses it.

Keys never leave: callers ask for signatures, shared secrets and decrypted values. What is signed
always begins with ``alknet-sign-v1``, a zero byte and a purpose, so that no signature made here is
worth anything in a handshake, and the identity and host keys sign nothing here.
"""

from __future__ import annotations

import math
import re
from collections.abc import Awaitable, Callable
from typing import Concatenate, ParamSpec, TypeVar

import trio
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.hmac import HMAC
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from alknet.core.clock import WallClock, wall_clock
from alknet.errors import LocalError
from alknet.vault.container import Header
from alknet.vault.envelope import derive_kek
from alknet.vault.locked import LockedBuffer
from alknet.vault.roles import KeyRole, path_of
from alknet.vault.vault import Vault

__all__ = ["PUBLIC_ROLES", "SIGN_PREFIX", "VaultService", "signed_message", "verify"]

P = ParamSpec("P")
T = TypeVar("T")

SIGN_PREFIX = b"alknet-sign-v1\0"
# Longer data is hashed by whoever wants it signed; it all passes through memory here.
MAX_DATA_BYTES = 1024 * 1024
# Purposes stand in signatures for ever: one form, no separators of ours.
_PURPOSE = re.compile(r"[a-z0-9][a-z0-9._/-]{0,63}")
# A derived key costs an interpreter's start; these are kept until the vault is locked.
MAX_KEPT_KEYS = 256

PUBLIC_ROLES = frozenset({KeyRole.IDENTITY, KeyRole.SSH_HOST, KeyRole.SSH_USER, KeyRole.SIGNING})
"""Roles whose public keys `VaultService.public_key` tells, beside X25519."""


class VaultService:
    """Serves one `Vault`.

    Every method that needs secrets raises Unavailable while the vault is locked. Cancelled, they
    finish what was begun in the thread, and then raise: a write has happened or not been begun.
    """

    def __init__(
        self,
        vault: Vault,
        *,
        lock_after_s: float | None = None,
        clock: WallClock = wall_clock,
    ) -> None:
        """Take over *vault*, locked or not.

        Args:
            lock_after_s: Lock it when it was not used for so long; None for never.
            clock: For expiries and dates.
        """
        self._vault = vault
        self._clock = clock
        self._lock_after_s = math.inf if lock_after_s is None else lock_after_s
        self._one_at_a_time = trio.CapacityLimiter(1)
        self._used_at = -math.inf
        self._running = 0
        self._news = trio.Event()
        self._signers: dict[str, Ed25519PrivateKey] = {}
        self._exchangers: dict[str, X25519PrivateKey] = {}

    @property
    def header(self) -> Header:
        """What anyone may know of the vault."""
        return self._vault.header

    @property
    def is_unlocked(self) -> bool:
        """Secrets can be had."""
        return self._vault.is_unlocked

    def lock_after(self, idle_s: float | None) -> None:
        """Lock when it was not used for *idle_s* from now on; None for never."""
        self._lock_after_s = math.inf if idle_s is None else idle_s
        self._news.set()

    async def lock_when_idle(
        self,
        on_locked: Callable[[], Awaitable[None]] = trio.lowlevel.checkpoint,
        *,
        task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
    ) -> None:
        """Lock the vault whenever it was not used for long enough; lock it on the way out.

        Args:
            on_locked: Awaited when it was locked for that, not on the way out.
        """
        self._touch()
        task_status.started()
        try:
            while True:
                with trio.move_on_at(self._lock_at()):
                    await self._news.wait()
                    self._news = trio.Event()
                if trio.current_time() >= self._lock_at():
                    await self.lock()
                    await on_locked()
        finally:
            with trio.CancelScope(shield=True):
                await self.lock()

    def _lock_at(self) -> float:
        is_idle = self.is_unlocked and not self._running
        return self._used_at + self._lock_after_s if is_idle else math.inf

    # Locking.

    async def unlock(self, find: Callable[[Header], LockedBuffer]) -> None:
        """Unlock with the entropy that *find* returns; it runs in the thread.

        Raises what *find* and `Vault.unlock` raise.
        """
        await self._in_thread(lambda vault: vault.unlock(find(vault.header)))

    async def lock(self) -> None:
        """Wipe all keys, after what is running has ended. Idempotent."""
        try:
            await self._in_thread(Vault.lock)
        finally:
            # Not before: a key that was being derived has come meanwhile.
            self._signers.clear()
            self._exchangers.clear()

    async def reread(self) -> None:
        """Take over what another process has written; does not count as use."""
        await trio.to_thread.run_sync(Vault.reread, self._vault, limiter=self._one_at_a_time)

    # Secrets.

    async def use(
        self, function: Callable[Concatenate[Vault, P], T], *args: P.args, **kwargs: P.kwargs
    ) -> T:
        """Call *function* with the vault, in its thread; raises what it raises."""
        return await self._in_thread(lambda vault: function(vault, *args, **kwargs))

    async def put(
        self,
        path: str,
        value: bytes | memoryview,
        *,
        expect: int | None = None,
        expires_at: float | None = None,
    ) -> int:
        """Store a secret; see `Vault.put`."""
        now = self._clock()
        return await self.use(Vault.put, path, value, now=now, expect=expect, expires_at=expires_at)

    async def get(self, path: str, *, version: int | None = None) -> LockedBuffer:
        """Return a secret, which the caller closes; see `Vault.get`."""
        return await self.use(Vault.get, path, now=self._clock(), version=version)

    # Keys.

    async def public_key(self, role: KeyRole, index: int = 0) -> bytes:
        """Return the 32 bytes of a public key.

        Raises:
            LocalError: Keys of that role have no public half, or the number is wrong.
            Unavailable: The vault is locked.
        """
        if role is KeyRole.X25519:
            exchanger = await self._exchanger(index)
            return exchanger.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw)
        if role not in PUBLIC_ROLES:
            raise LocalError(f"{role.value} keys have no public half")
        signer = await self._signer(role, index)
        return signer.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw)

    async def sign(self, purpose: str, data: bytes, *, index: int = 0) -> bytes:
        """Return the Ed25519 signature (64 bytes) of *data* for *purpose*.

        Args:
            purpose: What it is for, 1 to 64 of ``a-z 0-9 . _ / -``; part of what is signed.
            index: Which of the signing keys.

        Raises:
            LocalError: The purpose or the number is wrong, or there are more than 1 MiB.
            Unavailable: The vault is locked.
        """
        message = signed_message(purpose, data)
        return (await self._signer(KeyRole.SIGNING, index)).sign(message)

    async def ssh_sign(self, data: bytes, *, index: int = 0) -> bytes:
        """Return the signature of *data* by an SSH user key, as an SSH agent gives it."""
        return (await self._signer(KeyRole.SSH_USER, index)).sign(data)

    async def hmac(self, purpose: str, data: bytes, *, index: int = 0) -> bytes:
        """Return HMAC-SHA256 (32 bytes) of *data* under a key for *purpose*; raises like `sign`."""
        message = signed_message(purpose, data)
        (child,) = await self.use(Vault.derive, [path_of(KeyRole.HMAC, index)])
        with child, derive_kek(child.view, self.header.vault_id, "alknet hmac") as key:
            mac = HMAC(key.view, SHA256())
            mac.update(message)
            return mac.finalize()

    async def x25519(self, peer: bytes, *, index: int = 0) -> bytes:
        """Return the shared secret (32 bytes) with the owner of a public key (RFC 7748).

        Raises:
            LocalError: *peer* is no key, or one of those that give every one the same secret.
            Unavailable: The vault is locked.
        """
        try:
            public = X25519PublicKey.from_public_bytes(peer)
        except ValueError:
            raise LocalError("an X25519 public key has 32 bytes") from None
        exchanger = await self._exchanger(index)
        try:
            return exchanger.exchange(public)
        except ValueError:
            raise LocalError("this X25519 public key is a weak one") from None

    # Inside.

    async def _signer(self, role: KeyRole, index: int) -> Ed25519PrivateKey:
        path = path_of(role, index)
        return await self._key(self._signers, path, Ed25519PrivateKey.from_private_bytes)

    async def _exchanger(self, index: int) -> X25519PrivateKey:
        path = path_of(KeyRole.X25519, index)
        return await self._key(self._exchangers, path, X25519PrivateKey.from_private_bytes)

    async def _key(self, kept: dict[str, T], path: str, load: Callable[[memoryview], T]) -> T:
        if path in kept:
            await trio.lowlevel.checkpoint()
            self._touch()
            if path in kept and self.is_unlocked:  # it was not locked meanwhile
                return kept[path]
        (child,) = await self.use(Vault.derive, [path])
        with child:
            key = load(child.view)
        if self.is_unlocked:
            if len(kept) >= MAX_KEPT_KEYS:
                kept.clear()
            kept[path] = key
        return key

    async def _in_thread(self, function: Callable[[Vault], T]) -> T:
        self._running += 1
        try:
            return await trio.to_thread.run_sync(function, self._vault, limiter=self._one_at_a_time)
        finally:
            self._running -= 1
            self._touch()
            self._news.set()

    def _touch(self) -> None:
        self._used_at = trio.current_time()


def signed_message(purpose: str, data: bytes) -> bytes:
    """Return what a signature covers.

    Raises:
        LocalError: The purpose is not of its form, or there are more than 1 MiB.
    """
    if not _PURPOSE.fullmatch(purpose):
        raise LocalError(f"{purpose[:80]!r} is no purpose: 1 to 64 of a-z, 0-9, '.', '_', '/', '-'")
    if len(data) > MAX_DATA_BYTES:
        raise LocalError(f"{len(data)} bytes to sign, at most {MAX_DATA_BYTES}: sign a hash")
    return SIGN_PREFIX + purpose.encode() + b"\0" + data


def verify(public_key: bytes, purpose: str, data: bytes, signature: bytes) -> bool:
    """Return whether *signature* is of *data* for *purpose*; needs no vault.

    Raises:
        LocalError: The key or the purpose is not of its form.
    """
    message = signed_message(purpose, data)
    try:
        Ed25519PublicKey.from_public_bytes(public_key).verify(signature, message)
    except ValueError:
        raise LocalError("an Ed25519 public key has 32 bytes") from None
    except InvalidSignature:
        return False
    return True

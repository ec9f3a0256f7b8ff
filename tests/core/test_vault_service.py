"""The vault of a running node: locking, idle time, keys that never leave."""

from __future__ import annotations

import threading
from functools import partial
from pathlib import Path

import pytest
import trio
import trio.testing
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey

from alknet.core.vault_service import SIGN_PREFIX, VaultService, verify
from alknet.errors import LocalError, Unavailable
from alknet.vault.derivation import derive_keys
from alknet.vault.locked import LockedBuffer
from alknet.vault.roles import KeyRole, path_of
from alknet.vault.vault import Vault, create_vault
from alknet.vault.vaultfile import VaultFile

ENTROPY = bytes(range(32))


@pytest.fixture
def vault(tmp_path: Path) -> Vault:
    return create_vault(VaultFile(tmp_path), LockedBuffer.of(ENTROPY), lambda *_: [], now=1.0)


async def test_signatures_cover_the_purpose(vault: Vault) -> None:
    service = VaultService(vault)
    public = await service.public_key(KeyRole.SIGNING, 3)
    signature = await service.sign("release", b"data", index=3)
    assert verify(public, "release", b"data", signature)
    assert not verify(public, "other", b"data", signature)
    assert not verify(public, "release", b"date", signature)
    assert not verify(await service.public_key(KeyRole.SIGNING, 4), "release", b"data", signature)


async def test_a_purpose_cannot_reach_into_the_data(vault: Vault) -> None:
    service = VaultService(vault)
    for purpose in ("", "a\0b", "A", "x" * 65, "a b"):
        with pytest.raises(LocalError):
            await service.sign(purpose, b"")
    assert SIGN_PREFIX.endswith(b"\0")


async def test_identity_and_host_keys_show_their_public_half_only(vault: Vault) -> None:
    service = VaultService(vault)
    assert len(await service.public_key(KeyRole.IDENTITY)) == 32
    with pytest.raises(LocalError, match="no public half"):
        await service.public_key(KeyRole.ENCRYPTION)
    with pytest.raises(LocalError, match="no ssh-host key number 1"):
        await service.public_key(KeyRole.SSH_HOST, 1)


async def test_both_sides_of_an_exchange_agree(vault: Vault) -> None:
    service = VaultService(vault)
    other = X25519PrivateKey.generate()
    ours = await service.public_key(KeyRole.X25519)
    shared = await service.x25519(other.public_key().public_bytes_raw())
    assert shared == other.exchange(X25519PublicKey.from_public_bytes(ours))
    with pytest.raises(LocalError, match="weak"):
        await service.x25519(bytes(32))
    with pytest.raises(LocalError, match="32 bytes"):
        await service.x25519(bytes(31))


async def test_hmac_depends_on_key_purpose_and_data(vault: Vault) -> None:
    service = VaultService(vault)
    macs = {
        await service.hmac("a", b"x"),
        await service.hmac("b", b"x"),
        await service.hmac("a", b"y"),
        await service.hmac("a", b"x", index=1),
    }
    assert len(macs) == 4
    assert await service.hmac("a", b"x") in macs


async def test_locked_everything_that_needs_secrets_is_unavailable(vault: Vault) -> None:
    service = VaultService(vault)
    await service.put("a", b"1")
    await service.sign("release", b"data")
    await service.lock()
    for attempt in (
        lambda: service.get("a"),
        lambda: service.put("a", b"2"),
        lambda: service.sign("release", b"data"),
        lambda: service.hmac("a", b"x"),
        lambda: service.public_key(KeyRole.X25519),
    ):
        with pytest.raises(Unavailable):
            await attempt()
    await service.unlock(lambda _: LockedBuffer.of(ENTROPY))
    with await service.get("a") as value:
        assert bytes(value.view) == b"1"


async def test_a_key_that_was_being_derived_is_gone_with_the_lock(vault: Vault) -> None:
    service, is_derived = VaultService(vault), threading.Event()

    async def derive() -> None:
        await service.public_key(KeyRole.SSH_USER)
        is_derived.set()

    async with trio.open_nursery() as nursery:
        for work in (derive, partial(service.use, lambda _: is_derived.wait()), service.lock):
            nursery.start_soon(work)  # in this order for the vault's one thread
            await trio.testing.wait_all_tasks_blocked()
    assert not service.is_unlocked
    with pytest.raises(Unavailable):
        await service.ssh_sign(b"data")


async def test_it_locks_itself_when_nobody_uses_it(
    vault: Vault, nursery: trio.Nursery, autojump_clock: object
) -> None:
    service = VaultService(vault, lock_after_s=60)
    await nursery.start(service.lock_when_idle)
    await service.put("a", b"1")
    await trio.sleep(50)
    (await service.get("a")).close()
    await trio.sleep(50)
    assert service.is_unlocked
    await trio.sleep(20)
    await service.reread()  # after what its thread does now
    assert not service.is_unlocked


async def test_who_wants_to_know_is_told_that_it_has_locked_itself(
    vault: Vault, nursery: trio.Nursery, autojump_clock: object
) -> None:
    service = VaultService(vault, lock_after_s=60)
    told: list[bool] = []

    async def tell() -> None:
        told.append(service.is_unlocked)
        await trio.lowlevel.checkpoint()

    await nursery.start(service.lock_when_idle, tell)
    await service.lock()  # not by itself
    await trio.sleep(100)
    assert told == []
    await service.unlock(lambda _: LockedBuffer.of(ENTROPY))
    await trio.sleep(100)
    await service.reread()  # after what its thread does now
    await trio.testing.wait_all_tasks_blocked()
    assert told == [False]


async def test_it_locks_when_its_task_ends(vault: Vault) -> None:
    service = VaultService(vault)
    async with trio.open_nursery() as nursery:
        await nursery.start(service.lock_when_idle)
        await service.put("a", b"1")
        nursery.cancel_scope.cancel()
    assert not service.is_unlocked


async def test_a_cancelled_write_has_happened_or_not_been_begun(vault: Vault) -> None:
    service = VaultService(vault)
    with trio.CancelScope() as scope:
        scope.cancel()
        await service.put("a", b"1")
    assert [info.path for info in await service.use(lambda v: list(v.secrets()))] in ([], ["a"])


async def test_derived_keys_are_those_of_the_table(vault: Vault) -> None:
    (child,) = derive_keys(memoryview(ENTROPY), [path_of(KeyRole.X25519, 7)])
    with child:
        expected = X25519PrivateKey.from_private_bytes(child.view).public_key().public_bytes_raw()
    assert await VaultService(vault).public_key(KeyRole.X25519, 7) == expected

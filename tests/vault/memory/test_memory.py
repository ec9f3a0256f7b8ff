"""Locked, a node has none of its vault's secrets in memory: another process looks for them there.

The node is a child without `harden_process`, so that its parent may read its memory, as root or
not (ptrace(2), Yama allows a parent). That it is hardened otherwise is tested where it is done.
"""

from __future__ import annotations

import os
import secrets
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec
import pyrage
import pytest
import trio
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from alknet.call.session import CallSession
from alknet.client import open_control_session
from alknet.core.vault_pipe import offer_entropy
from alknet.vault.envelope import _wrap_context, context_of, decrypt, derive_kek, kek_path
from alknet.vault.homevault import create_home_vault, home_vault
from alknet.vault.keyfile import create_home
from alknet.vault.keys import VaultKeys
from alknet.vault.locked import LockedBuffer
from alknet.vault.recovery import words_from_entropy
from alknet.vault.roles import KeyRole, path_of
from alknet.vault.slip10 import ExtendedKey, derive
from alknet.vault.slots import PassphraseCost, age_slot, passphrase_slot
from alknet.vault.unlock import HOME_KEY_FILE
from alknet.vault.vaultfile import VaultFile
from alknet.vault.words import seed_from_words
from tests.vault.memory.scan import found_in

Json = dict[str, Any]
PATH = "web/token"
CHEAP = PassphraseCost(memory_kib=64 * 1024)


@pytest.fixture
def entropy() -> bytes:
    return os.urandom(32)


@pytest.fixture
def home(tmp_path: Path, entropy: bytes) -> Path:
    create_home(tmp_path / "h")
    vault, _ = create_home_vault(tmp_path / "h", LockedBuffer.of(entropy), now=1.0)
    vault.lock()
    return tmp_path / "h"


@contextmanager
def running(home: Path, *unlock: str) -> Iterator[int]:
    """Give the process id of a node that serves *home*."""
    command = [sys.executable, "-m", "tests.vault.memory.node", str(home), *unlock]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as child:
        assert child.stdout is not None
        try:
            assert child.stdout.readline().startswith(b'{"event":"ready"')
            yield child.pid
        finally:
            child.kill()


def roots(entropy: bytes) -> dict[str, bytes]:
    """What all keys come from."""
    words = words_from_entropy(memoryview(entropy))
    seed = seed_from_words(words)
    master = ExtendedKey.master(seed)
    return {
        "entropy": entropy,
        "words": words.encode(),
        "seed": seed,
        "master key": master.private_bytes,
        "master chain code": master.chain_code,
    }


def keys_of(home: Path, entropy: bytes) -> dict[str, bytes]:
    """The keys of the vault as it is now, computed here: those of versions 2 and 3."""
    seed = seed_from_words(words_from_entropy(memoryview(entropy)))
    vault_id = VaultFile(home).read().header.vault_id
    found = {}
    for version in (2, 3):
        child = derive(seed, kek_path(version))
        found[f"child {version}"] = child.private_bytes
        found[f"chain code {version}"] = child.chain_code
        for name in ("kek", "index"):
            key = derive_kek(memoryview(child.private_bytes), vault_id, f"alknet {name} {version}")
            found[f"{name} {version}"] = bytes(key.view)
    for role in (KeyRole.SSH_USER, KeyRole.SIGNING, KeyRole.HMAC, KeyRole.X25519):
        found[role.value] = derive(seed, path_of(role)).private_bytes
    found["key file"] = (home / HOME_KEY_FILE).read_bytes()
    return found


def deks(home: Path, entropy: bytes, keys: Mapping[str, bytes]) -> dict[str, bytes]:
    """The key of each version of the secret."""
    file = VaultFile(home)
    opened = VaultKeys(LockedBuffer.of(entropy))
    header = file.read().header
    secret = opened.decrypt_index(file.read()).secrets[PATH]
    found = {}
    for entry in secret.versions:
        assert entry.sealed is not None
        kek = keys[f"kek {entry.sealed.kek_version}"]
        context = context_of(header.vault_id, PATH, entry.version)
        wrap_context = _wrap_context(context, entry.sealed.kek_version)
        with decrypt(memoryview(kek), entry.sealed.wrapped_dek, wrap_context) as dek:
            found[f"dek {entry.version}"] = bytes(dek.view)
    return found


async def use_everything(session: CallSession) -> None:
    """Call each operation that needs a key."""

    async def call(operation: str, **given: object) -> Json:
        output = await session.call(f"vault/{operation}", msgspec.to_builtins(given))
        return msgspec.json.decode(output, type=Json)

    await call("put", path=PATH, value=b"first")
    await call("rotate")
    await call("put", path=PATH, value=b"second")
    await call("get", path=PATH)
    await call("get", path=PATH, version=1)
    await call("list")
    await call("check")
    sealed = await call("encrypt", name="mine", value=b"third")
    await call("decrypt", name="mine", sealed=sealed["sealed"])
    await call("sign", purpose="test", data=b"data")
    await call("ssh-sign", data=b"data")
    await call("hmac", purpose="test", data=b"data")
    peer = X25519PrivateKey.generate().public_key().public_bytes_raw()
    await call("x25519", public_key=peer)


@pytest.mark.slow
async def test_locking_leaves_no_secret_in_memory(home: Path, entropy: bytes) -> None:
    with running(home) as pid:
        async with open_control_session(home) as session:
            await use_everything(session)
            keys = keys_of(home, entropy)
            wanted = {**roots(entropy), **keys, **deks(home, entropy, keys)}
            unlocked = await trio.to_thread.run_sync(found_in, pid, wanted)
            # That they are found while they are needed shows that the search finds.
            assert {"entropy", "kek 2", "kek 3", "index 3"} <= unlocked
            assert not unlocked & {"words", "seed", "master key", "master chain code", "key file"}
            await session.call("vault/lock", {})
            locked = await trio.to_thread.run_sync(found_in, pid, wanted)
            assert locked == set()


@pytest.mark.slow
async def test_unlocking_again_through_the_pipe_leaves_none_either(
    home: Path, entropy: bytes
) -> None:
    with running(home) as pid:
        async with open_control_session(home) as session:
            await session.call("vault/lock", {})
            with offer_entropy(home, memoryview(entropy)) as pipe:
                await session.call("vault/unlock", {"pipe": pipe})
            assert "entropy" in await trio.to_thread.run_sync(found_in, pid, roots(entropy))
            await session.call("vault/lock", {})
            wanted = {**roots(entropy), **keys_of(home, entropy)}
            assert await trio.to_thread.run_sync(found_in, pid, wanted) == set()


@pytest.mark.slow
@pytest.mark.parametrize("way", ["--passphrase-file", "--age-identity", "--words-file"])
async def test_what_unlocked_it_leaves_no_trace_either(
    home: Path, entropy: bytes, tmp_path: Path, way: str
) -> None:
    words = words_from_entropy(memoryview(entropy))
    identity = pyrage.x25519.Identity.generate()
    passphrase = secrets.token_hex(32)
    vault = home_vault(home, now=1.0)
    recipient, chosen = str(identity.to_public()), bytearray(passphrase.encode())
    vault.add_slot(lambda i, root: age_slot(i, root, recipient))
    vault.add_slot(lambda i, root: passphrase_slot(i, root, chosen, cost=CHEAP))
    vault.lock()
    given = {
        "--passphrase-file": passphrase,
        "--age-identity": str(identity),
        "--words-file": words,
    }
    (tmp_path / "given").write_text(given[way] + "\n")
    # What any age identity begins with is in the program.
    wanted = {way: given[way].removeprefix("AGE-SECRET-KEY-1").encode(), **roots(entropy)}
    with running(home, way, str(tmp_path / "given")) as pid:
        async with open_control_session(home) as session:
            assert await trio.to_thread.run_sync(found_in, pid, wanted) == {"entropy"}
            await session.call("vault/lock", {})
            assert await trio.to_thread.run_sync(found_in, pid, wanted) == set()

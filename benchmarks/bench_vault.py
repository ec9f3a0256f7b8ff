"""The vault: unlocking, and what its keys do a second, beside the bare cryptography.

CPU time of this process and of the children that derive keys; of a write also the disk's time.
"""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import trio
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.kdf.argon2 import Argon2id

from alknet.core.vault_service import VaultService
from alknet.vault.durable import replace_file
from alknet.vault.homevault import create_home_vault, unlock_home_vault, what_unlocks
from alknet.vault.keyfile import create_home
from alknet.vault.locked import LockedBuffer
from alknet.vault.slots import PassphraseCost
from alknet.vault.unlock import UnlockWith
from alknet.vault.vault import Vault
from benchmarks.table import Row, Table, row_of

OURS, FLOOR = "alknet vault", "cryptography alone"
PASSPHRASE = bytearray(b"correct horse battery")
VALUE = os.urandom(1024)
NOTES = [
    "CPU time in all cases but put, which is wall-clock time: it waits for the disk, four times.",
    "An unlock starts a Python process that derives the keys and ends: that is most of it.",
    (
        "The floor of an unlock is Argon2id with the same cost; of put, one durable replacement of "
        "a file; of the others, the same operation of the library on keys that are at hand."
    ),
    "sign and decrypt are of the service in a running node, which does other work meanwhile.",
]

Operation = Callable[[], Awaitable[object]]


def run(is_quick: bool) -> Table:
    rounds, count = (1, 20) if is_quick else (5, 300)
    rows = measure(rounds=rounds, count=count)
    return Table("vault", "The vault", FLOOR, rows, NOTES)


def measure(*, rounds: int, count: int) -> list[Row]:
    """Alternate rounds of ours and the floor, *count* operations each."""
    with tempfile.TemporaryDirectory() as directory:
        home = Path(directory) / "home"
        create_home(home)
        vault, _ = create_home_vault(
            home, LockedBuffer.random(32), now=1.0, passphrase=bytearray(PASSPHRASE)
        )
        try:
            return [*_unlocks(vault, home, rounds), *trio.run(_operations, vault, rounds, count)]
        finally:
            vault.lock()


def _unlocks(vault: Vault, home: Path, rounds: int) -> list[Row]:
    cost = PassphraseCost()
    key_file, passphrase = what_unlocks(home), UnlockWith(passphrase=bytearray(PASSPHRASE))
    cases: dict[str, dict[str, Callable[[], object]]] = {
        "unlock with a key file": {OURS: lambda: unlock_home_vault(vault, home, key_file)},
        "unlock with a passphrase": {
            OURS: lambda: unlock_home_vault(vault, home, passphrase),
            FLOOR: lambda: _argon2(cost),
        },
    }
    rows = []
    for case, peers in cases.items():
        found: dict[str, list[dict[str, float]]] = {name: [] for name in peers}
        for _ in range(rounds):
            for name, work in peers.items():
                began = _cpu_s()
                work()
                spent = _cpu_s() - began
                found[name].append({"per s": 1 / spent, "ms": spent * 1000})
        rows += [row_of(name, case, times) for name, times in found.items()]
    return rows


async def _operations(vault: Vault, rounds: int, count: int) -> list[Row]:
    service = VaultService(vault)
    key, aes, nonce = Ed25519PrivateKey.generate(), AESGCM(os.urandom(32)), os.urandom(12)
    text = await service.use(Vault.encrypt, "bench", VALUE)
    sealed = aes.encrypt(nonce, VALUE, b"bench")
    await service.sign("bench", VALUE)
    with tempfile.TemporaryDirectory() as directory:
        file = Path(directory) / "file"

        async def put() -> None:
            await service.put("bench", VALUE)

        async def decrypt() -> None:
            (await service.use(Vault.decrypt, "bench", text)).close()

        cases: dict[str, tuple[Operation, Callable[[], object], Callable[[], float], int]] = {
            "sign 1 KiB": (
                lambda: service.sign("bench", VALUE),
                lambda: key.sign(VALUE),
                time.process_time,
                count,
            ),
            "encrypt 1 KiB": (
                lambda: service.use(Vault.encrypt, "bench", VALUE),
                lambda: aes.encrypt(nonce, VALUE, b"bench"),
                time.process_time,
                count,
            ),
            "decrypt 1 KiB": (
                decrypt,
                lambda: aes.decrypt(nonce, sealed, b"bench"),
                time.process_time,
                count,
            ),
            "put 1 KiB": (put, lambda: replace_file(file, VALUE), time.monotonic, count // 10),
        }
        rows = []
        for case, (ours, floor, clock, times) in cases.items():
            found: dict[str, list[dict[str, float]]] = {OURS: [], FLOOR: []}
            for _ in range(rounds):
                found[OURS].append(await _timed(ours, clock, times))
                found[FLOOR].append(await _timed(_awaited(floor), clock, times))
            rows += [row_of(name, case, measured) for name, measured in found.items()]
    return rows


async def _timed(work: Operation, clock: Callable[[], float], count: int) -> dict[str, float]:
    began = clock()
    for _ in range(count):
        await work()
    spent = (clock() - began) / count
    return {"per s": 1 / spent, "ms": spent * 1000}


def _awaited(work: Callable[[], Any]) -> Operation:
    async def run() -> object:
        return work()

    return run


def _argon2(cost: PassphraseCost) -> None:
    Argon2id(
        salt=bytes(16),
        length=32,
        iterations=cost.iterations,
        lanes=cost.lanes,
        memory_cost=cost.memory_kib,
    ).derive(bytes(PASSPHRASE))


def _cpu_s() -> float:
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system

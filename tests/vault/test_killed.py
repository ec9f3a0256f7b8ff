"""A process that dies at any step of a write leaves a vault that opens, with every secret."""

from __future__ import annotations

import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from alknet.vault.homevault import create_home_vault, home_vault
from alknet.vault.keyfile import create_home, read_key
from alknet.vault.locked import LockedBuffer
from alknet.vault.vault import Vault
from tests.vault.oldhome import write_key

pytestmark = pytest.mark.slow

# More than any write takes: then it was not killed, and we are through.
MAX_STEPS = 40
SECRETS = {"a": b"1", "mail/smtp": b"hunter2", "tls/key": bytes(range(256))}
T = TypeVar("T")
WRITES: dict[str, Callable[[Vault], object]] = {
    "put": lambda vault: vault.put("new", b"x", now=3.0),
    "rotate": Vault.rotate,
    "rewrap": lambda vault: vault.rewrap(retire=True),
}
# What changes a name or waits for the disk.
STEPS = ("fsync", "replace", "rename", "link", "unlink")


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """A home whose secrets are under two key versions."""
    home = tmp_path / "home"
    create_home(home)
    vault, _ = create_home_vault(home, LockedBuffer.of(bytes(range(32))), now=1.0)
    for path, value in SECRETS.items():
        vault.put(path, value, now=1.0)
        if path == "a":
            vault.rotate()
    vault.lock()
    return home


@pytest.mark.parametrize("name", WRITES)
def test_a_kill_at_any_step_loses_nothing(home: Path, tmp_path: Path, name: str) -> None:
    generations = set()
    for step in range(1, MAX_STEPS):
        copy = tmp_path / str(step)
        shutil.copytree(home, copy)
        was_killed = killed(step, copy, lambda at: home_vault(at, now=2.0), WRITES[name])
        vault = home_vault(copy, now=5.0)
        check(vault)
        generations.add(vault.header.generation)
        # And it can be written to.
        vault.put("after", b"y", now=6.0)
        check(vault)
        vault.lock()
        shutil.rmtree(copy)
        if not was_killed:
            break
    else:
        raise AssertionError("it never came to its end")
    assert step > 5
    assert len(generations) == 2  # as before, or as after


def test_a_migration_that_is_killed_at_any_step_keeps_the_identity(tmp_path: Path) -> None:
    old = tmp_path / "old"
    create_home(old)
    write_key(old, Ed25519PrivateKey.generate())
    public = read_key(old).public_key().public_bytes_raw()
    for step in range(1, MAX_STEPS):
        copy = tmp_path / str(step)
        shutil.copytree(old, copy)
        was_killed = killed(step, copy, lambda at: at, lambda at: home_vault(at, now=4.0))
        assert home_vault(copy, now=5.0).identity().public_key().public_bytes_raw() == public
        assert (copy / "backup" / "node.key").exists()
        assert not (copy / "node.key").exists()
        shutil.rmtree(copy)
        if not was_killed:
            break
    assert 5 < step < MAX_STEPS - 1


def killed(step: int, home: Path, begin: Callable[[Path], T], work: Callable[[T], object]) -> bool:
    """Do *work* in a process that is killed in place of its n-th step; return whether it was."""
    process = os.fork()
    if process == 0:
        try:
            subject = begin(home)
            _count_down(step)
            work(subject)
        except BaseException:  # noqa: BLE001  what would run on is a copy of the tests
            os._exit(1)
        os._exit(0)
    _, status = os.waitpid(process, 0)
    code = os.waitstatus_to_exitcode(status)
    assert code in {0, -signal.SIGKILL}
    return code != 0


def _count_down(left: int) -> None:
    def counted(call: Callable[..., Any]) -> Callable[..., Any]:
        def run(*args: Any, **kwargs: Any) -> Any:
            nonlocal left
            left -= 1
            if left == 0:
                os.kill(os.getpid(), signal.SIGKILL)
            return call(*args, **kwargs)

        return run

    for name in STEPS:
        setattr(os, name, counted(getattr(os, name)))


def check(vault: Vault) -> None:
    assert vault.verify() == []
    for path, value in SECRETS.items():
        with vault.get(path, now=5.0) as secret:
            assert bytes(secret.view) == value

"""OpenSSH and git sign with the vault through the agent's socket, and sshd lets its key in."""

from __future__ import annotations

import getpass
import os
import shlex
import signal
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from alknet.vault.derivation import derive_keys
from alknet.vault.roles import KeyRole, path_of
from tests.cli.homes import ENTROPY, make_vault_home
from tests.cli.kit import PROGRAM, process, running_node
from tests.interop.programs import find

pytestmark = [pytest.mark.interop, pytest.mark.slow]

NO_KEYS = "The agent has no identities."


def ran(*command: object, env: Mapping[str, str], status: int = 0, stdin: bytes = b"") -> str:
    """Run to the end; return what it wrote to both outputs."""
    done = subprocess.run(
        list(map(str, command)),
        env={**os.environ, **env},
        input=stdin,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        check=False,
    )
    assert done.returncode == status, done.stdout.decode()
    return done.stdout.decode()


@pytest.fixture
def home(tmp_path: Path) -> Path:
    make_vault_home(tmp_path / "h")
    return tmp_path / "h"


@contextmanager
def agent(home: Path, *options: object) -> Iterator[dict[str, str]]:
    """Run the agent; give the environment that its line for the shell makes."""
    with process("vault", "ssh-agent", *options, home=home) as running:
        line = running.line()
        assert line, running.end().err
        setting, _, export = line.partition("; ")
        assert export == "export SSH_AUTH_SOCK"
        yield {"SSH_AUTH_SOCK": shlex.split(setting)[0].partition("=")[2]}


def fingerprints(env: Mapping[str, str]) -> list[str]:
    lines = ran(find("ssh-add"), "-l", env=env).splitlines()
    return [line.split(" ", 2)[2] for line in lines]


def test_ssh_add_lists_the_keys_of_the_words(home: Path) -> None:
    with agent(home, "--keys", 2) as env:
        assert Path(env["SSH_AUTH_SOCK"]) == home / "ssh-agent.sock"
        assert fingerprints(env) == ["alknet:0 (ED25519)", "alknet:1 (ED25519)"]
        listed = ran(find("ssh-add"), "-L", env=env).splitlines()
        assert [line.split()[0] for line in listed] == ["ssh-ed25519"] * 2
        with derive_keys(memoryview(ENTROPY), [path_of(KeyRole.SSH_USER, 1)])[0] as key:
            expected = Ed25519PrivateKey.from_private_bytes(key.view).public_key()
        openssh = expected.public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH).decode()
        assert listed[1] == f"{openssh} alknet:1"


def test_ssh_add_can_change_nothing(home: Path, tmp_path: Path) -> None:
    ran(find("ssh-keygen"), "-q", "-t", "ed25519", "-N", "", "-f", tmp_path / "other", env={})
    with agent(home) as env:
        before = fingerprints(env)
        ran(find("ssh-add"), tmp_path / "other", env=env, status=1)
        ran(find("ssh-add"), "-D", env=env, status=1)
        assert fingerprints(env) == before


def test_a_signature_of_ssh_keygen_verifies(home: Path, tmp_path: Path) -> None:
    with agent(home) as env:
        public = ran(find("ssh-add"), "-L", env=env)
        (tmp_path / "key.pub").write_text(public)
        (tmp_path / "allowed").write_text(f"me@example.org {public}")
        sign = (find("ssh-keygen"), "-Y", "sign", "-n", "file", "-f", tmp_path / "key.pub")
        (tmp_path / "text").write_bytes(b"what is signed")
        ran(*sign, tmp_path / "text", env=env)
    verify = (find("ssh-keygen"), "-Y", "verify", "-n", "file", "-f", tmp_path / "allowed")
    whose = ("-I", "me@example.org", "-s", tmp_path / "text.sig")
    assert "Good" in ran(*verify, *whose, env={}, stdin=b"what is signed")
    ran(*verify, *whose, env={}, stdin=b"something else", status=255)


def test_git_signs_commits(home: Path, tmp_path: Path) -> None:
    repository = tmp_path / "repository"
    git = (find("git"), "-C", repository, "-c", "user.name=n", "-c", "user.email=me@example.org")
    with agent(home) as env:
        public = ran(find("ssh-add"), "-L", env=env).strip()
        (tmp_path / "allowed").write_text(f"me@example.org {public}\n")
        env |= {"HOME": str(tmp_path), "GIT_CONFIG_NOSYSTEM": "1"}
        ran(find("git"), "init", "-q", repository, env=env)
        signing = ("-c", "gpg.format=ssh", "-c", f"user.signingkey=key::{public}")
        ran(*git, *signing, "commit", "-q", "-S", "--allow-empty", "-m", "signed", env=env)
    allowed = ("-c", f"gpg.ssh.allowedSignersFile={tmp_path / 'allowed'}")
    assert 'Good "git" signature' in ran(*git, *allowed, "verify-commit", "HEAD", env=env)


def test_a_locked_node_has_no_keys_until_it_is_unlocked(home: Path) -> None:
    with running_node(home), agent(home) as env:
        assert fingerprints(env) == ["alknet:0 (ED25519)"]
        owner = (*PROGRAM, "--home", home, "vault")
        ran(*owner, "lock", env=env)
        assert NO_KEYS in ran(find("ssh-add"), "-l", env=env, status=1)
        ran(*owner, "unlock", env=env)
        assert fingerprints(env) == ["alknet:0 (ED25519)"]


def test_an_agent_for_one_command_ends_with_its_status(home: Path) -> None:
    command = (*PROGRAM, "--home", home, "vault", "ssh-agent", "--")
    assert "alknet:0" in ran(*command, find("ssh-add"), "-L", env={})
    ran(*command, "sh", "-c", "exit 7", env={}, status=7)
    assert "cannot run no-such" in ran(*command, "no-such-program", env={}, status=127)
    assert "permission denied" in ran(*command, home / "vault.key", env={}, status=126)
    assert not (home / "ssh-agent.sock").exists()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_signal_to_an_agent_for_one_command_is_the_commands(
    home: Path, number: signal.Signals
) -> None:
    script = 'trap "echo heard; exit 3" TERM HUP; echo ready; read _; exit 4'
    agent_for = (*PROGRAM, "--home", str(home), "vault", "ssh-agent", "--")
    command = [*agent_for, "sh", "-c", script]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as running:
        assert running.stdout is not None
        assert running.stdout.readline() == b"ready\n"
        running.send_signal(number)
        if number is signal.SIGINT:  # a terminal would have given it to the command, too
            assert (running.communicate(b"\n", timeout=60)[0], running.returncode) == (b"", 4)
        else:  # whose input stays open meanwhile: its end would be another reason to go
            assert (running.stdout.read(), running.wait(60)) == (b"heard\n", 3)


def test_a_signal_that_comes_with_the_end_of_the_command_changes_nothing(home: Path) -> None:
    script = (
        'trap "" TERM; kill -STOP $PPID; kill -TERM $PPID;'
        "(sleep 0.2; kill -CONT $PPID) >/dev/null & exit 5"
    )
    command = (*PROGRAM, "--home", home, "vault", "ssh-agent", "--", "sh", "-c", script)
    for _ in range(4):  # which of the two it sees first is chance
        ran(*command, env={}, status=5)


def test_sshd_lets_the_vaults_key_in(home: Path, tmp_path: Path) -> None:
    """As its user, over a pipe, so that it needs no port."""
    ran(find("ssh-keygen"), "-q", "-t", "ed25519", "-N", "", "-f", tmp_path / "host", env={})
    if os.geteuid() == 0:  # then it wants its directory, which its service makes elsewhere
        Path("/run/sshd").mkdir(mode=0o755, exist_ok=True)
    with agent(home) as env:
        (tmp_path / "authorized").write_text(ran(find("ssh-add"), "-L", env=env))
        (tmp_path / "config").write_text(
            f"HostKey {tmp_path / 'host'}\nAuthorizedKeysFile {tmp_path / 'authorized'}\n"
            "StrictModes no\nUsePAM no\nPasswordAuthentication no\n"
            "KbdInteractiveAuthentication no\nPermitRootLogin yes\nPidFile none\n"
        )
        sshd = f"{find('sshd', '/usr/sbin')} -i -e -f {tmp_path / 'config'}"
        options = {
            "ProxyCommand": f"sh -c 'exec {sshd} 2>/dev/null'",
            "StrictHostKeyChecking": "no",
            "UserKnownHostsFile": "/dev/null",
            "PreferredAuthentications": "publickey",
            "BatchMode": "yes",
        }
        given = [word for name, value in options.items() for word in ("-o", f"{name}={value}")]
        ssh = (find("ssh"), "-F", "none", *given, f"{getpass.getuser()}@vault.test")
        assert "it is me" in ran(*ssh, "echo", "it", "is", "me", env=env)

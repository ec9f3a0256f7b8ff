"""The age program and tar open a backup without alknet, and age's own files are restored."""

from __future__ import annotations

import io
import subprocess
import tarfile
from pathlib import Path

import pytest

from alknet.core.nodeid import NodeId
from alknet.stores.backup import archive_home
from alknet.vault.homevault import open_home_vault
from tests.cli.homes import WORDS, make_vault_home
from tests.cli.kit import Cli
from tests.interop.programs import find

pytestmark = [pytest.mark.interop]


def run(*command: object, stdin: bytes = b"") -> bytes:
    done = subprocess.run(list(map(str, command)), input=stdin, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr.decode()
    return done.stdout


@pytest.fixture
def cli(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Cli:
    make_vault_home(tmp_path / "home")
    return Cli(tmp_path / "home", monkeypatch)


def age_key(file: Path) -> str:
    """Make an identity with age's own program and return its recipient."""
    run(find("age-keygen"), "-o", file)
    return run(find("age-keygen"), "-y", file).decode().strip()


@pytest.mark.parametrize("armor", [(), ("--armor",)])
def test_age_and_tar_open_a_backup(cli: Cli, tmp_path: Path, armor: tuple[str, ...]) -> None:
    recipient = age_key(tmp_path / "id.txt")
    cli.ok("backup", tmp_path / "b.age", "--recipient", recipient, *armor)
    archive = run(find("age"), "-d", "-i", tmp_path / "id.txt", tmp_path / "b.age")
    (tmp_path / "out").mkdir()
    run("tar", "-x", "-C", tmp_path / "out", stdin=archive)
    restored = {path.name for path in (tmp_path / "out").iterdir()}
    assert restored == {"backup.json", "node.toml", "vault.alk"}
    for name in ("vault.alk", "node.toml"):
        assert (tmp_path / "out" / name).read_bytes() == (cli.home / name).read_bytes()


def test_an_ssh_key_opens_a_backup(cli: Cli, tmp_path: Path) -> None:
    run(find("ssh-keygen"), "-q", "-t", "ed25519", "-N", "", "-f", tmp_path / "ssh")
    cli.ok("backup", tmp_path / "b.age", "--recipients-file", tmp_path / "ssh.pub")
    archive = run(find("age"), "-d", "-i", tmp_path / "ssh", tmp_path / "b.age")
    with tarfile.open(fileobj=io.BytesIO(archive)) as tar:
        assert "vault.alk" in tar.getnames()
    (tmp_path / "words").write_text(WORDS)
    options = ("--identity", tmp_path / "ssh", "--words-file", tmp_path / "words")
    cli.ok("restore", tmp_path / "b.age", *options, home=tmp_path / "new")


def test_what_age_encrypted_again_is_restored(cli: Cli, tmp_path: Path) -> None:
    recipient = age_key(tmp_path / "id.txt")
    archive = archive_home(cli.home)
    (tmp_path / "b.age").write_bytes(run(find("age"), "-a", "-r", recipient, stdin=archive))
    (tmp_path / "words").write_text(WORDS)
    options = ("--identity", tmp_path / "id.txt", "--words-file", tmp_path / "words")
    made = cli.ok("restore", tmp_path / "b.age", *options, "--json", home=tmp_path / "new").json
    assert made["id"] == str(NodeId(open_home_vault(cli.home).header.public_key))

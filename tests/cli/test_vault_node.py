"""``alknet vault`` beside a running node, and ``up`` on homes of every kind."""

from __future__ import annotations

import shutil
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cli.kit import Cli, RunningNode, process, running_node, terminal, wait_until

pytestmark = pytest.mark.slow

VECTORS = Path(__file__).parent.parent / "vectors"
PASSPHRASE = "correct horse"


@pytest.fixture
def own(node: RunningNode, monkeypatch: pytest.MonkeyPatch) -> Iterator[Cli]:
    """Commands on the home of the running node, whose vault is open before and after."""
    cli = Cli(node.home, monkeypatch)
    yield cli
    cli.ok("vault", "unlock")


@pytest.fixture
def closed(cli: Cli, tmp_path: Path) -> Cli:
    """A home that only a passphrase opens, which is in ``passphrase``."""
    (tmp_path / "passphrase").write_text(f"{PASSPHRASE}\n")
    given = ("--no-key-file", "--passphrase-file", tmp_path / "passphrase")
    cli.ok("init", "--words-file", tmp_path / "words", *given)
    return cli


def test_a_locked_node_tells_no_secret_and_goes_on(own: Cli, node: RunningNode) -> None:
    own.ok("vault", "put", "a", stdin="secret")
    assert own.ok("vault", "get", "a").out == "secret"
    assert own.ok("vault", "lock", "--json").json == {"unlocked": False}
    assert own.ok("vault", "status", "--json").json["unlocked"] is False
    result = own.fails(4, "vault", "get", "a")
    assert result.err == (
        "error: UNAVAILABLE: the vault is locked: 'alknet vault unlock' opens it\n"
        "hint: the node goes on without its secrets until then\n"
    )
    assert own.ok("call", node.ticket, "node/ping", "--json").json["id"] == node.ready["id"]
    assert own.ok("vault", "unlock", "--json").json == {"unlocked": True}
    assert own.ok("vault", "get", "a").out == "secret"
    assert not list(node.home.glob("unlock.*"))


def test_an_unlock_with_the_wrong_key_leaves_it_locked(own: Cli, tmp_path: Path) -> None:
    own.ok("vault", "lock")
    (tmp_path / "wrong").write_bytes(bytes(32))
    (tmp_path / "wrong").chmod(0o600)
    error = own.fails(3, "vault", "unlock", "--unlock-file", tmp_path / "wrong", "--json").error
    assert error["code"] == "WRONG_KEY"
    assert own.ok("vault", "status", "--json").json["unlocked"] is False


def test_the_node_keeps_its_secrets_out_of_core_dumps(node: RunningNode) -> None:
    limits = Path(f"/proc/{node.process.process.pid}/limits").read_text()
    (line,) = [line for line in limits.splitlines() if line.startswith("Max core file size")]
    assert line.split()[4:6] == ["0", "0"]


def test_up_takes_the_passphrase_from_a_file_or_a_terminal(closed: Cli, tmp_path: Path) -> None:
    with process("up", "--listen", "127.0.0.1:0", "--json", home=closed.home) as refused:
        ended = refused.end()
    assert (ended.status, ended.error["code"]) == (4, "UNAVAILABLE")
    assert "needs one of: passphrase" in ended.error["message"]
    with running_node(closed.home, "--passphrase-file", tmp_path / "passphrase") as running:
        assert closed.ok("id", "--json").json["id"] == running.ready["id"]
        closed.ok("vault", "put", "a", stdin="secret")
    with terminal("up", "--listen", "127.0.0.1:0", home=closed.home) as screen:
        screen.expect("passphrase of the vault: ")
        screen.type(f"{PASSPHRASE}\r")
        screen.expect("ticket")
        assert closed.ok("vault", "get", "a").out == "secret"
        screen.type("\x03")
        assert screen.end() == 0
        assert PASSPHRASE not in screen.seen


def test_ctrl_c_at_the_passphrase_ends_up(closed: Cli) -> None:
    with terminal("up", "--listen", "127.0.0.1:0", home=closed.home) as screen:
        screen.expect("passphrase of the vault: ")
        assert screen.interrupt() == 130


def test_systemd_s_credential_opens_it(made: Cli, tmp_path: Path) -> None:
    (made.home / "vault.key").rename(tmp_path / "alknet-vault-key")
    with running_node(made.home, CREDENTIALS_DIRECTORY=str(tmp_path)) as running:
        running.process.signal(signal.SIGTERM)
        assert running.process.end().status == 0


def test_a_home_from_before_there_were_vaults_gets_one_at_the_first_up(cli: Cli) -> None:
    shutil.copytree(VECTORS / "home-1", cli.home)
    cli.home.chmod(0o700)
    for path in cli.home.iterdir():
        path.chmod(0o600)
    before = cli.ok("id", "--json").json["id"]
    assert "the next 'alknet up' makes its vault" in cli.fails(1, "vault", "list").err
    assert {path.name for path in cli.home.iterdir()} >= {"node.key"}
    for _ in range(2):
        with running_node(cli.home) as running:
            assert running.ready["id"] == before == cli.ok("id", "--json").json["id"]
            secrets = cli.ok("vault", "list", "--json").json["secrets"]
            assert [one["path"] for one in secrets] == ["node/identity"]
            assert "neither shown nor changed" in cli.fails(1, "vault", "get", "node/identity").err
            running.process.signal(signal.SIGTERM)
            running.process.end()
    assert (cli.home / "backup" / "node.key").exists()
    assert not (cli.home / "node.key").exists()


def test_vault_init_gives_an_old_home_its_vault_once(cli: Cli) -> None:
    assert "'alknet init' makes one" in cli.fails(1, "vault", "init").err
    shutil.copytree(VECTORS / "home-1", cli.home)
    cli.home.chmod(0o700)
    for path in cli.home.iterdir():
        path.chmod(0o600)
    before = cli.ok("id", "--json").json["id"]
    made = cli.ok("vault", "init", "--json").json
    assert (Path(made["backup"]) / "node.key").exists()
    assert cli.ok("id", "--json").json["id"] == before
    assert cli.ok("vault", "status", "--json").json["vault_id"] == made["vault_id"]
    assert "has a vault already" in cli.fails(1, "vault", "init").err


def test_an_idle_node_locks_itself(made: Cli) -> None:
    (made.home / "node.toml").write_text("[vault]\nlock_after_s = 1\n")
    with running_node(made.home):
        wait_until(lambda: made.ok("vault", "status", "--json").json["unlocked"] is False)
        made.fails(4, "vault", "list")

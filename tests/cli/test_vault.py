"""``alknet vault`` on a home whose node does not run: what people type, and what they are told."""

from __future__ import annotations

import base64
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pyrage
import pytest
import trio

from alknet.core.config import load_config
from alknet.stores.credentials import Credentials
from alknet.stores.home import open_home_identities
from alknet.vault import durable
from alknet.vault.homevault import home_vault, open_home_vault
from tests.cli.homes import WORDS
from tests.cli.kit import PATIENCE_S, Cli, process, terminal

PASSPHRASE = "correct horse"
SHARED = ("--threshold", "2", "--count", "3")


@pytest.fixture
def kept(made: Cli) -> Cli:
    """A home with a secret ``mail/smtp``."""
    made.ok("vault", "put", "mail/smtp", stdin="hunter2\n")
    return made


def passphrase(tmp_path: Path, text: str = PASSPHRASE) -> tuple[str, Path]:
    path = tmp_path / f"{text[:7]}.txt"
    path.write_text(f"{text}\n")
    return "--passphrase-file", path


def add_passphrase(cli: Cli, tmp_path: Path) -> str:
    _, path = passphrase(tmp_path)
    added = cli.ok("vault", "slots", "add", "passphrase", "--new-passphrase-file", path, "--json")
    return str(added.json["id"])


def lock_out(cli: Cli, tmp_path: Path) -> None:
    """Leave a passphrase as the only way in."""
    add_passphrase(cli, tmp_path)
    first = cli.ok("vault", "slots", "list", "--json").json["slots"][0]["id"]
    cli.ok("vault", "slots", "remove", first)


def test_a_secret_comes_back_as_it_was_put(made: Cli, tmp_path: Path) -> None:
    assert made.ok("vault", "put", "mail/smtp", stdin="hunter2\n").out.strip() == (
        "mail/smtp: version 1 stored"
    )
    assert made.ok("vault", "get", "mail/smtp").out == "hunter2"
    file = tmp_path / "key"
    file.write_bytes(b"\x00\xff\n")
    assert made.ok("vault", "put", "tls/key", "--from-file", file, "--json").json == {
        "path": "tls/key",
        "version": 1,
    }
    got = made.ok("vault", "get", "tls/key", "--json").json
    assert base64.b64decode(got["value"]) == b"\x00\xff\n"


def test_versions_expectations_and_expiry(kept: Cli) -> None:
    kept.ok("vault", "put", "mail/smtp", "--expect", 1, stdin="two")
    error = kept.fails(1, "vault", "put", "mail/smtp", "--expect", 1, "--json", stdin="x").error
    assert (error["code"], error["message"]) == ("CONFLICT", "mail/smtp is at version 2, not 1")
    assert kept.ok("vault", "get", "mail/smtp", "--version", 1).out == "hunter2"
    kept.ok("vault", "put", "short", "--expires", "30d", stdin="x")
    rows = kept.ok("vault", "list", "--json").json["secrets"]
    assert [(row["path"], row["expires_at"] is None) for row in rows] == [
        ("mail/smtp", True),
        ("short", False),
    ]
    assert "hunter2" not in kept.ok("vault", "list").out
    kept.ok("vault", "remove", "mail/smtp", "--version", 1)
    assert "no version 1" in kept.fails(1, "vault", "get", "mail/smtp", "--version", 1).err
    kept.ok("vault", "remove", "mail/smtp")
    error = kept.fails(1, "vault", "get", "mail/smtp", "--json").error
    assert (error["code"], error["message"]) == (
        "NOT_FOUND",
        "no secret 'mail/smtp': 'alknet vault list' shows them",
    )


def test_mistakes_are_explained(made: Cli) -> None:
    assert "no path of a secret" in made.fails(1, "vault", "put", "Mail", stdin="x").err
    assert "no secret in it" in made.fails(2, "vault", "put", "a").err
    assert "not NAME=PATH" in made.fails(2, "vault", "run", "--secret", "x", "--", "true").err
    assert "never one" in made.fails(2, "vault", "slots", "add", "passphrase", "secret").err
    assert "FILE" in made.fails(2, "vault", "slots", "add", "key-file").err
    assert "age recipient" in made.fails(1, "vault", "slots", "add", "age", "bob").err
    assert "no slot 00000000" in made.fails(1, "vault", "slots", "remove", "00000000").err


def test_a_home_without_a_node_or_a_vault_says_what_to_do(cli: Cli) -> None:
    assert "alknet init" in cli.fails(1, "vault", "list").err


def test_rotation_moves_everything_or_says_what_it_left(kept: Cli) -> None:
    assert kept.ok("vault", "rotate", "--json").json == {"kek_version": 3}
    assert kept.ok("vault", "rewrap", "--json").json == {"rewrapped": 1, "retired": False}
    assert "all are under it" in kept.ok("vault", "rewrap", "--retire").out
    assert kept.ok("vault", "verify", "--json").json == {"ok": True, "values": 1, "damaged": []}
    assert kept.ok("vault", "get", "mail/smtp").out == "hunter2"


# What opens it.


def test_without_a_node_credentials_follow_a_rotation_too(kept: Cli) -> None:
    vault = home_vault(kept.home, now=1.0)
    sealed = vault.encrypt("mail/imap", b"secret")

    async def credential(store: str | None = None) -> str | None:
        config = load_config(kept.home / "node.toml")
        async with open_home_identities(kept.home, config) as identities:
            if store is not None:
                await Credentials(identities).put("mail", "imap", store)
            return Credentials(identities).get("mail", "imap")

    trio.run(credential, sealed)
    kept.ok("vault", "rotate")
    assert kept.ok("vault", "rewrap", "--retire", "--json").json["rewrapped"] == 2
    with vault.decrypt("mail/imap", trio.run(credential) or "") as value:
        assert bytes(value.view) == b"secret"
    vault.lock()


def test_a_wrong_passphrase_is_refused_and_says_what_opens_it(kept: Cli, tmp_path: Path) -> None:
    lock_out(kept, tmp_path)
    assert not (kept.home / "vault.key").exists()
    result = kept.fails(3, "vault", "get", "mail/smtp", *passphrase(tmp_path, "wrong horse"))
    assert result.err == (
        "error: WRONG_KEY: wrong passphrase: it opens no slot of this vault\n"
        "hint: 'alknet vault slots list' shows what opens it; --words-file with the 24 words does, "
        "too\n"
    )
    assert kept.ok("vault", "get", "mail/smtp", *passphrase(tmp_path)).out == "hunter2"


def test_without_anything_that_opens_it_the_hint_says_what_would(kept: Cli, tmp_path: Path) -> None:
    lock_out(kept, tmp_path)
    for command in (("vault", "list"), ("up",)):
        result = kept.fails(4, *command)
        assert "the vault is locked, and needs one of: passphrase" in result.err
        assert "--unlock-file, --passphrase-file" in result.err


def test_a_key_file_elsewhere_opens_it(kept: Cli, tmp_path: Path) -> None:
    stick = tmp_path / "stick.key"
    kept.ok("vault", "slots", "add", "key-file", stick)
    (kept.home / "vault.key").unlink()
    assert kept.ok("vault", "get", "mail/smtp", "--unlock-file", stick).out == "hunter2"
    stick.chmod(0o644)
    assert "chmod 600" in kept.fails(1, "vault", "list", "--unlock-file", stick).err


def test_an_age_identity_opens_it(kept: Cli, tmp_path: Path) -> None:
    identity = pyrage.x25519.Identity.generate()
    (tmp_path / "age.key").write_text(f"# mine\n{identity}\n")
    kept.ok("vault", "slots", "add", "age", identity.to_public(), "--label", "laptop")
    assert "laptop" in kept.ok("vault", "slots", "list").out
    (kept.home / "vault.key").unlink()
    got = kept.ok("vault", "get", "mail/smtp", "--age-identity", tmp_path / "age.key")
    assert got.out == "hunter2"
    (tmp_path / "none").write_text("x")
    assert (
        "no age identity" in kept.fails(1, "vault", "list", "--age-identity", tmp_path / "none").err
    )


def test_the_words_open_it_when_nothing_else_does(made: Cli, tmp_path: Path) -> None:
    made.ok("vault", "put", "a", stdin="secret")
    (made.home / "vault.key").unlink()
    words = made.home.with_name("words")  # of the home's own `init`
    made.fails(4, "vault", "get", "a")
    assert made.ok("vault", "get", "a", "--words-file", words).out == "secret"
    assert (
        made.ok("vault", "get", "a", "--words-file", "-", stdin=words.read_text()).out == "secret"
    )
    _, chosen = passphrase(tmp_path)
    given = ("--new-passphrase-file", chosen, "--words-file", words)
    made.ok("vault", "slots", "add", "passphrase", *given)
    assert made.ok("vault", "get", "a", *passphrase(tmp_path)).out == "secret"
    made.ok("vault", "shares", "split", *SHARED, "--dir", tmp_path / "s", "--words-file", words)
    both = "".join((tmp_path / "s" / name).read_text() for name in ("1.txt", "3.txt"))
    assert made.ok("vault", "get", "a", "--shares-file", "-", stdin=both).out == "secret"


def test_words_of_another_vault_are_refused(kept: Cli, tmp_path: Path) -> None:
    (tmp_path / "other").write_text(WORDS)
    given = ("--words-file", tmp_path / "other")
    for command in (
        ("get", "mail/smtp"),
        ("slots", "add", "key-file", tmp_path / "k"),
        ("shares", "split", *SHARED, "--dir", tmp_path / "s"),
        ("export", tmp_path / "e", "--plain"),
    ):
        result = kept.fails(3, "vault", *command, *given)
        assert "error: WRONG_KEY: these are the words of another vault" in result.err
    assert not any((tmp_path / name).exists() for name in "kse")
    one = (kept.home.parent / "one").resolve()
    kept.ok(
        "vault", "shares", "split", *SHARED, "--dir", one, "--unlock-file", kept.home / "vault.key"
    )
    err = kept.fails(1, "vault", "list", "--shares-file", one / "1.txt").err
    assert "too few shares: 2 are needed, 1 given" in err


def test_the_last_slot_stays(kept: Cli) -> None:
    (slot,) = kept.ok("vault", "slots", "list", "--json").json["slots"]
    result = kept.fails(1, "vault", "slots", "remove", slot["id"])
    assert "this is the last slot: add another one first" in result.err
    assert (kept.home / "vault.key").exists()


@pytest.mark.slow
def test_a_passphrase_is_asked_for_on_a_terminal_and_again_after_a_mistake(
    kept: Cli, tmp_path: Path
) -> None:
    lock_out(kept, tmp_path)
    with terminal("vault", "get", "mail/smtp", "--show", home=kept.home) as screen:
        screen.expect("passphrase of the vault: ")
        screen.type("wrong horse\r")
        screen.expect("wrong passphrase.*Once more")
        screen.expect("passphrase of the vault: ")
        screen.type(f"{PASSPHRASE}\r")
        screen.expect("hunter2")
        assert screen.end() == 0
    with terminal("vault", "list", home=kept.home) as screen:
        screen.expect("passphrase of the vault: ")
        assert screen.interrupt() == 130


@pytest.mark.slow
def test_a_secret_reaches_a_terminal_only_when_asked_to(kept: Cli) -> None:
    with terminal("vault", "get", "mail/smtp", home=kept.home) as screen:
        screen.expect("--show prints the secret there")
        assert screen.end() == 2
        assert "hunter2" not in screen.seen
    with terminal("vault", "put", "typed", home=kept.home) as screen:
        screen.expect("secret: ")
        screen.type("from the keyboard\r")
        screen.expect("version 1 stored")
        assert screen.end() == 0
        assert "keyboard" not in screen.seen
    assert kept.ok("vault", "get", "typed").out == "from the keyboard"


# What can happen to the file.


def test_a_truncated_vault_names_the_generation_before(kept: Cli) -> None:
    path = kept.home / "vault.alk"
    path.write_bytes(path.read_bytes()[:60])
    err = kept.fails(1, "vault", "list").err
    assert "the file is cut short; the generation before is in" in err
    assert "vault.alk.prev" in err


def test_swapped_records_are_noticed(kept: Cli) -> None:
    kept.ok("vault", "put", "mail/imap", stdin="other")
    vault = home_vault(kept.home, now=1.0)
    secrets = vault._index.secrets
    first, second = secrets["mail/imap"], secrets["mail/smtp"]
    vault._write(secrets={"mail/imap": second, "mail/smtp": first})
    err = kept.fails(1, "vault", "get", "mail/smtp").err
    assert err == "error: DAMAGED: encrypted data is damaged, or belongs somewhere else\n"
    result = kept.fails(1, "vault", "verify")
    assert "these do not open: mail/imap@1, mail/smtp@1" in result.err
    assert "put them anew, or restore a backup" in result.err


def test_an_altered_file_is_noticed(kept: Cli) -> None:
    path = kept.home / "vault.alk"
    data = path.read_bytes()
    path.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    err = kept.fails(1, "vault", "list").err
    assert "it is the key of another vault, or the file was altered; the generation before" in err


def test_an_old_copy_in_the_file_s_place_is_noticed_until_it_is_accepted(kept: Cli) -> None:
    kept.ok("vault", "put", "mail/smtp", stdin="new")
    shutil.copy(kept.home / "vault.alk.prev", kept.home / "vault.alk")
    err = kept.fails(1, "vault", "get", "mail/smtp").err
    assert "an old copy has taken its place" in err
    assert "'alknet vault verify --accept-older' goes on with it" in err
    assert "1 of 1 values open" in kept.ok("vault", "verify", "--accept-older").out
    assert kept.ok("vault", "get", "mail/smtp").out == "hunter2"


def test_a_full_disk_changes_nothing(kept: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(durable, "write_private", fail)
    err = kept.fails(1, "vault", "put", "a", stdin="x").err
    assert "nothing was changed: No space left on device" in err
    monkeypatch.undo()
    assert [one["path"] for one in kept.ok("vault", "list", "--json").json["secrets"]] == [
        "mail/smtp"
    ]


def test_a_generation_that_cannot_be_noted_is_a_warning(kept: Cli) -> None:
    (kept.home / "vault.seen").unlink()
    (kept.home / "vault.seen").mkdir()
    result = kept.ok("vault", "verify")
    assert result.out == "1 of 1 values open\n"
    assert "warning vault.generation_not_noted" in result.err


@pytest.mark.slow
def test_many_processes_that_write_at_once_lose_nothing(kept: Cli) -> None:
    script = (
        "import sys; from pathlib import Path; from alknet.vault.homevault import home_vault\n"
        "vault = home_vault(Path(sys.argv[1]), now=1.0)\n"
        "for n in range(8): vault.put(f'{sys.argv[2]}/{n}', b'x', now=1.0)\n"
    )
    writers = [
        subprocess.Popen([sys.executable, "-c", script, str(kept.home), name])
        for name in ("a", "b", "c")
    ]
    assert [writer.wait(PATIENCE_S) for writer in writers] == [0, 0, 0]
    paths = [one["path"] for one in kept.ok("vault", "list", "--json").json["secrets"]]
    assert len(paths) == 1 + 3 * 8
    assert "25 of 25 values open" in kept.ok("vault", "verify").out


# Stops before the N-th file takes its name, until a line comes.
INTERRUPTIBLE = """
import os, sys
from alknet.cli.app import main

left, replace = int(sys.argv[1]), os.replace

def stopping(*names):
    global left
    left -= 1
    if left == 0:
        os.write(1, b"now\\n")
        os.read(0, 1)
    return replace(*names)

os.replace = stopping
main(sys.argv[2:])
"""


@pytest.mark.slow
@pytest.mark.parametrize("step", [1, 2, 3], ids=["the copy", "the vault", "the note"])
@pytest.mark.parametrize("command", ["rotate", "rewrap"])
def test_ctrl_c_amid_a_rotation_leaves_it_whole(kept: Cli, command: str, step: int) -> None:
    before = kept.ok("vault", "status", "--json").json["generation"]
    arguments = [str(step), "--home", str(kept.home), "vault", command]
    with subprocess.Popen(
        [sys.executable, "-c", INTERRUPTIBLE, *arguments],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as running:
        assert running.stdout is not None
        assert running.stdout.readline() == b"now\n"
        running.send_signal(signal.SIGINT)
        _, err = running.communicate(b"\n", timeout=PATIENCE_S)
    assert running.returncode in {0, 130}  # what was begun is done, and may be said
    assert b"Traceback" not in err
    assert kept.ok("vault", "status", "--json").json["generation"] == before + 1
    assert kept.ok("vault", "get", "mail/smtp").out == "hunter2"


# What leaves it.


def test_an_export_needs_an_unlock_of_its_own(kept: Cli, tmp_path: Path) -> None:
    file = tmp_path / "out.json"
    error = kept.fails(3, "vault", "export", file, "--plain", "--json").error
    assert error["message"] == "an export needs an unlock of its own"
    assert not file.exists()
    assert "--recipient" in kept.fails(2, "vault", "export", file).err
    given = ("--unlock-file", kept.home / "vault.key")
    kept.ok("vault", "export", file, "--plain", *given)
    assert file.stat().st_mode & 0o777 == 0o600
    (secret,) = json.loads(file.read_text())["secrets"]
    assert base64.b64decode(secret["value"]) == b"hunter2"
    kept.fails(1, "vault", "export", file, "--plain", *given)  # never overwritten


def test_an_export_goes_into_another_vault(kept: Cli, tmp_path: Path) -> None:
    identity = pyrage.x25519.Identity.generate()
    (tmp_path / "age.key").write_text(f"{identity}\n")
    file, other = tmp_path / "out.age", tmp_path / "other"
    given = ("--unlock-file", kept.home / "vault.key")
    kept.ok("vault", "export", file, "--recipient", identity.to_public(), *given)
    assert b"hunter2" not in file.read_bytes()
    kept.ok("init", "--words-file", tmp_path / "words2", home=other)
    assert "name an age identity" in kept.fails(1, "vault", "import", file, home=other).err
    opened = ("vault", "import", file, "--decrypt-with", tmp_path / "age.key")
    assert kept.ok(*opened, "--json", home=other).json == {"secrets": 1}
    assert kept.ok("vault", "get", "mail/smtp", home=other).out == "hunter2"
    assert "exist already: mail/smtp" in kept.fails(1, *opened, home=other).err
    kept.ok(*opened, "--replace", home=other)
    (tmp_path / "words3").write_text("{}")
    assert "no export" in kept.fails(1, "vault", "import", tmp_path / "words3").err


def test_shares_restore_the_words(kept: Cli, tmp_path: Path) -> None:
    numbers = ("--threshold", 2, "--count", 3)
    kept.fails(3, "vault", "shares", "split", *numbers, "--dir", tmp_path / "shares")
    kept.fails(2, "vault", "shares", "split", *numbers)
    given = ("--unlock-file", kept.home / "vault.key")
    kept.ok("vault", "shares", "split", *numbers, "--dir", tmp_path / "shares", *given)
    files = [tmp_path / "shares" / f"{number}.txt" for number in (3, 1)]
    assert {file.stat().st_mode & 0o777 for file in files} == {0o600}
    again = ("--words-file", tmp_path / "again")
    assert "too few" in kept.fails(1, "vault", "shares", "combine", files[0], *again).err
    kept.ok("vault", "shares", "combine", *files, *again)
    assert (tmp_path / "again").read_text() == (tmp_path / "words").read_text()


@pytest.mark.slow
def test_a_command_gets_the_secrets_that_are_named_and_no_others(kept: Cli) -> None:
    kept.ok("vault", "put", "other", stdin="unnamed")
    command = ("vault", "run", "--secret", "SMTP=mail/smtp", "--", "env")
    with process(*command, home=kept.home, KEPT="1") as running:
        ended = running.end()
    assert ended.status == 0, ended.err
    assert {"SMTP=hunter2", "KEPT=1"} <= set(ended.out.split())
    assert "unnamed" not in ended.out
    for program, status in (("no-such-program", 127), (kept.home / "vault.key", 126)):
        with process("vault", "run", "--", program, home=kept.home) as running:
            ended = running.end()
        assert ended.status == status
        assert f"cannot run {program}" in ended.err
    with process("vault", "run", "--", "sh", "-c", "yes | head -1", home=kept.home) as running:
        assert (running.end().out, running.end().err) == ("y\n", "")  # SIGPIPE ends 'yes'


@pytest.mark.slow
def test_a_command_that_is_nowhere_is_not_there_whatever_else_the_path_holds(
    kept: Cli, tmp_path: Path
) -> None:
    (tmp_path / "no-such-program").mkdir()  # as refused as what lies where we may not look
    command = ("vault", "run", "--", "no-such-program")
    with process(*command, home=kept.home, PATH=f"{tmp_path}:/bin") as running:
        ended = running.end()
    assert ended.status == 127
    assert "cannot run no-such-program: no such file" in ended.err


def test_a_variable_holds_one_secret(kept: Cli) -> None:
    twice = ("--secret", "A=mail/smtp", "--secret", "A=other")
    assert "A is named twice" in kept.fails(2, "vault", "run", *twice, "--", "true").err


def test_a_secret_with_a_zero_byte_fits_no_variable(made: Cli, tmp_path: Path) -> None:
    (tmp_path / "zero").write_bytes(b"a\0b")
    made.ok("vault", "put", "zero", "--from-file", tmp_path / "zero")
    err = made.fails(1, "vault", "run", "--secret", "Z=zero", "--", "true").err
    assert "a zero byte" in err


def test_status_says_what_opens_it(kept: Cli) -> None:
    found = kept.ok("vault", "status", "--json").json
    header = open_home_vault(kept.home).header
    assert found["vault_id"] == header.vault_id.hex()
    assert (found["unlocked"], found["kek_version"]) == (None, 2)
    assert "key-file, the 24 words" in kept.ok("vault", "status").out
    for command in ("lock", "unlock"):
        assert "nothing to lock or unlock" in kept.fails(4, "vault", command).err


def test_the_environment_names_a_key_file(kept: Cli, tmp_path: Path) -> None:
    (kept.home / "vault.key").rename(tmp_path / "elsewhere")
    with process("vault", "list", home=kept.home) as running:
        assert running.end().status == 4
    given = os.fspath(tmp_path / "elsewhere")
    with process("vault", "get", "mail/smtp", home=kept.home, ALKNET_UNLOCK_FILE=given) as running:
        assert running.end().out == "hunter2"


def test_a_lost_vault_is_no_reason_to_make_another_node(kept: Cli, tmp_path: Path) -> None:
    vault, before = kept.home / "vault.alk", kept.home / "vault.alk.prev"
    vault.unlink()
    for command in (("vault", "list"), ("vault", "status"), ("id",), ("up",), ("key", "history")):
        err = kept.fails(1, *command).err
        assert f"{vault} is gone; the generation before is in {before}" in err
    assert "holds a node already" in kept.fails(1, "init", "--words-file", tmp_path / "w").err
    assert not (tmp_path / "w").exists()
    shutil.copy(before, vault)
    kept.ok("vault", "verify", "--accept-older")
    kept.ok("vault", "list")

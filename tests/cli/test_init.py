from __future__ import annotations

import os
import signal
import stat
from pathlib import Path
from types import ModuleType

import pytest

from alknet.cli.init import Plan, _commit, make_home
from alknet.cli.running import uninterrupted
from alknet.core.config import check_config
from alknet.errors import Conflict, StoreError
from alknet.vault import durable, homevault
from alknet.vault.derive import identity_key
from alknet.vault.homevault import home_identity, open_home_vault
from alknet.vault.unlock import UnlockWith
from alknet.vault.words import check_words, generate_words
from tests.cli.kit import MADE, Cli, all_files, terminal


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_the_words_file_holds_the_words_of_the_key(cli: Cli, tmp_path: Path) -> None:
    words_file = tmp_path / "words"
    made = cli.ok("init", "--words-file", words_file, "--json").json
    words = check_words(words_file.read_text())
    assert len(words.split()) == 24
    assert words_file.read_text() == words + "\n"
    assert mode(words_file) == 0o600
    key = identity_key(words)
    assert home_identity(cli.home).private_bytes_raw() == key.private_bytes_raw()
    assert set(made) == {"id", "fingerprint", "home", "config", "words_file"}
    assert made["fingerprint"] == f"ed25519:{key.public_key().public_bytes_raw().hex()}"


def test_the_home_is_private_and_its_config_good(made: Cli) -> None:
    assert mode(made.home) == 0o700
    assert all_files(made.home) == MADE
    assert {mode(made.home / name) for name in MADE} == {0o600}
    assert check_config(made.home / "node.toml") == []
    assert "[limits]" in (made.home / "node.toml").read_text()


def test_restore_gives_the_same_node(made: Cli, tmp_path: Path) -> None:
    again = tmp_path / "again"
    made.ok("init", "--restore", "--words-file", tmp_path / "words", home=again)
    first, second = made.ok("id", "--json").json, made.ok("id", "--json", home=again).json
    assert first["id"] == second["id"]


def test_restore_reads_words_from_a_pipe(cli: Cli) -> None:
    cli.ok("init", "--restore", stdin=generate_words() + "\n")
    assert (cli.home / "vault.alk").exists()


def test_restore_enforces_the_checksum_and_makes_nothing(cli: Cli, tmp_path: Path) -> None:
    result = cli.fails(1, "init", "--restore", stdin="abandon " * 24)
    assert "checksum" in result.err
    assert "abandon" not in result.err
    assert all_files(tmp_path) == set()


def test_a_home_with_a_key_is_left_alone(made: Cli, tmp_path: Path) -> None:
    before = (made.home / "vault.alk").read_bytes()
    result = made.fails(1, "init", "--words-file", tmp_path / "other", "--json")
    assert result.error["code"] == "CONFLICT"
    assert (made.home / "vault.alk").read_bytes() == before
    assert not (tmp_path / "other").exists()


def test_words_are_not_printed_into_a_pipe(cli: Cli, tmp_path: Path) -> None:
    result = cli.fails(2, "init")
    assert "--words-file" in result.err
    assert result.out == ""
    assert all_files(tmp_path) == set()


def test_json_asks_for_the_words_in_a_pipe(cli: Cli) -> None:
    words = cli.ok("init", "--json").json["words"]
    assert identity_key(words).private_bytes_raw() == home_identity(cli.home).private_bytes_raw()


def test_an_existing_words_file_is_not_overwritten(cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "words").write_text("mine")
    cli.fails(2, "init", "--words-file", tmp_path / "words")
    assert (tmp_path / "words").read_text() == "mine"
    assert not cli.home.exists()


def test_a_config_that_is_there_already_stays(cli: Cli, tmp_path: Path) -> None:
    cli.home.mkdir(mode=0o700)
    (cli.home / "node.toml").write_text("# mine\n")
    cli.ok("init", "--words-file", tmp_path / "words")
    assert (cli.home / "node.toml").read_text() == "# mine\n"


def test_a_home_open_to_others_is_refused_and_no_words_are_left(cli: Cli, tmp_path: Path) -> None:
    cli.home.mkdir()
    (cli.home / "file").touch()
    cli.home.chmod(0o755)
    assert "chmod 700" in cli.fails(1, "init", "--words-file", tmp_path / "words").err
    assert all_files(tmp_path) == {"home", "home/file"}


def test_a_home_that_cannot_be_made_leaves_no_words(cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    home = tmp_path / "file" / "home"
    cli.fails(1, "init", "--words-file", tmp_path / "words", home=home)
    assert all_files(tmp_path) == {"file"}


def test_a_failure_amid_the_work_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(homevault, "create_vault", fail)
    words, words_file = generate_words(), tmp_path / "words"
    with pytest.raises(StoreError, match="No space left"):
        _commit(tmp_path / "home", words, Plan(), words_file=words_file)
    assert all_files(tmp_path) == set()


@pytest.mark.parametrize(
    ("module", "step"), [(durable, "write_private"), (homevault, "create_vault")]
)
def test_of_two_that_fill_one_home_the_one_that_is_late_takes_nothing_away(
    module: ModuleType, step: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = tmp_path / "home"
    home.mkdir(mode=0o700)
    go_on, made = getattr(module, step), []

    def be_late(*args: object, **more: object) -> object:
        monkeypatch.undo()
        made.append(make_home(home, generate_words()))
        return go_on(*args, **more)

    monkeypatch.setattr(module, step, be_late)
    with pytest.raises(Conflict, match="a vault is never replaced"):
        make_home(home, generate_words())
    assert (home / "node.toml").exists()
    assert [open_home_vault(home).header.public_key] == [bytes(node) for node in made]


def test_who_is_late_leaves_no_words_of_a_node_that_is_not_there(tmp_path: Path) -> None:
    node = make_home(tmp_path / "home", generate_words())
    with pytest.raises(Conflict):
        _commit(tmp_path / "home", generate_words(), Plan(), words_file=tmp_path / "words")
    assert not (tmp_path / "words").exists()
    assert open_home_vault(tmp_path / "home").header.public_key == bytes(node)


def test_a_signal_amid_the_work_acts_when_the_work_is_whole(tmp_path: Path) -> None:
    done = []
    with pytest.raises(KeyboardInterrupt):  # noqa: PT012
        with uninterrupted():
            os.kill(os.getpid(), signal.SIGINT)
            done.append("work")
    assert done == ["work"]
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


@pytest.mark.slow
def test_words_are_shown_once_on_a_terminal(tmp_path: Path) -> None:
    home = tmp_path / "home"
    with terminal("init", home=home) as screen:
        screen.expect("restore your node")
        screen.expect("24 [a-z]+")
        assert not home.exists()
        screen.expect("Press Enter")
        screen.type("\r")
        screen.expect("alknet up")
        assert screen.end() == 0
    assert all_files(tmp_path) == {"home"} | {f"home/{name}" for name in MADE}


@pytest.mark.slow
def test_ctrl_c_at_the_words_leaves_nothing(tmp_path: Path) -> None:
    with terminal("init", home=tmp_path / "home") as screen:
        screen.expect("Press Enter")
        assert screen.interrupt() == 130
    assert all_files(tmp_path) == set()


@pytest.mark.slow
def test_ctrl_c_at_the_question_for_words_leaves_nothing(tmp_path: Path) -> None:
    with terminal("init", "--restore", home=tmp_path / "home") as screen:
        screen.expect("words: ")
        screen.type("abandon ability\r")
        screen.expect("2 so far")
        assert screen.interrupt() == 130
        assert "ability" not in screen.seen
    assert all_files(tmp_path) == set()


@pytest.mark.slow
def test_words_are_asked_for_without_echo_and_again_after_a_mistake(tmp_path: Path) -> None:
    home, words = tmp_path / "home", generate_words()
    with terminal("init", "--restore", home=home) as screen:
        screen.expect("words: ")
        screen.type("abandon " * 24 + "\r")
        screen.expect("checksum.*Once more")
        screen.expect("words: ")
        half = len(words) // 2
        split = words.index(" ", half)
        screen.type(words[:split] + "\r")
        screen.expect("so far")
        screen.type(words[split:] + "\r")
        screen.expect("alknet up")
        assert screen.end() == 0
    assert home_identity(home).private_bytes_raw() == identity_key(words).private_bytes_raw()


def test_devices_of_the_same_words_have_node_ids_of_their_own(made: Cli, tmp_path: Path) -> None:
    words = tmp_path / "words"
    ids = {made.ok("id", "--json").json["id"]}
    for number in (1, 2):
        home = tmp_path / str(number)
        arguments = ("init", "--restore", "--words-file", words, "--device", number, "--json")
        said = made.ok(*arguments, home=home).json["id"]
        assert made.ok("id", "--json", home=home).json["id"] == said
        ids.add(said)
    assert len(ids) == 3
    made.fails(2, "init", "--device", -1, home=tmp_path / "x")


def test_json_tells_the_id_of_the_device(cli: Cli) -> None:
    said = cli.ok("init", "--json", "--device", 3).json["id"]
    assert cli.ok("id", "--json").json["id"] == said


def test_a_passphrase_opens_the_vault_beside_or_instead_of_the_key_file(
    cli: Cli, tmp_path: Path
) -> None:
    (tmp_path / "passphrase").write_text("correct horse\n")
    given = ("--passphrase-file", tmp_path / "passphrase")
    for name, extra, kinds in (
        ("both", (), ["key-file", "passphrase"]),
        ("one", ("--no-key-file",), ["passphrase"]),
    ):
        home = tmp_path / name
        cli.ok("init", "--words-file", tmp_path / f"{name}.words", *given, *extra, home=home)
        assert [slot.kind.value for slot in open_home_vault(home).header.slots] == kinds
    assert not (tmp_path / "one" / "vault.key").exists()
    cli.ok("id", home=tmp_path / "one")  # needs no secret


def test_without_a_terminal_a_passphrase_comes_from_a_file(cli: Cli, tmp_path: Path) -> None:
    result = cli.fails(2, "init", "--words-file", tmp_path / "words", "--no-key-file")
    assert "--passphrase-file" in result.err
    assert all_files(tmp_path) == set()


def test_a_short_passphrase_makes_nothing(cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "passphrase").write_text("short\n")
    given = ("--passphrase-file", tmp_path / "passphrase")
    result = cli.fails(1, "init", "--words-file", tmp_path / "words", *given)
    assert "at least 8 characters" in result.err
    assert all_files(tmp_path) == {"passphrase"}


@pytest.mark.slow
def test_a_new_passphrase_is_asked_for_twice(tmp_path: Path) -> None:
    home = tmp_path / "home"
    arguments = ("init", "--words-file", tmp_path / "words", "--no-key-file")
    with terminal(*arguments, home=home) as screen:
        for first, second in (("correct horse", "correct house"), ("battery staple",) * 2):
            screen.expect("new passphrase: ")
            screen.type(f"{first}\r")
            screen.expect("once more: ")
            screen.type(f"{second}\r")
        screen.expect("alknet up")
        assert screen.end() == 0
        assert "staple" not in screen.seen
    passphrase = UnlockWith(passphrase=bytearray(b"battery staple"))
    key = home_identity(home, passphrase)
    assert (
        key.private_bytes_raw()
        == identity_key((tmp_path / "words").read_text()).private_bytes_raw()
    )

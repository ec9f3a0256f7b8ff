"""A backup opens with age alone, and a restored home is the same node."""

from __future__ import annotations

import stat
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import apsw
import pyrage
import pytest

from alknet.core.nodeid import NodeId
from alknet.stores.backup import archive_home
from alknet.vault.archive import decode_archive_untrusted
from alknet.vault.homevault import open_home_vault
from alknet.vault.recovery import split_into_shares
from alknet.vault.slots import SlotKind, age_slot, passphrase_slot
from alknet.vault.unlock import HOME_KEY_FILE
from alknet.vault.vault import Vault
from tests.cli.homes import ENTROPY, WORDS, make_vault_home, open_vault
from tests.cli.kit import PATIENCE_S, Cli, all_files, running_node, terminal
from tests.vault.test_unlock import CHEAP

PASSPHRASE = "correct horse battery"
SECRET = "web/token"


@contextmanager
def vault_of(home: Path) -> Iterator[Vault]:
    vault = open_vault(home)
    try:
        yield vault
    finally:
        vault.lock()


@pytest.fixture
def source(cli: Cli) -> Cli:
    """A home with a vault that holds a secret."""
    make_vault_home(cli.home)
    with vault_of(cli.home) as vault:
        vault.put(SECRET, b"hidden", now=1.0)
    return cli


class Backup:
    """One that was made to a fresh identity."""

    def __init__(self, cli: Cli, directory: Path) -> None:
        identity = pyrage.x25519.Identity.generate()
        self.file = directory / "node.age"
        self.identity_file = directory / "id.txt"
        self.identity_file.write_text(f"# created: today\n{identity}\n")
        self.recipient = str(identity.to_public())
        self.report = cli.ok("backup", self.file, "--recipient", self.recipient, "--json").json
        self.words = directory / "words"
        self.words.write_text(WORDS)

    @property
    def restore(self) -> tuple[object, ...]:
        return ("restore", self.file, "--identity", self.identity_file)


@pytest.fixture
def made_backup(source: Cli, tmp_path: Path) -> Backup:
    return Backup(source, tmp_path)


def node_id(home: Path) -> str:
    return str(NodeId(open_home_vault(home).header.public_key))


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_restore_gives_the_same_node_and_secrets(
    source: Cli, made_backup: Backup, tmp_path: Path
) -> None:
    home = tmp_path / "new" / "home"
    words = ("--words-file", made_backup.words)
    made = source.ok(*made_backup.restore, *words, "--json", home=home).json
    assert made["id"] == node_id(source.home) == node_id(home)
    with vault_of(home) as vault, vault.get(SECRET, now=2.0) as value:
        assert bytes(value.view) == b"hidden"
    assert (home / "node.toml").read_bytes() == (source.home / "node.toml").read_bytes()
    assert mode(home) == 0o700
    assert {mode(path) for path in home.iterdir()} == {0o600}
    last = source.ok("audit", "--json", home=home).lines[-1]
    assert (last["action"], last["target"]) == ("home.restore", str(made_backup.file))
    source.ok("audit", "--verify", home=home)


def test_a_backup_is_private_and_says_what_opens_it(made_backup: Backup) -> None:
    assert mode(made_backup.file) == 0o600
    assert made_backup.report == {
        "file": str(made_backup.file),
        "bytes": made_backup.file.stat().st_size,
        "opened_by": ["words"],
    }


def test_the_key_file_is_not_in_a_backup(source: Cli) -> None:
    key = (source.home / HOME_KEY_FILE).read_bytes()
    assert key not in archive_home(source.home)


def test_the_old_key_file_does_not_open_a_restored_home(
    source: Cli, made_backup: Backup, tmp_path: Path
) -> None:
    home = tmp_path / "new"
    source.ok(*made_backup.restore, "--words-file", made_backup.words, home=home)
    assert (home / HOME_KEY_FILE).read_bytes() != (source.home / HOME_KEY_FILE).read_bytes()
    kinds = [slot.kind for slot in open_home_vault(home).header.slots]
    assert kinds == [SlotKind.KEY_FILE]
    assert not (home / "vault.alk.prev").exists()


def test_shares_a_passphrase_and_a_key_file_open_it_too(source: Cli, tmp_path: Path) -> None:
    with vault_of(source.home) as vault:
        secret = bytearray(PASSPHRASE.encode())
        vault.add_slot(lambda i, root: passphrase_slot(i, root, secret, cost=CHEAP))
    made = Backup(source, tmp_path)
    assert made.report["opened_by"] == ["words", "passphrase"]
    shares = tmp_path / "shares"
    shares.write_text("\n\n".join(split_into_shares(memoryview(ENTROPY), threshold=2, count=3)[1:]))
    passphrase = tmp_path / "passphrase"
    passphrase.write_text(PASSPHRASE + "\n")
    ways = {
        "--shares-file": shares,
        "--vault-passphrase-file": passphrase,
        "--unlock-file": source.home / HOME_KEY_FILE,
    }
    for option, file in ways.items():
        home = tmp_path / option.strip("-")
        source.ok(*made.restore, option, file, home=home)
        assert node_id(home) == node_id(source.home)


def test_the_identity_of_the_backup_may_be_the_vaults_too(source: Cli, tmp_path: Path) -> None:
    identity = pyrage.x25519.Identity.generate()
    with vault_of(source.home) as vault:
        vault.add_slot(lambda i, root: age_slot(i, root, str(identity.to_public())))
    (tmp_path / "id").write_text(str(identity))
    file = tmp_path / "node.age"
    source.ok("backup", file, "--recipient", identity.to_public())
    source.ok("restore", file, "--identity", tmp_path / "id", home=tmp_path / "new")
    assert node_id(tmp_path / "new") == node_id(source.home)


def test_a_passphrase_seals_a_backup_and_opens_it(source: Cli, tmp_path: Path) -> None:
    (tmp_path / "words").write_text(WORDS)
    (tmp_path / "secret").write_text(PASSPHRASE)
    (tmp_path / "wrong").write_text("another one")
    file, words = tmp_path / "node.age", ("--words-file", tmp_path / "words")
    source.ok("backup", file, "--armor", "--passphrase-file", tmp_path / "secret")
    assert file.read_bytes().startswith(b"-----BEGIN AGE ENCRYPTED FILE-----\n")
    restore = ("restore", file, *words, "--passphrase-file")
    wrong = source.fails(1, *restore, tmp_path / "wrong", home=tmp_path / "new")
    assert "wrong passphrase" in wrong.err
    source.ok(*restore, tmp_path / "secret", home=tmp_path / "new")
    assert node_id(tmp_path / "new") == node_id(source.home)


def test_on_a_terminal_passphrase_and_words_are_asked_for(source: Cli, tmp_path: Path) -> None:
    file = tmp_path / "node.age"
    with terminal("backup", file, "--passphrase", home=source.home) as asked:
        asked.expect("passphrase: ")
        asked.type(PASSPHRASE + "\n")
        asked.expect("once more: ")
        asked.type(PASSPHRASE + "\n")
        assert asked.end() == 0
    with terminal("restore", file, home=tmp_path / "new") as asked:
        asked.expect("passphrase of the backup: ")
        asked.type(PASSPHRASE + "\n")
        asked.expect("words: ")
        asked.type(WORDS.replace("candy", "canal") + "\n")
        asked.expect("checksum.*Once more")
        asked.expect("words: ")
        asked.type(WORDS + "\n")
        assert asked.end() == 0
        assert WORDS not in asked.seen
    assert node_id(tmp_path / "new") == node_id(source.home)


@pytest.mark.slow
def test_a_running_node_is_backed_up_with_its_peers(source: Cli, tmp_path: Path) -> None:
    source.ok("peer", "add", "bob", "ed25519:" + "07" * 32)
    with running_node(source.home):
        source.ok("peer", "add", "carol", "ed25519:" + "08" * 32)
        made = Backup(source, tmp_path)
    home = tmp_path / "new"
    source.ok(*made.restore, "--words-file", made.words, home=home)
    assert (
        source.ok("peer", "list", "--json", home=home).json
        == source.ok("peer", "list", "--json").json
    )
    with running_node(home) as running:
        assert running.ready["id"] == node_id(source.home)


def test_a_database_elsewhere_is_pointed_out(source: Cli, tmp_path: Path) -> None:
    config = source.home / "node.toml"
    config.write_text(
        config.read_text().replace("[node]", '[node]\nstore = "postgresql://db/x"', 1)
    )
    recipient = pyrage.x25519.Identity.generate().to_public()
    assert "pg_dump" in source.ok("backup", tmp_path / "b.age", "--recipient", recipient).err


# What is refused.


def test_nothing_is_written_unencrypted_or_over_a_file(source: Cli, tmp_path: Path) -> None:
    file = tmp_path / "node.age"
    assert "who can read" in source.fails(2, "backup", file).err
    both = ("--recipient", pyrage.x25519.Identity.generate().to_public(), "--passphrase")
    source.fails(2, "backup", file, *both)
    source.fails(2, "backup", file, "--recipient", "age1nonsense")
    assert not file.exists()
    file.write_bytes(b"mine")
    assert "exists" in source.fails(1, "backup", file, *both[:2]).err
    assert file.read_bytes() == b"mine"
    assert all_files(tmp_path) & {"node.age"} == {"node.age"}


def test_a_home_without_a_vault_has_no_backup(cli: Cli, tmp_path: Path) -> None:
    recipient = pyrage.x25519.Identity.generate().to_public()
    assert "no vault" in cli.fails(1, "backup", tmp_path / "b.age", "--recipient", recipient).err
    assert not (tmp_path / "b.age").exists()


def test_a_used_home_is_left_alone(source: Cli, made_backup: Backup) -> None:
    before = archive_home(source.home)
    words = ("--words-file", made_backup.words)
    assert "not empty" in source.fails(1, *made_backup.restore, *words).err
    assert archive_home(source.home) == before


@pytest.mark.parametrize("change", ["cut", "altered", "other"])
def test_a_damaged_backup_is_told_from_another_identity(
    source: Cli, made_backup: Backup, tmp_path: Path, change: str
) -> None:
    data = made_backup.file.read_bytes()
    if change == "cut":
        made_backup.file.write_bytes(data[:-100])
    elif change == "altered":
        made_backup.file.write_bytes(data[:-100] + bytes([data[-100] ^ 1]) + data[-99:])
    else:
        made_backup.identity_file.write_text(str(pyrage.x25519.Identity.generate()))
    said = source.fails(
        1, *made_backup.restore, "--words-file", made_backup.words, home=tmp_path / "new"
    ).err
    expected = "none of the identities" if change == "other" else "cut short or altered"
    assert expected in said
    assert not (tmp_path / "new").exists()


def test_wrong_words_leave_nothing_behind(source: Cli, made_backup: Backup, tmp_path: Path) -> None:
    made_backup.words.write_text("abandon " * 23 + "art")
    before = all_files(tmp_path)
    said = source.fails(
        1, *made_backup.restore, "--words-file", made_backup.words, home=tmp_path / "new"
    ).err
    assert said == (
        "error: DAMAGED: the backup's vault does not open with this: these are the words, or the "
        "key, of another node\n"
    )
    assert all_files(tmp_path) == before


def test_what_is_no_backup_is_refused(source: Cli, made_backup: Backup, tmp_path: Path) -> None:
    words = ("--words-file", made_backup.words)
    home = tmp_path / "new"
    recipient = pyrage.x25519.Recipient.from_str(made_backup.recipient)
    made_backup.file.write_bytes(pyrage.encrypt(b"some text", [recipient]))
    assert "no backup" in source.fails(1, *made_backup.restore, *words, home=home).err
    made_backup.file.write_bytes(b"some text")
    assert "no age file" in source.fails(1, *made_backup.restore, *words, home=home).err


def test_without_a_terminal_nothing_is_asked(
    source: Cli, made_backup: Backup, tmp_path: Path
) -> None:
    said = source.fails(1, *made_backup.restore, home=tmp_path / "new").err
    assert "--words-file" in said


# The database.


def test_the_database_is_copied_while_it_is_written_to(source: Cli, tmp_path: Path) -> None:
    """Pairs are written in one transaction: a copy has both or none of each."""
    path = source.home / "node.db"
    database = apsw.Connection(str(path))
    database.execute("PRAGMA journal_mode = WAL").fetchall()
    database.execute("CREATE TABLE pair (n, half)").fetchall()
    copying, stop = threading.Event(), threading.Event()

    def write() -> None:
        with closing(apsw.Connection(str(path))) as writer:
            writer.set_busy_timeout(30_000)
            n = 0
            while not stop.is_set():
                with writer:
                    writer.execute("INSERT INTO pair VALUES (?, 1)", (n,))
                    writer.execute("INSERT INTO pair VALUES (?, 2)", (n,))
                n += 1
                copying.set()

    thread = threading.Thread(target=write)
    thread.start()
    try:
        assert copying.wait(PATIENCE_S)
        made = Backup(source, tmp_path)
    finally:
        stop.set()
        thread.join()
        database.close()
    home = tmp_path / "new"
    source.ok(*made.restore, "--words-file", made.words, home=home)
    with closing(apsw.Connection(str(home / "node.db"))) as copy:
        torn = "SELECT n FROM pair GROUP BY n HAVING count(*) <> 2"
        assert copy.execute("SELECT n FROM pair").fetchall()
        assert copy.execute(torn).fetchall() == []


def test_what_was_removed_from_the_database_is_not_in_a_backup(source: Cli) -> None:
    path = source.home / "node.db"
    with closing(apsw.Connection(str(path))) as database:
        database.execute("CREATE TABLE t (a)").fetchall()
        database.execute("INSERT INTO t VALUES ('remove-this-later')").fetchall()
        database.execute("DELETE FROM t").fetchall()
    assert b"remove-this-later" in path.read_bytes()
    files = decode_archive_untrusted(
        archive_home(source.home), {"backup.json", "node.toml", "node.db", "vault.alk"}
    )
    assert b"remove-this-later" not in files["node.db"]


def test_a_damaged_database_is_not_backed_up(source: Cli, tmp_path: Path) -> None:
    (source.home / "node.db").write_bytes(b"SQLite format 3\0" + bytes(5_000))
    recipient = pyrage.x25519.Identity.generate().to_public()
    source.fails(1, "backup", tmp_path / "b.age", "--recipient", recipient)
    assert not (tmp_path / "b.age").exists()

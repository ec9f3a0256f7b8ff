"""``alknet audit``: who changed what, and whether somebody changed that."""

from __future__ import annotations

import json
from pathlib import Path

import apsw
import pyrage
import pytest

from alknet.stores import audit as audit_module
from tests.cli.homes import WORDS
from tests.cli.kit import Cli, process, running_node, terminal


def change_things(made: Cli) -> None:
    key = made.ok("id", "--json").json["id"]
    made.ok("peer", "add", "bob", key, "--scope", "echo")
    made.ok("peer", "disable", "bob")
    made.ok("token", "create", "ci")


def test_changes_are_listed_with_who_made_them(made: Cli) -> None:
    change_things(made)
    first, *rows = made.ok("audit", "--json").lines
    node_id = made.ok("id", "--json").json["id"]
    assert (first["action"], first["target"], first["number"]) == ("home.init", node_id, 1)
    assert [(row["who"], row["action"]) for row in rows] == [
        ("owner", "peer.add"),
        ("owner", "peer.change"),
        ("owner", "token.create"),
    ]
    assert rows[1]["details"] == {"enabled": "no"}
    shown = made.ok("audit").out
    assert "peer.change" in shown
    assert "enabled no" in shown
    assert made.ok("audit", "--since", "1h", "--json").lines == [first, *rows]


def test_an_altered_row_is_found_and_named(made: Cli) -> None:
    change_things(made)
    good = made.ok("audit", "--verify", "--json").json
    assert (good["rows"], good["broken_at"]) == (4, None)
    assert good["hash"] in made.ok("audit", "--verify").out
    connection = apsw.Connection(str(made.home / "node.db"))
    connection.execute(
        "UPDATE row SET value = replace(value, 'owner', 'peer:x') WHERE tab = 'audit' "
        "AND key LIKE '%2'"
    )
    connection.close()
    bad = made.fails(1, "audit", "--verify", "--json")
    assert (bad.json["rows"], bad.json["broken_at"]) == (1, 2)
    assert bad.error["message"] == "the audit log is broken at row 2: it was altered"


def test_a_log_that_was_cut_short_is_found_by_a_hash_noted_before(made: Cli) -> None:
    change_things(made)
    noted = made.ok("audit", "--verify", "--json").json["hash"]
    made.ok("token", "create", "more")
    assert "5 rows" in made.ok("audit", "--noted", noted).out
    error = made.fails(1, "audit", "--noted", "0" * 63 + "1", "--json").error
    assert "rows were cut off" in error["message"]
    assert "64 digits" in made.fails(2, "audit", "--noted", "5c58").err


def test_what_commands_do_without_a_node_is_noted(made: Cli, tmp_path: Path) -> None:
    made.ok("vault", "put", "mail/smtp", stdin="hunter2\n")
    made.ok("vault", "get", "mail/smtp")
    made.ok("vault", "list")
    made.fails(1, "vault", "get", "mail/imap")
    made.ok("vault", "rotate")
    export = tmp_path / "out.json"
    made.ok("vault", "export", export, "--plain", "--unlock-file", made.home / "vault.key")
    made.ok("vault", "import", export, "--replace")
    slot = made.ok("vault", "slots", "add", "key-file", tmp_path / "key", "--json").json["id"]
    made.ok("vault", "slots", "remove", slot)
    made.ok("key", "rotate", "--yes")
    recipient = pyrage.x25519.Identity.generate().to_public()
    made.ok("backup", tmp_path / "node.age", "--recipient", recipient)
    _, *rows = made.ok("audit", "--json").lines
    assert [(row["who"], row["action"], row["target"]) for row in rows] == [
        ("owner", "vault.put", "mail/smtp"),
        ("owner", "vault.get", "mail/smtp"),
        ("owner", "vault.rotate", ""),
        ("owner", "vault.export", str(export)),
        ("owner", "vault.import", str(export)),
        ("owner", "vault.slots.add", slot),
        ("owner", "vault.slots.remove", slot),
        ("owner", "key.rotate", made.ok("id", "--json").json["id"]),
        ("owner", "home.backup", str(tmp_path / "node.age")),
    ]
    made.ok("audit", "--verify")


def unlocks(made: Cli) -> list[tuple[str, dict[str, str]]]:
    rows = made.ok("audit", "--json").lines
    return [(r["action"], r["details"]) for r in rows if r["action"].startswith("vault.unlock")]


def failed(code: str, tried: str, command: str) -> tuple[str, dict[str, str]]:
    return "vault.unlock.failed", {"code": code, "tried": tried, "command": f"alknet {command}"}


def wrong_key_file(tmp_path: Path) -> Path:
    file = tmp_path / "wrong"
    file.write_bytes(bytes(32))
    file.chmod(0o600)
    return file


def test_unlocks_that_failed_are_noted_with_what_was_tried(made: Cli, tmp_path: Path) -> None:
    made.ok("vault", "put", "a", "--unlock-file", made.home / "vault.key", stdin="secret")
    wrong = wrong_key_file(tmp_path)
    made.fails(3, "vault", "get", "a", "--unlock-file", wrong)
    made.fails(1, "vault", "get", "a", "--unlock-file", tmp_path / "none")  # nothing was tried
    wrong.write_bytes(b"short")
    made.fails(1, "vault", "get", "a", "--unlock-file", wrong)
    (tmp_path / "other").write_text(WORDS)
    made.fails(3, "vault", "slots", "add", "key-file", wrong, "--words-file", tmp_path / "other")
    made.fails(3, "vault", "export", tmp_path / "out", "--plain")
    assert unlocks(made) == [
        failed("WRONG_KEY", "key-file", "vault get"),
        failed("FAILED", "key-file", "vault get"),
        failed("WRONG_KEY", "words", "vault slots add"),
        failed("FORBIDDEN", "", "vault export"),
    ]
    made.ok("audit", "--verify")
    written = made.ok("audit", "--json").out
    assert not any(word in written for word in (WORDS, "secret", str(wrong)))


def test_a_flood_of_unlocks_that_fail_leaves_few_rows(
    made: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(audit_module, "FAILURES_NOTED", 3)
    wrong = wrong_key_file(tmp_path)
    for _ in range(5):
        made.fails(3, "vault", "list", "--unlock-file", wrong)
    rows = unlocks(made)
    assert [details.get("more") for _, details in rows] == [None, None, "left out for an hour"]


def test_an_unlock_that_failed_and_cannot_be_noted_says_so(made: Cli, tmp_path: Path) -> None:
    (made.home / "node.db").write_bytes(b"no database" * 100)
    result = made.fails(3, "vault", "list", "--unlock-file", wrong_key_file(tmp_path), "--json")
    assert result.error["code"] == "WRONG_KEY"
    assert "The audit log lacks that" in result.err


@pytest.mark.slow
def test_what_opened_a_node_and_what_did_not_stands_there(made: Cli, tmp_path: Path) -> None:
    (tmp_path / "wrong").write_text("wrong horse\n")
    (tmp_path / "right").write_text("correct horse\n")
    made.ok("vault", "slots", "add", "passphrase", "--new-passphrase-file", tmp_path / "right")
    with process("up", "--passphrase-file", tmp_path / "wrong", home=made.home) as refused:
        assert refused.end().status == 3
    with running_node(made.home, "--passphrase-file", tmp_path / "right"):
        made.ok("vault", "lock")
        made.fails(3, "vault", "unlock", "--passphrase-file", tmp_path / "wrong")
        made.ok("vault", "unlock", "--unlock-file", made.home / "vault.key")
        rows = unlocks(made)
    assert rows == [
        failed("WRONG_KEY", "passphrase", "up"),
        ("vault.unlock", {"by": "passphrase", "command": "alknet up"}),
        failed("WRONG_KEY", "passphrase", "vault unlock"),
        ("vault.unlock", {"by": "key-file"}),
    ]
    assert "horse" not in made.ok("audit", "--json").out


@pytest.mark.slow
def test_each_passphrase_that_a_person_mistypes_is_noted(made: Cli, tmp_path: Path) -> None:
    (tmp_path / "right").write_text("correct horse\n")
    made.ok("vault", "slots", "add", "passphrase", "--new-passphrase-file", tmp_path / "right")
    (made.home / "vault.key").unlink()
    with terminal("vault", "list", home=made.home) as screen:
        for _ in range(2):
            screen.expect("passphrase of the vault: ")
            screen.type("wrong horse\r")
            screen.expect("Once more")
        screen.expect("passphrase of the vault: ")
        assert screen.interrupt() == 130
    assert unlocks(made) == [failed("WRONG_KEY", "passphrase", "vault list")] * 2


@pytest.mark.slow
def test_an_ssh_agent_that_opens_the_vault_notes_it(made: Cli, tmp_path: Path) -> None:
    agent = ("vault", "ssh-agent", "--socket", tmp_path / "s")
    wrong = wrong_key_file(tmp_path)
    with process(*agent, "--unlock-file", wrong, "--", "true", home=made.home) as refused:
        assert refused.end().status == 3
    with process(*agent, "--", "true", home=made.home) as opened:
        assert opened.end().status == 0
    assert unlocks(made) == [
        failed("WRONG_KEY", "key-file", "vault ssh-agent"),
        ("vault.unlock", {"by": "key-file", "command": "alknet vault ssh-agent"}),
    ]


def test_without_the_log_the_command_works_and_says_so(made: Cli) -> None:
    (made.home / "node.db").write_bytes(b"no database" * 100)
    put = made.ok("vault", "put", "mail/smtp", stdin="hunter2\n")
    assert "version 1 stored" in put.out
    assert "the audit log lacks it (vault.put)" in put.err
    assert made.ok("vault", "get", "mail/smtp").out == "hunter2"


def test_verify_stands_alone(made: Cli) -> None:
    assert made.fails(2, "audit", "--verify", "--follow", "--json").error["code"] == "USAGE"


def test_a_follower_prints_what_happens(made: Cli) -> None:
    change_things(made)
    with process("audit", "--follow", "--json", home=made.home) as follower:
        first = [json.loads(follower.line()) for _ in range(4)]
        assert [row["number"] for row in first] == [1, 2, 3, 4]
        made.ok("peer", "remove", "bob")
        assert json.loads(follower.line())["action"] == "peer.remove"

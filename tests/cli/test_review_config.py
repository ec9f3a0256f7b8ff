"""``config check`` finds what would keep `up` from starting, beyond what the file alone tells."""

from __future__ import annotations

import pytest

from tests.cli.kit import Cli

CERTIFICATE = '[[web_certificates]]\nserver_names = ["x.test"]\n{}\n'


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ('[node]\ndefault_alpn = "nosuch"\n', "'nosuch' is served by no handler"),
        (
            CERTIFICATE.format('cert_file = "node.toml"\nkey_file = "node.toml"'),
            "holds no PEM certificate",
        ),
    ],
)
def test_what_only_a_start_would_find_is_found(made: Cli, text: str, found: str) -> None:
    (made.home / "node.toml").write_text(text)
    result = made.fails(1, "config", "check", "--json")
    assert result.error["code"] == "CONFIG"
    [problem] = result.json["problems"]
    assert found in problem["message"]
    assert found in made.fails(1, "config", "check").out
    assert found in made.fails(1, "up").err


def test_all_that_only_a_start_would_find_is_found_at_once(made: Cli) -> None:
    (made.home / "node.toml").write_text(
        '[node]\ndefault_alpn = "nosuch"\n'
        + CERTIFICATE.format('cert_file = "node.toml"\nkey_file = "node.toml"')
        + '[[command]]\nname = "node/x"\nrun = ["/bin/true"]\npublic = true\n'
        + CERTIFICATE.replace("x.test", "y.test").format(
            'cert_file = "vault.alk"\nkey_file = "vault.alk"'
        )
        + '[[command]]\nname = "jobs/good"\nrun = ["/bin/true"]\npublic = true\n'
        + '[[command]]\nname = "no slash"\nrun = ["/bin/true"]\npublic = true\n'
    )
    problems = made.fails(1, "config", "check", "--json").json["problems"]
    assert [(one["line"], one["key"]) for one in problems] == [
        (2, "node.default_alpn"),
        (3, "web_certificates[0]"),
        (7, "command[0]"),
        (11, "web_certificates[1]"),
        (19, "command[2]"),
    ]
    failed = made.fails(1, "config", "check")
    assert failed.out.count(f"{made.home}/node.toml:") == 5
    assert "5 problems in" in failed.err
    [config] = [
        one for one in made.fails(1, "doctor", "--json").json["checks"] if one["check"] == "config"
    ]
    assert "node.toml:2: node.default_alpn" in config["message"]


def test_an_outbound_peer_that_cannot_be_dialled_is_a_warning_with_what_to_do(made: Cli) -> None:
    config = made.home / "node.toml"
    made.ok("peer", "add", "hub", f"alknet://{'ab' * 32}@127.0.0.1:1")
    made.ok("peer", "add", "off", f"alknet://{'cd' * 32}@127.0.0.1:1")
    made.ok("peer", "disable", "off")
    made.ok("peer", "add", "lost", f"ed25519:{'ef' * 32}")
    names = ("hubb", "stranger", "off", "lost", "hub")
    config.write_text("".join(f'[[outbound]]\nname = "{name}"\n' for name in names))
    checked = made.ok("config", "check", "--json").json
    assert checked["problems"] == []
    assert [(one["line"], one["hint"]) for one in checked["warnings"]] == [
        (2, "did you mean 'hub'?"),
        (4, "'alknet peer add stranger TICKET' adds it, and so does [[peers]]"),
        (6, "'alknet peer enable off'"),
        (8, 'name one in addresses, as "host:4433"'),
    ]
    said = made.ok("config", "check").out
    assert (
        "node.toml:2: outbound[0].name: there is no peer named 'hubb': nothing is dialled" in said
    )
    assert "is good, but for 4 warnings" in said
    assert "there is no peer named 'hubb'" in made("doctor").out


def test_config_check_makes_no_store(made: Cli) -> None:
    for file in made.home.glob("node.db*"):
        file.unlink()
    (made.home / "node.toml").write_text('[[outbound]]\nname = "hub"\n')
    assert "no peer named 'hub'" in made.ok("config", "check").out
    assert list(made.home.glob("node.db*")) == []


def test_a_store_out_of_reach_keeps_no_file_from_being_good(made: Cli) -> None:
    url = made.home / "store.url"
    url.write_text("postgresql://127.0.0.1:1/alknet")
    (made.home / "node.toml").write_text(
        '[node]\nstore_file = "store.url"\n[[outbound]]\nname = "hub"\n'
    )
    url.chmod(0o644)
    [problem] = made.fails(1, "config", "check", "--json").json["problems"]
    assert (problem["line"], problem["key"]) == (2, "node.store_file")
    assert "others may read" in problem["message"]
    url.chmod(0o600)
    checked = made.ok("config", "check")
    assert "is good" in checked.out
    assert "Not checked whether the peers of [[outbound]] are known" in checked.err

from __future__ import annotations

import socket
from pathlib import Path

from tests.cli.kit import Cli, Json


def checks(report: Json) -> dict[str, str]:
    return {one["check"]: one["level"] for one in report["checks"]}


def use_port(cli: Cli, port: int) -> None:
    (cli.home / "node.toml").write_text(f'[node]\nlisten = ["127.0.0.1:{port}"]\n')


def test_a_good_home_has_no_failure(made: Cli) -> None:
    use_port(made, 0)
    report = made.ok("doctor", "--json").json
    assert report["ok"] is True
    found = checks(report)
    assert found["home"] == found["vault"] == found["config"] == found["port"] == "ok"
    assert "ok    home" in made.ok("doctor").out


def test_a_missing_home_fails_and_says_what_to_do(cli: Cli) -> None:
    result = cli.fails(1, "doctor")
    assert "does not exist" in result.out
    assert "alknet init" in result.out
    assert "home" in result.err


def test_open_homes_and_keys_fail(made: Cli) -> None:
    use_port(made, 0)
    made.home.chmod(0o750)
    (made.home / "vault.key").chmod(0o644)
    result = made.fails(1, "doctor", "--json")
    assert checks(result.json) | {"home": "fail", "vault": "fail"} == checks(result.json)
    assert result.error["message"] == "2 checks failed: home, vault"


def test_a_vault_that_is_damaged_or_another_s_fails_and_a_passphrase_is_none(
    made: Cli, tmp_path: Path
) -> None:
    use_port(made, 0)
    path = made.home / "vault.alk"
    whole = path.read_bytes()
    path.write_bytes(whole[:100])
    assert "cut short" in made.fails(1, "doctor").out
    path.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    assert checks(made.fails(1, "doctor", "--json").json)["vault"] == "fail"
    path.write_bytes(whole)
    (made.home / "vault.key").rename(tmp_path / "vault.key")
    result = made.ok("doctor", "--json").json
    (vault,) = [one for one in result["checks"] if one["check"] == "vault"]
    assert "it takes: key-file" in vault["message"]
    assert "--unlock-file" in vault["todo"]


def test_wrong_configs_and_damaged_states_fail(made: Cli) -> None:
    (made.home / "node.toml").write_text("nonsense = 1\n")
    (made.home / "node.db").write_text("{" * 100)  # one byte alone is an empty file to SQLite
    found = checks(made.fails(1, "doctor", "--json").json)
    assert (found["config"], found["store"]) == ("fail", "fail")


def test_a_port_that_another_program_holds_fails(made: Cli) -> None:
    for kind, name in ((socket.SOCK_DGRAM, "UDP"), (socket.SOCK_STREAM, "TCP")):
        with socket.socket(socket.AF_INET, kind) as taken:
            taken.bind(("127.0.0.1", 0))
            if kind is socket.SOCK_STREAM:
                taken.listen()
            use_port(made, taken.getsockname()[1])
            result = made.fails(1, "doctor")
            assert f"cannot be bound on {name}" in result.out


def test_peers_that_do_not_count_are_warned_of(made: Cli) -> None:
    key = "ed25519:" + "1f" * 32
    made.ok("peer", "add", "bob", key)
    (made.home / "node.toml").write_text(
        f'[node]\nlisten = ["127.0.0.1:0"]\n[[peers]]\nname = "carol"\nid = "{key}"\n'
    )
    assert checks(made.ok("doctor", "--json").json)["peers"] == "warn"

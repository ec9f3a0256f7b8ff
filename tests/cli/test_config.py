from __future__ import annotations

import tomllib

from alknet.core.config import load_config
from tests.cli.kit import Cli


def test_a_good_file_and_no_file_pass(made: Cli) -> None:
    assert "is good" in made.ok("config", "check").out
    (made.home / "node.toml").unlink()
    assert "defaults apply" in made.ok("config", "check").out
    checked = made.ok("config", "check", "--json").json
    file = str(made.home / "node.toml")
    assert checked == {"file": file, "exists": False, "problems": [], "warnings": []}


def test_problems_are_named_with_line_and_hint(made: Cli) -> None:
    (made.home / "node.toml").write_text("[node]\nlisten = 3\n\n[limits]\nidle_timeout = 3\n")
    result = made.fails(1, "config", "check")
    assert f"{made.home}/node.toml:2: node.listen" in result.out
    assert "did you mean 'idle_timeout_s'?" in result.out
    assert "2 problems" in result.err
    problems = made.fails(1, "config", "check", "--json").json["problems"]
    assert [problem["line"] for problem in problems] == [2, 5]


def test_show_is_the_file_that_gives_the_same_configuration(made: Cli) -> None:
    config = made.home / "node.toml"
    config.write_text(
        '[node]\nadvertise = ["h:1"]\n[limits]\nidle_timeout_s = 60\n'
        f'[[peers]]\nname = "bob"\nfingerprints = ["ed25519:{"1f" * 32}"]\n'
        'resources = ["a:b"]\n[vault]\nlock_after_s = 5\n[federation]\nlist_peers = true\n'
        '[[re_export]]\npeers = ["w*"]\noperations = ["m/*"]\nscopes_all = ["m"]\n'
        '[[re_export]]\npeers = ["any"]\noperations = ["n/**"]\npublic = true\n'
    )
    before = load_config(config)
    shown = made.ok("config", "show").out
    assert tomllib.loads(shown)["limits"]["idle_timeout_s"] == 60
    config.write_text(shown)
    assert load_config(config) == before
    assert before.federation.list_peers
    assert len(before.re_exports) == 2
    as_json = made.ok("config", "show", "--json").json
    assert as_json["node"]["advertise"] == ["h:1"]
    assert as_json["peers"][0]["name"] == "bob"


def test_a_config_that_cannot_be_used_is_named_by_all_that_need_it(made: Cli) -> None:
    (made.home / "node.toml").write_text("nonsense = 1\n")
    for arguments in (["config", "show"], ["peer", "list"], ["up"]):
        assert "node.toml:1: nonsense: unknown key" in made.fails(1, *arguments).err


def test_path(made: Cli) -> None:
    assert made.ok("config", "path").out == f"{made.home}/node.toml\n"
    assert made.ok("config", "path", "--json").json == {"path": f"{made.home}/node.toml"}

from __future__ import annotations

from pathlib import Path

import pytest

from alknet.core.access import AccessRules
from alknet.core.config import NodeConfig, check_config, load_config, what_changed
from alknet.core.config_re_export import ReExport
from alknet.core.globs import Glob

RULE = """\
[[re_export]]
peers = ["w*", "any", "hub/*"]
operations = ["math/*", "docker/**"]
scopes_any = ["math", "admin:math"]
"""


def config(path: Path, text: str) -> NodeConfig:
    file = path / "node.toml"
    file.write_text(text)
    return load_config(file)


def rule(*peers: str, operations: tuple[str, ...] = ("math/*",)) -> ReExport:
    return ReExport(tuple(map(Glob, peers)), tuple(map(Glob, operations)), AccessRules(public=True))


def test_a_rule_is_read_and_nothing_is_the_default(tmp_path: Path) -> None:
    assert config(tmp_path, "").re_exports == ()
    assert not config(tmp_path, "").federation.list_peers
    [read] = config(tmp_path, RULE).re_exports
    assert read == ReExport(
        (Glob("w*"), Glob("any"), Glob("hub/*")),
        (Glob("math/*"), Glob("docker/**")),
        AccessRules(scopes_any=("math", "admin:math")),
    )
    assert config(tmp_path, "[federation]\nlist_peers = true").federation.list_peers


def test_a_changed_rule_is_a_change_without_a_restart(tmp_path: Path) -> None:
    before, after = config(tmp_path, ""), config(tmp_path, RULE + "[federation]\nlist_peers = true")
    assert what_changed(before, after) == ["federation.list_peers", "re_export"]


@pytest.mark.parametrize(
    ("text", "line", "key", "message"),
    [
        ('[[re_export]]\noperations = ["a/b"]\npublic = true', 1, "re_export[0]", "'peers' is"),
        ('[[re_export]]\npeers = ["w"]\npublic = true', 1, "re_export[0]", "'operations' is"),
        (RULE + 'peer = ["x"]', 5, "re_export[0].peer", "unknown key"),
        (RULE.replace('"w*"', '"w "'), 2, "re_export[0].peers[0]", "is not segments"),
        (RULE.replace('"any"', '"any/w1"'), 2, "re_export[0].peers[1]", "at the end of a route"),
        (RULE.replace("math/*", "node/*"), 3, "re_export[0].operations[0]", "never passed on"),
        (RULE.replace("math/*", "/math/*"), 3, "re_export[0].operations[0]", "is not segments"),
        (RULE.replace('"math", "admin:math"', ""), 1, "re_export[0]", "nobody may call it"),
        (RULE + "public = true", 1, "re_export[0]", "public and restricted at once"),
        (RULE.replace('"math", ', '"m*", '), 1, "re_export[0]", "only grants may have wildcards"),
        (RULE.replace('["w*", "any", "hub/*"]', "[]"), 2, "re_export[0].peers", "is empty"),
        ("[federation]\nlist_peers = 1", 2, "federation.list_peers", "expected true or false"),
        ("[federation]\nlist_peer = true", 2, "federation.list_peer", "unknown key"),
        ("[limits]\nlist_peers = true", 2, "limits.list_peers", "unknown key"),
    ],
)
def test_mistakes_are_named(tmp_path: Path, text: str, line: int, key: str, message: str) -> None:
    file = tmp_path / "node.toml"
    file.write_text(text)
    [problem] = check_config(file)
    assert (problem.line, problem.key) == (line, key)
    assert message in problem.message


@pytest.mark.parametrize(
    ("peers", "route", "is_covered"),
    [
        (("w*",), ("w1",), True),
        (("w*",), ("x1",), False),
        (("w*",), ("any",), False),
        (("a*",), ("any",), False),  # any peer at all is not what "a*" means
        (("any",), ("any",), True),
        (("any",), ("w1",), False),
        (("*",), ("any",), True),
        (("*",), ("w1",), True),
        (("*",), ("hub", "w1"), False),
        (("hub",), ("hub", "w1"), False),
        (("hub/w*",), ("hub", "w1"), True),
        (("hub/w*",), ("w1",), False),
        (("hub/*",), ("hub", "any"), True),
        (("hub/**",), ("hub", "hub2", "any"), True),
        (("hub/a*",), ("hub", "any"), False),
        (("**",), ("a", "b", "c"), True),
        (("a*/w*",), ("any", "w1"), False),  # the peer in the middle is not one of "a*"
        (("hub/a*/w*",), ("hub", "any", "w1"), False),
        (("**",), ("any", "w1"), False),
    ],
)
def test_routes_that_a_rule_covers(
    peers: tuple[str, ...], route: tuple[str, ...], is_covered: bool
) -> None:
    assert rule(*peers).covers(route, "math/add") is is_covered


@pytest.mark.parametrize("name", ["services/list", "node/ping", "vault/status", "peers/offer"])
def test_what_each_node_has_for_itself_is_never_covered(name: str) -> None:
    assert not rule("**", operations=("**",)).covers(("w1",), name)
    assert rule("**", operations=("**",)).covers(("w1",), "math/add")
    assert not rule("**", operations=("math/*",)).covers(("w1",), "other/add")

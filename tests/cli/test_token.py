from __future__ import annotations

import base64
import hashlib
import re
import time

import pytest

from tests.cli.kit import Cli, Json


def listed(cli: Cli) -> list[Json]:
    tokens = cli.ok("token", "list", "--json").json["tokens"]
    assert isinstance(tokens, list)
    return tokens


def test_create_prints_the_token_once_and_stores_its_hash(made: Cli) -> None:
    created = made.ok("token", "create", "ci", "--scope", "echo", "--json").json
    text, prefix = created["token"], created["prefix"]
    assert re.fullmatch(r"alk_[a-z0-9]{8}_[a-z0-9]{52}", text)
    assert text.split("_")[1] == prefix
    state = b"".join(path.read_bytes() for path in made.home.glob("node.db*"))
    assert text.encode() not in state
    assert text.split("_")[2].encode() not in state
    [key] = listed(made)
    assert (key["prefix"], key["name"], key["scopes"]) == (prefix, "ci", ["echo"])
    assert base64.b64encode(hashlib.sha256(text.encode()).digest()) in state


def test_on_a_terminal_standard_output_is_the_token_alone(made: Cli) -> None:
    result = made.ok("token", "create", "ci")
    assert re.fullmatch(r"alk_\S+\n", result.out)
    assert "only now" in result.err


def test_expiry_counts_from_now(made: Cli) -> None:
    made.ok("token", "create", "ci", "--expires", "30d")
    [key] = listed(made)
    assert key["expires_at"] - key["created_at"] == pytest.approx(30 * 86_400)
    assert abs(key["created_at"] - time.time()) < 60  # noqa: TID251  against the real one
    assert key["expired"] is False


@pytest.mark.parametrize(
    "arguments",
    [("ci", "--expires", "soon"), ("ci", "--scope", "a b"), ("",), ("ci", "--resource", "x")],
)
def test_what_makes_no_sense_is_wrong_usage(made: Cli, arguments: tuple[str, ...]) -> None:
    made.fails(2, "token", "create", *arguments)
    assert listed(made) == []


def test_rotate_keeps_the_rights_and_ends_the_old_one(made: Cli) -> None:
    old = made.ok(
        "token", "create", "ci", "--scope", "echo", "--resource", "a:b", "--expires", "1h", "--json"
    ).json
    new = made.ok("token", "rotate", "ci", "--json").json
    assert new["token"] != old["token"]
    [key] = listed(made)
    assert key["prefix"] == new["prefix"] != old["prefix"]
    assert (key["scopes"], key["resources"]) == (["echo"], ["a:b"])
    assert key["expires_at"] - key["created_at"] == pytest.approx(3_600)


def test_revoke_takes_prefix_name_or_token_and_never_repeats_a_secret(made: Cli) -> None:
    made.ok("token", "create", "other")
    made.ok("token", "revoke", "other")
    assert listed(made) == []
    created = made.ok("token", "create", "ci", "--json").json
    made.ok("token", "revoke", created["token"])
    assert listed(made) == []
    result = made.fails(1, "token", "revoke", created["token"], "--json")
    assert result.error["code"] == "NOT_FOUND"
    assert created["token"].split("_")[2] not in result.err


def test_a_name_that_two_have_is_not_enough(made: Cli) -> None:
    prefixes = [made.ok("token", "create", "ci", "--json").json["prefix"] for _ in range(2)]
    result = made.fails(1, "token", "revoke", "ci")
    assert all(prefix in result.err for prefix in prefixes)
    assert len(listed(made)) == 2


def test_list_is_a_table(made: Cli) -> None:
    assert "no tokens" in made.ok("token", "list").err
    made.ok("token", "create", "ci", "--scope", "echo")
    header, line = made.ok("token", "list").out.splitlines()
    assert header.split() == ["PREFIX", "NAME", "SCOPES", "RESOURCES", "EXPIRES"]
    assert line.split()[1:] == ["ci", "echo", "-", "never"]

"""The access check, as a table: every kind of rule against every kind of caller."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import pytest

from alknet.core.access import (
    PUBLIC,
    AccessRules,
    MissingResourceId,
    check_access,
    visible_ids,
)
from alknet.core.identity import ANONYMOUS, OWNER, Grant, Identity
from alknet.errors import Denied, LocalError


class Owns:
    """Ownership of a fixed set of (identity, type, id)."""

    def __init__(self, *rows: tuple[str, str, str]) -> None:
        self.rows = rows

    def owns(self, identity_id: str, resource_type: str, resource_id: str) -> bool:
        return (identity_id, resource_type, resource_id) in self.rows

    def owned(self, identity_id: str, resource_type: str) -> Sequence[str]:
        return [row[2] for row in self.rows if row[:2] == (identity_id, resource_type)]


NOBODY = Owns()
SCOPED = AccessRules(scopes_all=("tty:use",))
RESOURCE = AccessRules(scopes_all=("tty:use",), resource_type="tty", action="write")


def outcome(
    rules: AccessRules,
    identity: Identity,
    resource_id: str | None = None,
    *,
    path: bool = True,
    ownership: Owns = NOBODY,
) -> str:
    try:
        check_access(rules, identity, resource_id, has_resource_path=path, ownership=ownership)
    except Denied as exc:
        return "failed authentication" if exc.is_failed_authentication else exc.reason
    except MissingResourceId:
        return "missing id"
    return "ok"


def peer(*scopes: str, grants: tuple[Grant, ...] = ()) -> Identity:
    return Identity("peer:a", scopes, grants)


@pytest.mark.parametrize(
    ("rules", "identity", "expected"),
    [
        (PUBLIC, ANONYMOUS, "ok"),
        (PUBLIC, peer(), "ok"),
        (PUBLIC, OWNER, "ok"),
        (AccessRules(), ANONYMOUS, "authentication required"),
        (AccessRules(), peer("*"), "no rule admits to this operation"),
        (AccessRules(), OWNER, "ok"),
        (SCOPED, ANONYMOUS, "authentication required"),
        (SCOPED, Identity("anonymous", ("*",)), "authentication required"),
        (SCOPED, peer(), "scope 'tty:use' missing"),
        (SCOPED, peer("tty:use"), "ok"),
        (SCOPED, peer("tty:*"), "ok"),
        (SCOPED, peer("*"), "ok"),
        (SCOPED, OWNER, "ok"),
        (AccessRules(scopes_all=("a", "b")), peer("a"), "scope 'b' missing"),
        (AccessRules(scopes_all=("a", "b")), peer("a", "b"), "ok"),
        (AccessRules(scopes_any=("a", "b")), peer("c"), "one of the scopes 'a', 'b' missing"),
        (AccessRules(scopes_any=("a", "b")), peer("b"), "ok"),
        (AccessRules(scopes_all=("a",), scopes_any=("b",)), peer("b"), "scope 'a' missing"),
        (AccessRules(scopes_all=("admin:x",)), peer("*"), "scope 'admin:x' missing"),
        (AccessRules(scopes_all=("admin:x",)), peer("admin:*"), "ok"),
        (AccessRules(scopes_any=("vault:x",)), peer("v*"), "one of the scopes 'vault:x' missing"),
    ],
)
def test_scopes_and_callers(rules: AccessRules, identity: Identity, expected: str) -> None:
    assert outcome(rules, identity) == expected


RIGHT = Grant("tty", "7", "write")
DENIED = "neither owner of tty '7' nor granted write on it"


@pytest.mark.parametrize(
    ("identity", "ownership", "expected"),
    [
        (peer("tty:use"), NOBODY, DENIED),
        (peer("tty:use"), Owns(("peer:a", "tty", "7")), "ok"),
        (peer("tty:use"), Owns(("peer:b", "tty", "7")), DENIED),
        (peer("tty:use"), Owns(("peer:a", "tty", "8")), DENIED),
        (peer("tty:use"), Owns(("peer:a", "pty", "7")), DENIED),
        (peer("tty:use", grants=(RIGHT,)), NOBODY, "ok"),
        (peer("tty:use", grants=(Grant("tty", "7"),)), NOBODY, "ok"),
        (peer("tty:use", grants=(Grant("tty", "*"),)), NOBODY, "ok"),
        (peer("tty:use", grants=(Grant("tty", "*", "write"),)), NOBODY, "ok"),
        (peer("tty:use", grants=(Grant("tty", "7", "read"),)), NOBODY, DENIED),
        (peer("tty:use", grants=(Grant("pty", "7"),)), NOBODY, DENIED),
        (peer("tty:use", grants=(Grant("tty", "8"),)), NOBODY, DENIED),
        (peer("x", grants=(RIGHT,)), Owns(("peer:a", "tty", "7")), "scope 'tty:use' missing"),
        (ANONYMOUS, Owns(("anonymous", "tty", "7")), "authentication required"),
        (OWNER, NOBODY, "ok"),
    ],
)
def test_resources_by_ownership_or_grant(
    identity: Identity, ownership: Owns, expected: str
) -> None:
    assert outcome(RESOURCE, identity, "7", ownership=ownership) == expected


@pytest.mark.parametrize("resource_id", [None, ""])
def test_an_input_without_the_id_is_invalid_for_those_whom_the_scope_admits(
    resource_id: str | None,
) -> None:
    everything = peer("tty:use", grants=(Grant("tty", "*"),))
    assert outcome(RESOURCE, everything, resource_id) == "missing id"
    assert outcome(RESOURCE, OWNER, resource_id) == "missing id"
    assert outcome(RESOURCE, peer(), resource_id) == "scope 'tty:use' missing"
    assert outcome(RESOURCE, ANONYMOUS, resource_id) == "authentication required"


def test_a_list_operation_is_admitted_to_by_its_scope_alone() -> None:
    assert outcome(RESOURCE, peer("tty:use"), path=False) == "ok"
    assert outcome(RESOURCE, peer(), path=False) == "scope 'tty:use' missing"
    only_type = AccessRules(resource_type="tty")
    assert outcome(only_type, peer("*"), path=False) == "no rule admits to this operation"
    assert outcome(only_type, OWNER, path=False) == "ok"


def test_a_list_shows_what_the_caller_owns_or_was_granted() -> None:
    ids = ["1", "2", "3"]
    mine = Owns(("peer:a", "tty", "3"))
    caller = peer(grants=(Grant("tty", "1", "read"), Grant("tty", "2", "write")))
    assert visible_ids("tty", ids, "read", caller, mine) == ["1", "3"]
    assert visible_ids("tty", ids, "read", OWNER, NOBODY) == ids
    assert visible_ids("tty", ids, None, peer("*"), NOBODY) == []


def test_no_combination_of_rules_admits_without_each_of_its_parts() -> None:
    """Exhaustive: 2^8 combinations against an oracle written as the documented table."""
    flags = [False, True]
    for public, all_, any_, typed, s_all, s_any, owns, known in itertools.product(flags, repeat=8):
        rules = AccessRules(
            public=public,
            scopes_all=("all",) if all_ else (),
            scopes_any=("any",) if any_ else (),
            resource_type="tty" if typed else None,
        )
        scopes = ("all",) * s_all + ("any",) * s_any
        identity = Identity("peer:a", scopes) if known else ANONYMOUS
        ownership = Owns((identity.id, "tty", "7")) if owns else NOBODY
        needs = [known, all_ or any_ or typed]
        needs += [s_all] * all_ + [s_any] * any_ + [owns] * typed
        result = outcome(rules, identity, "7", ownership=ownership)
        assert (result == "ok") is (public or all(needs)), (rules, identity)


def test_an_action_without_a_type_is_refused_at_once() -> None:
    with pytest.raises(LocalError, match="without resource type"):
        AccessRules(action="read")


@pytest.mark.parametrize(
    ("rules", "path", "message"),
    [
        (AccessRules(), True, "external operation registered without rules"),
        (AccessRules(public=True, scopes_all=("x",)), True, "public and restricted"),
        (AccessRules(public=True, resource_type="x"), True, "public and restricted"),
        (AccessRules(scopes_all=("fs:*",)), True, "only grants may have wildcards"),
        (AccessRules(scopes_any=("",)), True, "only grants may have wildcards"),
        (AccessRules(resource_type="x"), False, "list operation without a scope"),
    ],
)
def test_bad_rules_are_found_at_registration(rules: AccessRules, path: bool, message: str) -> None:
    with pytest.raises(LocalError) as caught:
        rules.validate(has_resource_path=path)
    assert message in str(caught.value)


@pytest.mark.parametrize("rules", [PUBLIC, SCOPED, RESOURCE, AccessRules(resource_type="x")])
def test_good_rules_are_accepted(rules: AccessRules) -> None:
    rules.validate()

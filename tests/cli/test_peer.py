from __future__ import annotations

import re

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from alknet.core.nodeid import NodeId
from tests.cli.kit import Cli, Json


def new_node() -> NodeId:
    return NodeId.from_public_key(Ed25519PrivateKey.generate().public_key())


def shown(cli: Cli, name: str) -> Json:
    found = cli.ok("peer", "show", name, "--json").json
    assert isinstance(found, dict)
    return found


def test_a_peer_is_added_by_each_form_of_its_key(made: Cli) -> None:
    for number, form in enumerate(("{}", "{0.fingerprint}", "alknet://{}", "alknet://{}@h:1")):
        node = new_node()
        made.ok("peer", "add", f"p{number}", form.format(node))
        assert shown(made, f"p{number}")["fingerprints"] == [node.fingerprint]
        assert shown(made, f"p{number}")["ids"] == [str(node)]


def test_a_ticket_gives_addresses_and_options_add_more(made: Cli) -> None:
    made.ok("peer", "add", "bob", f"alknet://{new_node()}@h:1,[::1]:2", "--address", "i:3")
    assert shown(made, "bob")["addresses"] == ["h:1", "[::1]:2", "i:3"]


def test_rights_are_kept(made: Cli) -> None:
    options = ("--scope", "echo", "--scope", "fs:*", "--resource", "share:a%3Ab:read")
    made.ok("peer", "add", "bob", new_node(), *options)
    assert shown(made, "bob")["scopes"] == ["echo", "fs:*"]
    assert shown(made, "bob")["resources"] == ["share:a%3Ab:read"]


def test_whether_a_peer_may_offer_is_said_and_taken_back(made: Cli) -> None:
    made.ok("peer", "add", "bob", new_node())
    assert shown(made, "bob")["may_offer"] is False
    made.ok("peer", "set", "bob", "--may-offer")
    assert shown(made, "bob")["may_offer"] is True
    made.ok("peer", "set", "bob", "--scope", "echo")
    made.ok("peer", "rename", "bob", "robert")
    assert shown(made, "robert")["may_offer"] is True
    assert re.search("^may offer +yes$", made.ok("peer", "show", "robert").out, re.MULTILINE)
    made.ok("peer", "set", "robert", "--no-may-offer")
    assert shown(made, "robert")["may_offer"] is False
    made.ok("peer", "add", "carol", new_node(), "--may-offer")
    assert shown(made, "carol")["may_offer"] is True
    noted = [entry["details"].get("may offer") for entry in made.ok("audit", "--json").lines]
    assert [text for text in noted if text is not None] == ["yes", "no", "yes"]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("Bob", "{node}"), "peer name"),
        (("owner", "{node}"), "reserved"),
        (("bob", "nonsense"), "is not a node id"),
        (("bob", "{node}", "--scope", "a b"), "scope"),
        (("bob", "{node}", "--resource", "x"), "grant"),
        (("bob", "{node}", "--address", "h"), "has no port"),
        (("bob",), "Missing argument"),
    ],
)
def test_what_makes_no_sense_is_wrong_usage(
    made: Cli, arguments: tuple[str, ...], said: str
) -> None:
    given = [text.format(node=new_node()) for text in arguments]
    assert said in made.fails(2, "peer", "add", *given).err
    assert made.ok("peer", "list", "--json").json == {"peers": []}


def test_names_and_keys_are_taken_once(made: Cli) -> None:
    node = new_node()
    made.ok("peer", "add", "bob", node)
    for name, key in (("bob", new_node()), ("carol", node)):
        result = made.fails(1, "peer", "add", name, key, "--json")
        assert result.error["code"] == "CONFLICT"


def test_list_shows_a_line_for_each(made: Cli) -> None:
    assert "no peers" in made.ok("peer", "list").err
    node = new_node()
    made.ok("peer", "add", "bob", f"alknet://{node}@h:1", "--scope", "echo")
    header, line = made.ok("peer", "list").out.splitlines()
    assert header.split() == ["NAME", "STATE", "SCOPES", "ADDRESSES", "KEY"]
    assert line.split() == ["bob", "enabled", "echo", "h:1", str(node)]


def test_set_replaces_what_it_names_and_nothing_else(made: Cli) -> None:
    node, other = new_node(), new_node()
    made.ok("peer", "add", "bob", f"alknet://{node}@h:1", "--scope", "echo")
    made.ok("peer", "set", "bob", "--scope", "fs:read", "--display-name", "Bob B.")
    made.ok("peer", "set", "bob", "--key", f"alknet://{other}@i:2")
    found = shown(made, "bob")
    assert found["scopes"] == ["fs:read"]
    assert found["display_name"] == "Bob B."
    assert found["fingerprints"] == [other.fingerprint]
    assert found["addresses"] == ["i:2"]
    made.ok("peer", "set", "bob", "--no-scopes", "--no-addresses", "--no-resources")
    assert (shown(made, "bob")["scopes"], shown(made, "bob")["addresses"]) == ([], [])


def test_set_needs_something_to_do(made: Cli) -> None:
    made.ok("peer", "add", "bob", new_node())
    assert "nothing to change" in made.fails(2, "peer", "set", "bob").err
    made.fails(2, "peer", "set", "bob", "--no-scopes", "--scope", "echo")


def test_disable_enable_rename_remove(made: Cli) -> None:
    made.ok("peer", "add", "bob", new_node())
    made.ok("peer", "disable", "bob")
    assert shown(made, "bob")["enabled"] is False
    made.ok("peer", "enable", "bob")
    assert shown(made, "bob")["enabled"] is True
    made.ok("peer", "rename", "bob", "robert")
    assert made.fails(1, "peer", "show", "bob", "--json").error["code"] == "NOT_FOUND"
    assert made.ok("peer", "remove", "robert", "--json").json["done"] == "removed"
    assert made.ok("peer", "list", "--json").json == {"peers": []}


@pytest.mark.parametrize("command", ["show", "enable", "disable", "remove", "set"])
def test_unknown_peers_are_not_found(made: Cli, command: str) -> None:
    more = ("--no-scopes",) if command == "set" else ()
    assert made.fails(1, "peer", command, "bob", *more, "--json").error["code"] == "NOT_FOUND"


def test_peers_of_the_config_are_read_only(made: Cli) -> None:
    text = f'[[peers]]\nname = "bob"\nid = "{new_node()}"\n'
    (made.home / "node.toml").write_text(text)
    assert shown(made, "bob")["read_only"] is True
    assert "node.toml" in made.ok("peer", "list").out
    assert "change it there" in made.fails(1, "peer", "remove", "bob").err

"""Node ids, fingerprints, grants, scopes and peer names: every text form, and every refusal."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given
from hypothesis import strategies as st

from alknet.core import zbase32
from alknet.core.identity import (
    ANONYMOUS,
    OWNER,
    ApiKey,
    Grant,
    Identity,
    NodeId,
    Peer,
    check_peer_name,
    check_scope,
    parse_fingerprint,
)
from alknet.errors import LocalError

VECTORS = Path(__file__).parent.parent / "vectors"
HEX = "e78c2766a792f09bfccb51493968ac322283e8d021a30063784d806929762ecc"
Z32 = "h6gnq3i81majz9gmkfru14fcgete84gorgtoya5ajsyg1kmsf5gy"
NODE = NodeId(bytes.fromhex(HEX))


@pytest.mark.parametrize(
    ("raw", "text"),
    [
        ("", ""),
        ("f0bfc7", "6n9hq"),  # the examples of the specification
        ("d47a04", "4t7ye"),
        # draft-koch-openpgp-webkey-service sec. 3.1: SHA-1 of "joe.doe"
        ("a83ee94be89c48a11ed25ab44cfdc848833c8b6e", "iy9q119eutrkn8s1mk4r39qejnbu3n5q"),
    ],
)
def test_zbase32_agrees_with_published_examples(raw: str, text: str) -> None:
    assert zbase32.encode(bytes.fromhex(raw)) == text
    assert zbase32.decode(text).hex() == raw
    assert zbase32.decode(text.upper()).hex() == raw


@given(st.binary(max_size=70))
def test_zbase32_round_trips(data: bytes) -> None:
    assert zbase32.decode(zbase32.encode(data)) == data


@given(st.text(max_size=60))
def test_zbase32_text_is_refused_or_the_only_text_of_its_bytes(text: str) -> None:
    try:
        data = zbase32.decode(text)
    except LocalError:
        return
    assert zbase32.encode(data) == text.lower()


@pytest.mark.parametrize("text", [Z32, Z32.upper(), HEX, HEX.upper(), f"ed25519:{HEX}",
                                  f"ED25519:{HEX.upper()}", f"  {Z32}\n"])  # fmt: skip
def test_every_form_of_a_node_id_parses_to_the_same(text: str) -> None:
    assert NodeId.parse(text) == NODE
    assert hash(NodeId.parse(text)) == hash(NODE)


def test_a_node_id_prints_one_form_each() -> None:
    assert str(NODE) == Z32
    assert bytes(NODE) == bytes.fromhex(HEX)
    assert NODE.fingerprint == f"ed25519:{HEX}"
    assert NODE.short == Z32[:10]
    assert repr(NODE) == f"NodeId.parse('{Z32}')"
    assert NodeId(bytes(32)) != NODE
    assert NODE.__eq__(HEX) is NotImplemented


def test_a_node_id_is_its_public_key() -> None:
    key = Ed25519PrivateKey.generate()
    node_id = NodeId.from_public_key(key.public_key())
    node_id.public_key().verify(key.sign(b"x"), b"x")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "0 characters, expected 52"),
        (Z32[:-1], "51 characters, expected 52"),
        (Z32 + "y", "53 characters"),
        ("l" + Z32[1:], "character 'l' at position 1"),
        (Z32[:51] + "0", "character '0' at position 52"),
        (Z32[:51] + "b", "unused bits are set"),  # 'y' and 'o' are the two that end a key
        (HEX[:63] + "g", "character 'g' at position 64 is not a hex digit"),
        ("ed25519:" + HEX[:62], "62 hex digits, expected 64"),
        ("ed25519:" + HEX[:62] + "é1", "character 'é' at position 63"),
        ("rsa:" + HEX, "begins with neither"),
        ("x" * 500, "500 characters"),
    ],
)
def test_what_is_wrong_with_a_node_id_is_said(text: str, message: str) -> None:
    with pytest.raises(LocalError) as caught:
        NodeId.parse(text)
    assert message in str(caught.value)
    assert len(str(caught.value)) < 300


@pytest.mark.parametrize("size", [0, 31, 33])
def test_a_node_id_has_32_bytes(size: int) -> None:
    with pytest.raises(LocalError, match=f"32 bytes, not {size}"):
        NodeId(bytes(size))


@given(st.text(max_size=80))
def test_any_text_is_a_node_id_or_a_local_error(text: str) -> None:
    try:
        node_id = NodeId.parse(text)
    except LocalError:
        return
    assert NodeId.parse(str(node_id)) == node_id


def test_fingerprints_have_one_form() -> None:
    digest = "AB" * 32
    colons = ":".join(["AB"] * 32)
    assert parse_fingerprint(f"sha256:{digest}") == "SHA256:" + "ab" * 32
    assert parse_fingerprint(f"SHA256:{colons}") == "SHA256:" + "ab" * 32
    assert parse_fingerprint(Z32) == f"ed25519:{HEX}"
    with pytest.raises(LocalError, match="certificate fingerprint: 63 hex digits"):
        parse_fingerprint("SHA256:" + "a" * 63)


@pytest.mark.parametrize(
    ("text", "grant"),
    [
        ("fs:*", Grant("fs", "*")),
        ("fs:a", Grant("fs", "a")),
        ("fs:a:read", Grant("fs", "a", "read")),
        ("fs:a%3Ab%25:read", Grant("fs", "a:b%", "read")),
        ("fs:a%2Ab", Grant("fs", "a*b")),
        ("fs:/srv/a b", Grant("fs", "/srv/a b")),
        ("fs:%C3%A9", Grant("fs", "é")),
    ],
)
def test_grants_parse(text: str, grant: Grant) -> None:
    assert Grant.parse(text) == grant
    assert Grant.parse(str(grant)) == grant


def test_an_action_of_all_is_no_action() -> None:
    assert Grant.parse("fs:a:*") == Grant("fs", "a")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("fs", "is not 'type:id'"),
        ("fs:a:b:c", "is not 'type:id'"),
        (":a", "grant type ''"),
        ("*:a", "grant type '*'"),
        ("fs:", "without a resource id"),
        ("fs:a:", "grant action ''"),
        ("fs:a*", "'*' stands alone"),
        ("fs:%", "followed by two hex digits"),
        ("fs:%zz", "followed by two hex digits"),
        ("fs:%ff", "not UTF-8"),
        ("fs:\ud800", "not UTF-8"),
        ("fs:%2A", "cannot be granted alone"),
    ],
)
def test_bad_grants_are_refused(text: str, message: str) -> None:
    with pytest.raises(LocalError) as caught:
        Grant.parse(text)
    assert message in str(caught.value)


@given(st.text(min_size=1).filter(lambda text: text != "*"), st.sampled_from([None, "read"]))
def test_every_resource_id_survives_its_text(resource_id: str, action: str | None) -> None:
    try:
        resource_id.encode()
    except UnicodeEncodeError:
        return
    grant = Grant("fs", resource_id, action)
    assert Grant.parse(str(grant)) == grant


@pytest.mark.parametrize(
    ("grant", "action", "covered"),
    [
        (Grant("fs", "a"), "read", True),
        (Grant("fs", "a"), None, True),
        (Grant("fs", "a", "read"), "read", True),
        (Grant("fs", "a", "read"), "write", False),
        (Grant("fs", "a", "read"), None, False),
        (Grant("fs", "*"), "read", True),
        (Grant("fs", "b"), "read", False),
        (Grant("tty", "*"), "read", False),
    ],
)
def test_a_grant_covers_its_resource_and_action(
    grant: Grant, action: str | None, covered: bool
) -> None:
    assert grant.covers("fs", "a", action) is covered


@pytest.mark.parametrize(
    ("grants", "scope", "allowed"),
    [
        ((), "fs:read", False),
        (("fs:read",), "fs:read", True),
        (("fs:read",), "fs:readx", False),
        (("fs:*",), "fs:read", True),
        (("fs:*",), "fs:", True),
        (("fs:*",), "fs", False),
        (("f*",), "fs:read", True),
        (("*",), "fs:read", True),
        (("*",), "admin:peers", False),
        (("a*",), "admin:peers", False),
        (("admin*",), "admin:peers", False),
        (("admin:*",), "admin:peers", True),
        (("admin:p*",), "admin:peers", True),
        (("admin:peers",), "admin:peers", True),
        (("vault:*",), "admin:peers", False),
        (("*",), "vault:sign", False),
        (("vault*",), "vault:sign", False),
        (("vault:*",), "vault:sign", True),
        (("*", "vault:sign"), "vault:sign", True),
        (("*",), "administer", True),
        (("*",), "*", False),
        (("fs:*",), "FS:read", False),
    ],
)
def test_scopes(grants: tuple[str, ...], scope: str, allowed: bool) -> None:
    assert Identity("peer:a", grants).has_scope(scope) is allowed


def test_the_owner_has_every_scope_and_nobody_else_is_the_owner() -> None:
    assert OWNER.has_scope("admin:peers")
    assert not ANONYMOUS.has_scope("fs:read")
    assert not Peer(name="owner").identity().is_owner
    assert not ApiKey(prefix="owner", name="x", scopes=("*", "owner")).identity().is_owner


@pytest.mark.parametrize("name", ["a", "0", "hub.example", "w-1_x", "a" * 63])
def test_good_peer_names(name: str) -> None:
    check_peer_name(name)


@pytest.mark.parametrize("name", ["", "A", "-a", "a b", "a/b", "a:b", "a" * 64, "é", "a\n", "any",
                                  "local", "owner", Z32, HEX])  # fmt: skip
def test_bad_peer_names(name: str) -> None:
    with pytest.raises(LocalError, match="peer name"):
        check_peer_name(name)


@pytest.mark.parametrize("scope", ["*", "fs:read", "fs:*", "echo", "a/b.c-d_e:f"])
def test_good_scopes(scope: str) -> None:
    check_scope(scope)


@pytest.mark.parametrize("scope", ["", " ", "**", "f*s", ":*", "a b", "é", "x" * 200])
def test_bad_scopes(scope: str) -> None:
    with pytest.raises(LocalError, match="scope"):
        check_scope(scope)


def test_a_peer_record_is_brought_into_one_form() -> None:
    peer = Peer(
        name="a",
        fingerprints=(Z32, HEX.upper()),
        addresses=("Example.org:1", "[::0]:2"),
        scopes=("x",),
    ).normalized()
    assert peer.fingerprints == (f"ed25519:{HEX}",)
    assert peer.addresses == ("example.org:1", "[::]:2")
    assert peer.identity() == Identity("peer:a", ("x",))


@pytest.mark.parametrize(
    "peer",
    [
        Peer(name="Owner"),
        Peer(name="a", fingerprints=("nonsense",)),
        Peer(name="a", scopes=("a b",)),
        Peer(name="a", resources=(Grant("a:b", "x"),)),
        Peer(name="a", addresses=("host",)),
        Peer(name="a", display_name="\x1b[2J"),
    ],
)
def test_a_bad_peer_record_is_refused(peer: Peer) -> None:
    with pytest.raises(LocalError):
        peer.normalized()


def test_our_vector_of_the_node_id() -> None:
    for vector in json.loads((VECTORS / "identity.json").read_text())["vectors"]:
        node_id = NodeId(bytes.fromhex(vector["public"]))
        assert str(node_id) == vector["id"]
        assert node_id.fingerprint == vector["fingerprint"]


@pytest.mark.parametrize(
    ("key", "message"),
    [
        (ApiKey(prefix="x", name="x", hash=bytes(32)), "not 8 z-base-32 characters"),
        (ApiKey(prefix="y" * 8, name="x", hash=b""), "32 bytes, not 0"),
        (ApiKey(prefix="y" * 8, name="", hash=bytes(32)), "1 to 128 printable"),
        (ApiKey(prefix="y" * 8, name="a\n", hash=bytes(32)), "1 to 128 printable"),
        (ApiKey(prefix="y" * 8, name="x", hash=bytes(32), scopes=("",)), "scope ''"),
    ],
)
def test_a_bad_api_key_record_is_refused(key: ApiKey, message: str) -> None:
    with pytest.raises(LocalError, match=message):
        key.validate()

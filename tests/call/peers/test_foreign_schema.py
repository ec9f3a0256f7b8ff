from __future__ import annotations

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from alknet.call.peers.foreign_schema import MAX_SCHEMA_BYTES, check_schema_untrusted
from alknet.call.schema import json_schema
from alknet.errors import Malformed


class Tree(msgspec.Struct):
    value: int
    children: list[Tree] = []


GOOD = [
    b"{}",
    b"true",
    b"false",
    b'{"type":"object","properties":{"a":{"type":"integer"}}}',
    b'{"$ref":"#/$defs/a","$defs":{"a":{"type":"object","properties":{"b":{"$ref":"#"}}}}}',
    b'{"properties":{"$ref":{"type":"string"}}}',
    b'{"default":{"$ref":"http://x"}}',
    b'{"$defs":{"a/b":{"$ref":"#/items/0"}},"items":[{}],"x":{"$ref":"#/$defs/a~1b"}}',
]

BAD = {
    "not a schema": [b"1", b"[]", b"null", b'"x"', b"", b'{"$ref":'],
    "another document": [
        b'{"$ref":"http://example.org/schema"}',
        b'{"items":[{"$ref":"other.json#/a"}]}',
        b'{"$ref":7}',
        b'{"\\u0024ref":"http://example.org"}',
        b'{"$dynamicRef":"file:///etc/passwd"}',
    ],
    "a circle": [
        b'{"$ref":"#"}',
        b'{"$ref":"#/a","a":{"$ref":"#/b"},"b":{"$ref":"#/a"}}',
        b'{"items":{"$ref":"#/items"}}',
    ],
    "nowhere": [b'{"$ref":"#/missing"}', b'{"items":[{}],"a":{"$ref":"#/items/1"}}'],
    "an anchor": [b'{"$ref":"#name"}'],
    "too long": [b'{"title":"%b"}' % (b"x" * MAX_SCHEMA_BYTES)],
    "too deep": [b'{"not":' * 100 + b"true" + b"}" * 100],
}


@pytest.mark.parametrize("schema", GOOD)
def test_good_schemas(schema: bytes) -> None:
    check_schema_untrusted(schema)


def test_our_own_recursive_schemas_are_good() -> None:
    schema = msgspec.json.encode(json_schema(Tree))
    assert b"$ref" in schema
    check_schema_untrusted(schema)


@pytest.mark.parametrize("schema", [one for some in BAD.values() for one in some])
def test_bad_schemas_are_refused(schema: bytes) -> None:
    with pytest.raises(Malformed):
        check_schema_untrusted(schema)


def test_a_long_chain_of_references_is_followed_once() -> None:
    count = 5_000
    names = {f"n{n}": {"$ref": f"#/$defs/n{n + 1}"} for n in range(count)}
    schema = {"$defs": {**names, f"n{count}": {"type": "integer"}}}
    check_schema_untrusted(msgspec.json.encode(schema))


@given(
    st.recursive(
        st.one_of(st.none(), st.booleans(), st.integers(), st.sampled_from(["#", "#/a", "#/a/0"])),
        lambda inner: st.one_of(
            st.lists(inner, max_size=3),
            st.dictionaries(st.sampled_from(["$ref", "a", "items", "properties"]), inner),
        ),
        max_leaves=20,
    )
)
def test_any_json_is_a_schema_or_malformed(value: object) -> None:
    try:
        check_schema_untrusted(msgspec.json.encode(value))
    except Malformed:
        return
    assert isinstance(value, dict | bool)

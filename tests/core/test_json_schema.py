"""Schemas written by hand: what they admit, and which are refused before they can do harm."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from alknet.core.json_schema import MAX_SCHEMA_DEPTH, compile_schema, read_schema
from alknet.errors import LocalError

Schema = dict[str, Any]
LIST: Schema = {
    "$defs": {
        "node": {
            "type": "object",
            "properties": {"left": {"$ref": "#/$defs/node"}, "right": {"$ref": "#/$defs/node"}},
            "additionalProperties": False,
        }
    },
    "$ref": "#/$defs/node",
}


def doubling(levels: int) -> Schema:
    both = {f"d{n}": {"anyOf": [{"$ref": f"#/$defs/d{n + 1}"}] * 2} for n in range(levels)}
    return {"$defs": {**both, f"d{levels}": {"type": "null"}}, "$ref": "#/$defs/d0"}


def nested(levels: int) -> Schema:
    schema: Schema = {}
    for _ in range(levels):
        schema = {"items": schema}
    return schema


def test_a_schema_that_leads_back_to_itself_by_one_way_is_fine() -> None:
    validator = compile_schema(LIST)
    assert validator.is_valid({"left": {"right": {}}, "right": {}})
    assert not validator.is_valid({"left": {"right": 1}})
    null = compile_schema({"properties": {"next": {"anyOf": [{"$ref": "#"}, {"type": "null"}]}}})
    assert null.is_valid({"next": {"next": None}})


@pytest.mark.parametrize(
    ("schema", "why"),
    [
        ({"type": "strange"}, "not a JSON Schema: at /type"),
        ({"pattern": "(?=a)"}, "not a JSON Schema: at /pattern"),
        ({"pattern": "(a{1000}){1000}"}, "not a JSON Schema"),
        ({"$ref": "https://example.org/schema"}, "outside of itself"),
        ({"$ref": "file:///etc/passwd"}, "outside of itself"),
        ({"$ref": "other.json"}, "outside of itself"),
        ({"$ref": "#/$defs/missing"}, "where no subschema is"),
        ({"$dynamicRef": "#x"}, "'$dynamicRef', which is not supported"),
        ({"properties": {"a": {"$id": "https://x.org/"}}}, "'$id', which is not supported"),
        ({"items": {"anyOf": [{"$ref": "#"}, {"$ref": "#"}]}}, "leads back to itself by two ways"),
        ({"items": {"$ref": "#"}, "contains": {"$ref": "#"}}, "by two ways at its root"),
        ({"allOf": [{"$ref": "#"}], "not": {"$ref": "#"}}, "by two ways"),
        (doubling(30), "ways through it"),
        (nested(MAX_SCHEMA_DEPTH + 1), "larger than"),
        ({"enum": [], "properties": {str(n): {} for n in range(10_001)}}, "larger than"),
    ],
)
def test_a_schema_that_could_do_harm_is_refused(schema: Schema, why: str) -> None:
    with pytest.raises(LocalError) as caught:
        compile_schema(schema)
    assert why in str(caught.value)


def test_a_pattern_takes_linear_time() -> None:
    assert not compile_schema({"pattern": "^(a+)+$"}).is_valid("a" * 100_000 + "!")


def test_no_message_holds_a_value() -> None:
    [error] = compile_schema({"type": "integer"}).iter_errors("secret")
    assert "secret" not in error.message


def test_schemas_come_from_json_and_toml(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text('{"type": "null"}')
    (tmp_path / "a.toml").write_text('type = "null"')
    for name in ("a.json", "a.toml"):
        assert read_schema(tmp_path / name, 100) == {"type": "null"}


@pytest.mark.parametrize("text", ["", "[]", "{", "[" * 100_000, "\N{BOM}{}", "{}" + " " * 100])
def test_a_file_that_is_no_schema_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "a.json"
    path.write_text(text)
    with pytest.raises(LocalError):
        read_schema(path, 50)
    with pytest.raises(LocalError):
        read_schema(tmp_path, 50)


names = st.sampled_from(["a", "b", "$defs", "items", "x/y", "~"])
leaves = st.sampled_from([True, False, {}, {"$ref": "#"}, {"$ref": "#/$defs/a"}, {"type": "null"}])


def compound(inner: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    return st.fixed_dictionaries(
        {},
        optional={
            "items": inner,
            "not": inner,
            "anyOf": st.lists(inner, min_size=1, max_size=2),
            "properties": st.dictionaries(names, inner, max_size=2),
            "$defs": st.dictionaries(names, inner, max_size=2),
        },
    )


@given(st.recursive(leaves, compound, max_leaves=8).filter(lambda schema: isinstance(schema, dict)))
def test_what_is_not_refused_validates_in_time(schema: Schema) -> None:
    try:
        validator = compile_schema(schema)
    except LocalError:
        return
    value: Any = None
    for _ in range(40):
        value = {"a": [value], "items": value} if len(json.dumps(value)) < 2_000 else [value]
    validator.is_valid(value)

from __future__ import annotations

import enum
import uuid
from typing import Annotated, Any, Literal

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import Meta

from alknet.call.schema import Mismatch, Nothing, Shape, json_schema
from alknet.errors import LocalError, Malformed


class Kind(enum.Enum):
    A = "a"


class Item(msgspec.Struct, forbid_unknown_fields=True):
    number: int
    label: str = ""


class Cat(msgspec.Struct, tag="cat"):
    name: str


class Dog(msgspec.Struct, tag="dog"):
    name: str


class Checked(msgspec.Struct):
    low: int
    high: int

    def __post_init__(self) -> None:
        if self.low > self.high:
            raise ValueError("low is above high")


class Everything(msgspec.Struct):
    items: list[Item]
    table: dict[str, Item] = {}
    kind: Kind = Kind.A
    word: Literal["x", "y"] = "x"
    text: Annotated[str, Meta(min_length=2)] = "xx"
    unique: uuid.UUID | None = None
    pet: Cat | Dog | None = None
    checked: Checked | None = None
    counts: dict[int, int] = {}
    odd: Annotated[int, Meta(ge=0)] | None = msgspec.field(default=None, name="a/b~c")


class Tree(msgspec.Struct):
    children: list[Tree] = []
    item: Item | None = None


class Wrapper(msgspec.Struct):
    tree: Tree
    item: Item


@pytest.mark.parametrize(
    ("data", "path", "message"),
    [
        (b"{}", "/items", "required field is missing"),
        (b'{"items":[{"number":1},{}]}', "/items/1/number", "required field is missing"),
        (b'{"items":[{"number":1,"x":2}]}', "/items/0/x", "field is not known"),
        (b'{"items":[{"number":"secret"}]}', "/items/0/number", "expected `int`, got `str`"),
        (b'{"items":[],"table":{"k":{"number":null}}}', "/table", "expected `int`, got `null`"),
        (b'{"items":[],"kind":"secret"}', "/kind", "invalid enum value"),
        (b'{"items":[],"word":"secret"}', "/word", "invalid enum value"),
        (b'{"items":[],"text":"s"}', "/text", "expected `str` of length >= 2"),
        (b'{"items":[],"unique":"secret"}', "/unique", "invalid UUID"),
        (b'{"items":[],"pet":{"type":"secret"}}', "/pet/type", "invalid value"),
        (b'{"items":[],"pet":{"name":"secret"}}', "/pet/type", "required field is missing"),
        (b'{"items":[],"checked":{"low":2,"high":1}}', "/checked", "low is above high"),
        (b'{"items":[],"counts":{"secret":1}}', "/counts", "expected `int`, got `str`"),
        (b'{"items":[],"a/b~c":-1}', "/a~1b~0c", "expected `int` >= 0"),
        (b"[]", "", "expected `object`, got `array`"),
        (b'{"items":', "", "not valid JSON"),
        (b"", "", "not valid JSON"),
        (b'{"items":[]}x', "", "not valid JSON"),
    ],
)
def test_mismatch_names_the_path_and_not_the_value(data: bytes, path: str, message: str) -> None:
    with pytest.raises(Mismatch) as caught:
        Shape(Everything).decode_untrusted(data)
    assert (caught.value.path, caught.value.message) == (path, message)
    assert "secret" not in str(caught.value)


def test_long_unknown_names_do_not_come_back() -> None:
    with pytest.raises(Mismatch) as caught:
        Shape(Item).decode_untrusted(b'{"number":1,"' + b"x" * 100_000 + b'":1}')
    assert caught.value.path == ""
    assert len(str(caught.value)) < 100


def test_deep_json_is_a_mismatch() -> None:
    with pytest.raises(Mismatch):
        Shape(Any).decode_untrusted(b"[" * 100_000)


@given(
    st.binary()
    | st.recursive(st.none() | st.integers() | st.text(), st.lists).map(repr).map(str.encode)
)
def test_any_bytes_are_a_value_or_malformed(data: bytes) -> None:
    try:
        value = Shape(Everything).decode_untrusted(data)
    except Malformed:
        return
    assert isinstance(value, Everything)


@pytest.mark.parametrize(
    ("type_", "value"),
    [
        (int, "1"),
        (Item, Item("not a number")),  # type: ignore[arg-type]  # msgspec does not look
        (Item, Cat("c")),
        (list[Item], [Item(1), None]),
        (int, 2**53),
        (int, -(2**53)),
        (dict[str, Any], {"a": [2**63]}),
        (dict[str, Any], {"a": object()}),
        (float, float("nan")),
        (str, "\ud800"),
    ],
)
def test_encode_refuses_what_is_not_of_the_shape(type_: Any, value: object) -> None:
    with pytest.raises(Mismatch):
        Shape(type_).encode(value)


@pytest.mark.parametrize(
    ("type_", "value", "data"),
    [
        (int, 2**53 - 1, b"9007199254740991"),
        (str, "9007199254740993000", b'"9007199254740993000"'),
        (float, 0.12345678901234566, b"0.12345678901234566"),
        (type(None), None, b"null"),
        (Item, Item(1), b'{"number":1,"label":""}'),
        (Cat | Dog, Dog("d"), b'{"type":"dog","name":"d"}'),
    ],
)
def test_encode(type_: Any, value: object, data: bytes) -> None:
    assert Shape(type_).encode(value) == data


def test_nothing_takes_any_object() -> None:
    assert Shape(Nothing).decode_untrusted(b'{"a":1}') == Nothing()


@pytest.mark.parametrize("type_", [object(), complex, list[complex], int | complex])
def test_types_without_a_json_form_are_refused(type_: Any) -> None:
    with pytest.raises(LocalError, match="no JSON form"):
        Shape(type_)


def test_schema_is_written_out() -> None:
    schema = json_schema(Everything)
    assert "$ref" not in str(schema)
    assert "$defs" not in schema
    assert schema["properties"]["items"]["items"]["properties"]["number"] == {"type": "integer"}
    assert schema["properties"]["kind"] == {"title": "Kind", "enum": ["a"], "default": "a"}


def test_recursive_types_keep_their_definition_and_nothing_else() -> None:
    schema = json_schema(Wrapper)
    assert schema["type"] == "object"
    assert schema["properties"]["tree"] == {"$ref": "#/$defs/Tree"}
    assert schema["properties"]["item"]["title"] == "Item"
    assert list(schema["$defs"]) == ["Tree"]
    tree = schema["$defs"]["Tree"]
    assert tree["properties"]["children"]["items"] == {"$ref": "#/$defs/Tree"}
    assert tree["properties"]["item"]["anyOf"][0]["title"] == "Item"


def test_recursive_root_is_written_out() -> None:
    schema = json_schema(Tree)
    assert schema["title"] == "Tree"
    assert "$ref" not in schema
    assert schema["properties"]["children"]["items"] == {"$ref": "#/$defs/Tree"}


def test_doubling_types_do_not_explode() -> None:
    level: Any = msgspec.defstruct("L0", [("x", int)])
    for n in range(1, 40):
        level = msgspec.defstruct(f"L{n}", [("a", level), ("b", level)])
    schema = json_schema(level)
    assert schema["title"] == "L39"
    assert len(schema["$defs"]) == 40
    assert schema["properties"]["a"] == {"$ref": "#/$defs/L38"}


def test_data_in_a_schema_is_left_alone() -> None:
    class Odd(msgspec.Struct):
        item: Item
        value: dict[str, Any] = msgspec.field(default_factory=dict)
        examples: Annotated[
            dict[str, Any], Meta(extra_json_schema={"examples": [{"$ref": "#/$defs/Item"}]})
        ] = msgspec.field(default_factory=dict)

    schema = json_schema(Odd)
    assert schema["properties"]["examples"]["examples"] == [{"$ref": "#/$defs/Item"}]
    assert schema["properties"]["item"]["title"] == "Item"


def test_fields_called_like_keywords_are_schemas() -> None:
    class Named(msgspec.Struct):
        default: Item
        enum: list[Tree]

    schema = json_schema(Named)
    assert schema["properties"]["default"]["title"] == "Item"
    assert list(schema["$defs"]) == ["Tree"]

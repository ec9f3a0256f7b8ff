from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import Annotated, Any, Literal, NamedTuple, TypedDict

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from alknet.call.pointer import MISSING, Pointer, escape_token
from alknet.errors import LocalError


class Colour(enum.Enum):
    RED = "red"


class Number(enum.Enum):
    ONE = 1


class Pair(NamedTuple):
    left: str
    right: int


class Row(msgspec.Struct, array_like=True):
    a: str
    b: int


class Keyed(TypedDict):
    id: str


@dataclass
class Data:
    id: str


class Inner(msgspec.Struct):
    id: str
    count: int = 0


class Outer(msgspec.Struct, rename="camel"):
    inner_part: Inner
    names: list[str] = []
    table: dict[str, Inner] = {}
    maybe: str | None = None
    colour: Colour = Colour.RED
    number: Number = Number.ONE
    pair: Pair | None = None
    row: Row | None = None
    keyed: Keyed | None = None
    data: Data | None = None
    anything: Any = None
    kind: Literal["a", "b"] = "a"
    short: Annotated[str, msgspec.Meta(max_length=3)] = ""
    both: tuple[str, int] = ("", 0)


OUTER = Outer(
    Inner("i1", 3),
    names=["n0", "n1"],
    table={"a/b": Inner("t1"), "~": Inner("t2")},
    pair=Pair("l", 1),
    row=Row("ra", 1),
    keyed={"id": "k1"},
    data=Data("d1"),
    anything={"x": [{"y": "deep"}]},
)


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("/innerPart/id", "i1"),
        ("/innerPart/count", 3),
        ("/names/1", "n1"),
        ("/table/a~1b/id", "t1"),
        ("/table/~0/id", "t2"),
        ("/maybe", None),
        ("/colour", "red"),
        ("/pair/0", "l"),
        ("/row/0", "ra"),
        ("/keyed/id", "k1"),
        ("/data/id", "d1"),
        ("/anything/x/0/y", "deep"),
        ("/inner_part/id", MISSING),  # by its name in JSON only
        ("/names/2", MISSING),
        ("/names/01", MISSING),
        ("/names/-1", MISSING),
        ("/names/٣", MISSING),
        ("/names/" + "9" * 5000, MISSING),
        ("/table/none/id", MISSING),
        ("/data/none", MISSING),
        ("/maybe/id", MISSING),
        ("/innerPart/id/0", MISSING),  # a string is no list
        ("/__class__", MISSING),
        ("/data/__class__", MISSING),
        ("/", MISSING),
    ],
)
def test_resolves_in_decoded_values(text: str, found: object) -> None:
    assert Pointer(text).resolve(OUTER) == found


def test_empty_pointer_is_the_whole() -> None:
    assert Pointer("").resolve("x") == "x"


@pytest.mark.parametrize("text", ["x", "x/y", "/~", "/a~2", "/a/~x"])
def test_refuses_what_is_no_pointer(text: str) -> None:
    with pytest.raises(LocalError, match="not a JSON Pointer"):
        Pointer(text)


@pytest.mark.parametrize(
    "text",
    [
        "/innerPart/id",
        "/names/7",
        "/table/any/id",
        "/maybe",
        "/colour",
        "/pair/0",
        "/row/0",
        "/keyed/id",
        "/data/id",
        "/anything/whatever",
        "/kind",
        "/short",
        "/both/0",
    ],
)
def test_type_can_have_a_string_there(text: str) -> None:
    Pointer(text).check_string(Outer)


@pytest.mark.parametrize(
    "text",
    [
        "/inner_part/id",
        "/none",
        "/innerPart",
        "/innerPart/count",
        "/names",
        "/names/x",
        "/number",
        "/pair/1",
        "/pair/2",
        "/row/1",
        "/both/1",
        "/both/2",
        "/maybe/x",
    ],
)
def test_type_cannot_have_a_string_there(text: str) -> None:
    with pytest.raises(LocalError):
        Pointer(text).check_string(Outer)


@given(st.dictionaries(st.text(), st.text()))
def test_any_key_can_be_escaped(table: dict[str, str]) -> None:
    for key, value in table.items():
        assert Pointer("/" + escape_token(key)).resolve(table) == value

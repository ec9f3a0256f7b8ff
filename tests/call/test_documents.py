"""Shapes from JSON Schemas: what they say about values that do not fit."""

from __future__ import annotations

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from alknet.call.documents import MAX_MESSAGE, DocumentShape
from alknet.call.schema import Mismatch

SHAPE = DocumentShape(
    {
        "type": "object",
        "properties": {"a": {"type": "array", "items": {"type": "integer"}}},
        "required": ["a"],
        "additionalProperties": False,
    }
)


def test_a_value_that_fits_is_what_json_makes_of_it() -> None:
    assert SHAPE.decode_untrusted(b'{"a": [1, 2]}') == {"a": [1, 2]}
    assert SHAPE.encode({"a": [1]}) == b'{"a":[1]}'


@pytest.mark.parametrize(
    ("data", "path", "says"),
    [
        (b"nonsense", "", "not valid JSON"),
        (b"[]", "", "not of type"),
        (b"{}", "", '"a" is a required property'),
        (b'{"a": [1, "secret"]}', "/a/1", "the value is not of type"),
        (b'{"a": [], "b\\u0007": 1}', "", "were unexpected|was unexpected"),
        (b'{"a": [], "%b": 1}' % (b"x" * 500), "", "…"),
    ],
)
def test_a_value_that_does_not_is_named_by_its_place(data: bytes, path: str, says: str) -> None:
    with pytest.raises(Mismatch, match=says) as caught:
        SHAPE.decode_untrusted(data)
    assert caught.value.path == path
    assert "secret" not in caught.value.message
    assert caught.value.message.isprintable()
    assert len(caught.value.message) <= MAX_MESSAGE


@given(st.binary() | st.text().map(str.encode))
def test_any_bytes_are_a_value_or_a_mismatch(data: bytes) -> None:
    with contextlib.suppress(Mismatch):
        SHAPE.decode_untrusted(data)

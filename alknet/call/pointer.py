"""JSON Pointer (RFC 6901) into decoded values and into their types.

A resource id is found where an operation's ``resource_id_path`` points, in the value that the
handler will get, not in the JSON text: what is checked is what is used.
"""

from __future__ import annotations

import dataclasses
import enum
import re
from collections.abc import Iterator, Mapping
from functools import cache
from typing import Any

import msgspec
from msgspec import inspect as types

from alknet.errors import LocalError

__all__ = ["MISSING", "Pointer", "escape_token"]


class _Missing(enum.Enum):
    MISSING = "missing"

    def __repr__(self) -> str:
        return "MISSING"


MISSING = _Missing.MISSING
"""What `Pointer.resolve` returns where there is nothing (null is something)."""


class Pointer:
    """A parsed JSON Pointer.

    Attributes:
        text: As it was given.
    """

    __slots__ = ("_tokens", "text")

    def __init__(self, text: str) -> None:
        """Parse *text*: empty (the whole value) or ``/token/token…`` with ``~0`` and ``~1``.

        Raises:
            LocalError: It is not a JSON Pointer.
        """
        if text and not text.startswith("/"):
            raise LocalError(f"{text!r} is not a JSON Pointer: it must begin with '/'")
        if _BAD_ESCAPE.search(text):
            raise LocalError(f"{text!r} is not a JSON Pointer: '~' must be written '~0'")
        self.text = text
        self._tokens = tuple(
            token.replace("~1", "/").replace("~0", "~") for token in text.split("/")[1:]
        )

    def __repr__(self) -> str:
        return f"Pointer({self.text!r})"

    def resolve(self, value: object) -> object:
        """Return what stands there in a value that msgspec decoded, or `MISSING`.

        Fields go by their names in JSON; an enum gives its value.
        """
        for token in self._tokens:
            value = _step(value, token)
        return value.value if isinstance(value, enum.Enum) and value is not MISSING else value

    def check_string(self, type_: object) -> None:
        """Raise LocalError if no value of *type_* can have a string there.

        Where the type leaves it open (``dict``, ``Any``), nothing is known and nothing is raised.
        """
        reached = [types.type_info(type_)]
        for token in self._tokens:
            reached = [inner for outer in reached for inner in _inner(outer, token)]
            if not reached:
                raise LocalError(f"the input has no {token!r} on the way of {self.text!r}")
        if not any(_can_be_string(leaf) for outer in reached for leaf in _unfold(outer)):
            raise LocalError(f"what {self.text!r} points at in the input is not a string")


def escape_token(token: str) -> str:
    """Return *token* as it stands in a JSON Pointer."""
    return token.replace("~", "~0").replace("/", "~1")


def _step(value: object, token: str) -> object:
    if isinstance(value, Mapping):
        return value.get(token, MISSING)
    if isinstance(value, list | tuple):
        return _item(value, token)
    if isinstance(value, msgspec.Struct):
        if value.__struct_config__.array_like:
            return _item(msgspec.structs.astuple(value), token)
        attribute = _attributes(type(value)).get(token)
    elif dataclasses.is_dataclass(value):
        attribute = token if token in {field.name for field in dataclasses.fields(value)} else None
    else:
        return MISSING
    return MISSING if attribute is None else getattr(value, attribute)


def _item(values: list[Any] | tuple[Any, ...], token: str) -> object:
    # The length first: int() of a long digit string is quadratic.
    if len(token) > 9 or not _INDEX.fullmatch(token) or int(token) >= len(values):
        return MISSING
    item: object = values[int(token)]
    return item


@cache
def _attributes(struct: type[msgspec.Struct]) -> Mapping[str, str]:
    return dict(zip(struct.__struct_encode_fields__, struct.__struct_fields__, strict=True))


def _inner(type_: types.Type, token: str) -> Iterator[types.Type]:
    """Yield the types that may stand at *token* in a value of *type_*."""
    for outer in _unfold(type_):
        match outer:
            case types.AnyType():
                yield outer
            case types.DictType(value_type=value):
                yield value
            case types.StructType(array_like=False, fields=fields):
                yield from (field.type for field in fields if field.encode_name == token)
            case types.TypedDictType(fields=fields) | types.DataclassType(fields=fields):
                yield from (field.type for field in fields if field.encode_name == token)
            case types.StructType(fields=fields) | types.NamedTupleType(fields=fields):
                yield from _at([field.type for field in fields], token)
            case types.TupleType(item_types=items):
                yield from _at(items, token)
            case types.ListType(item_type=item) | types.VarTupleType(item_type=item):
                if _INDEX.fullmatch(token):
                    yield item
            case _:
                pass


def _at(items: list[types.Type] | tuple[types.Type, ...], token: str) -> Iterator[types.Type]:
    if len(token) < 10 and _INDEX.fullmatch(token) and int(token) < len(items):
        yield items[int(token)]


def _unfold(type_: types.Type) -> Iterator[types.Type]:
    match type_:
        case types.Metadata(type=inner):
            yield from _unfold(inner)
        case types.UnionType(types=members):
            for member in members:
                yield from _unfold(member)
        case _:
            yield type_


def _can_be_string(type_: types.Type) -> bool:
    match type_:
        case types.StrType() | types.AnyType():
            return True
        case types.EnumType(cls=kind):
            return any(isinstance(member.value, str) for member in kind)
        case types.LiteralType(values=values):
            return any(isinstance(value, str) for value in values)
        case _:
            return False


_BAD_ESCAPE = re.compile(r"~(?![01])")
_INDEX = re.compile(r"0|[1-9][0-9]*")

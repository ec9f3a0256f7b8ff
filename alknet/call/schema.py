"""The shape of an input, an output or an error: decode and validate in one step, and its schema.

`Shape` wraps one Python type that msgspec knows. JSON Schemas (2020-12) are made from the same
type, so that what is published is what is enforced.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any, get_args

import msgspec

from alknet.call.pointer import escape_token
from alknet.call.proto.scan import has_unsafe_integer
from alknet.errors import LocalError, Malformed

__all__ = ["JsonSchema", "Mismatch", "Nothing", "Shape"]

JsonSchema = dict[str, Any]

# Expanding a schema stops here: types that share others could double it at each level.
_MAX_EXPANSIONS = 1_000
# Longer names (of keys that a peer made up) are left out of messages and paths.
_MAX_NAME = 64


class Nothing(msgspec.Struct, frozen=True):
    """The input of an operation that takes none: any object, whose keys are ignored."""


class Mismatch(Malformed):
    """A value does not have the shape that it must have.

    Attributes:
        path: JSON Pointer to the fault, as far as it is known; empty for the whole.
        message: What is wrong there, without any of the value.
    """

    def __init__(self, path: str, message: str) -> None:
        super().__init__(f"{message} at {path}" if path else message)
        self.path = path
        self.message = message


class Shape:
    """A type that values on the wire must have.

    Attributes:
        type: Anything that msgspec can decode to and describe.
        schema: The JSON Schema of it, a whole document.
    """

    def __init__(self, type_: Any) -> None:
        """Build the decoder and the schema of *type_*.

        Raises:
            LocalError: msgspec cannot decode to it or describe it.
        """
        self.type = type_
        try:
            self.schema = json_schema(type_)
            self._decoder: msgspec.json.Decoder[Any] = msgspec.json.Decoder(type_)
        except (TypeError, NameError, ValueError, AttributeError) as exc:
            raise LocalError(f"{_type_name(type_)} has no JSON form: {exc}") from exc

    def __repr__(self) -> str:
        return f"Shape({_type_name(self.type)})"

    def decode_untrusted(self, data: bytes | bytearray | memoryview | msgspec.Raw) -> Any:
        """Return the value that *data* (one JSON text) stands for.

        Raises:
            Mismatch: It is not of this shape, or not JSON.
        """
        try:
            return self._decoder.decode(data)
        except msgspec.ValidationError as exc:
            raise _mismatch(str(exc)) from exc
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as exc:
            raise Mismatch("", "not valid JSON") from exc

    def encode(self, value: object) -> bytes:
        """Return *value* as JSON, after checking that it reads back as this shape.

        Raises:
            Mismatch: It does not, cannot be written, or holds an integer beyond 2^53-1.
        """
        try:
            data = _ENCODER.encode(value)
        except (TypeError, ValueError, OverflowError, RecursionError) as exc:
            raise Mismatch("", f"{type(value).__name__} cannot be written as JSON") from exc
        self.decode_untrusted(data)
        if has_unsafe_integer(data):
            raise Mismatch("", "an integer beyond 2^53-1 must be a string")
        return data


def json_schema(type_: Any) -> JsonSchema:
    """Return the JSON Schema of *type_*, definitions written where they are used.

    Only what refers to itself stays in ``$defs``, with the root always written out.
    """
    schema = msgspec.json.schema(type_)
    definitions: Mapping[str, JsonSchema] = schema.pop("$defs", {})
    recursive = {name for name in definitions if _reaches(name, definitions)}
    kept = recursive
    try:
        expanded = _Expansion(definitions, recursive).expand(schema)
    except _TooLargeError:
        kept, expanded = set(definitions), schema
    root = _reference(expanded)
    if root is not None:
        rest = {key: value for key, value in expanded.items() if key != "$ref"}
        expanded = {**_Expansion(definitions, kept).expand(definitions[root]), **rest}
    if kept:
        expanded["$defs"] = {
            name: _Expansion(definitions, kept).expand(definitions[name]) for name in sorted(kept)
        }
    return expanded


class _TooLargeError(Exception):
    pass


class _Expansion:
    """Writes definitions where they are used, except for *kept* ones."""

    def __init__(self, definitions: Mapping[str, JsonSchema], kept: set[str]) -> None:
        self._definitions = definitions
        self._kept = kept
        self._left = _MAX_EXPANSIONS

    def expand(self, schema: JsonSchema) -> JsonSchema:
        expanded: JsonSchema = self._walk(schema)
        return expanded

    def _walk(self, node: Any) -> Any:
        if isinstance(node, list):
            return [self._walk(item) for item in node]
        if not isinstance(node, dict):
            return node
        name = _reference(node)
        if name is None or name in self._kept:
            return {key: self._walk_key(key, value) for key, value in node.items()}
        self._left -= 1
        if self._left < 0:
            raise _TooLargeError
        rest = {key: value for key, value in node.items() if key != "$ref"}
        return {**self._walk(self._definitions[name]), **rest}

    def _walk_key(self, key: str, value: Any) -> Any:
        if key in _NAMED:
            return {name: self._walk(schema) for name, schema in value.items()}
        return value if key in _DATA else self._walk(value)


def _reaches(start: str, definitions: Mapping[str, JsonSchema]) -> bool:
    """Whether the definition *start* refers to itself, directly or through others."""
    seen: set[str] = set()
    todo = [start]
    while todo:
        for name in _references(definitions[todo.pop()]):
            if name == start:
                return True
            if name not in seen:
                seen.add(name)
                todo.append(name)
    return False


def _references(node: Any) -> Iterator[str]:
    if isinstance(node, list):
        for item in node:
            yield from _references(item)
    elif isinstance(node, dict):
        name = _reference(node)
        if name is not None:
            yield name
        for key, value in node.items():
            if key in _NAMED:
                yield from _references(list(value.values()))
            elif key not in _DATA:
                yield from _references(value)


def _reference(schema: JsonSchema) -> str | None:
    reference = schema.get("$ref")
    if isinstance(reference, str) and reference.startswith("#/$defs/"):
        return reference.removeprefix("#/$defs/")
    return None


def _type_name(type_: object) -> str:
    return type_.__name__ if isinstance(type_, type) and not get_args(type_) else str(type_)


def _mismatch(text: str) -> Mismatch:
    """Turn msgspec's message into a path and words that do not repeat the value."""
    match = _VALIDATION.fullmatch(text)
    assert match is not None, "the pattern takes any text"
    what, at = match.groups()
    path = _pointer(at or "$")
    for pattern, words in _NAMED_FIELD:
        field = pattern.fullmatch(what)
        if field is not None:
            name = field[1]
            if len(name) > _MAX_NAME:
                return Mismatch(path, words)
            return Mismatch(f"{path}/{escape_token(name)}", words)
    what = _ECHO.sub("", what)
    return Mismatch(path, what[:1].lower() + what[1:])


def _pointer(path: str) -> str:
    """Turn ``$.a[0].b`` into ``/a/0/b``; ends before ``[...]``, for the key is not told.

    Field names that hold a dot or a bracket cannot be told apart from paths.
    """
    tokens = []
    for name, index in _PATH_TOKEN.findall(path.partition("[...]")[0]):
        tokens.append(index or escape_token(name))
    return "".join(f"/{token}" for token in tokens)


# Keywords whose value is schemas by name, where a name may look like a keyword …
_NAMED = frozenset({"properties", "patternProperties"})
# … and those whose value is data, where an object may hold any key, "$ref" too.
_DATA = frozenset({"default", "enum", "const", "examples"})

_ENCODER = msgspec.json.Encoder()

# msgspec: "Expected `int`, got `str` - at `$.a[0].b`", "... - at `key` in `$.a`".
_VALIDATION = re.compile(r"(.*?)(?: - at (?:`key` in )?`(\$[^`]*)`)?", re.DOTALL)
_PATH_TOKEN = re.compile(r"\.([^.\[\]]+)|\[(\d+)\]")
_NAMED_FIELD = (
    (re.compile(r"Object missing required field `(.*)`", re.DOTALL), "required field is missing"),
    (re.compile(r"Object contains unknown field `(.*)`", re.DOTALL), "field is not known"),
)
# "Invalid enum value 'x'", "Invalid value 'x'", "Invalid value 3": the value may be a secret.
_ECHO = re.compile(r"(?<=value) (?:'.*'|-?\d+)\Z", re.DOTALL)

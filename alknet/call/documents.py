"""Shapes that come as JSON Schemas instead of types: those of commands."""

from __future__ import annotations

from typing import Any

import msgspec

from alknet.call.pointer import escape_token
from alknet.call.schema import JsonSchema, Mismatch, Shape
from alknet.core.json_schema import compile_schema

__all__ = ["DocumentShape"]

MAX_MESSAGE = 200
"""A message may quote names of keys, which a caller chose; this much of them is enough."""

MAX_NAME = 64
"""A path ends before a longer name."""


class DocumentShape(Shape):
    """What a JSON Schema (2020-12) admits; values stay what JSON makes of them."""

    def __init__(self, schema: JsonSchema) -> None:
        """Compile *schema*.

        Raises:
            LocalError: It is none, refers elsewhere, or could take for ever.
        """
        self.type = Any
        self.schema = schema
        self._decoder = msgspec.json.Decoder(Any)
        self._validator = compile_schema(schema)

    def __repr__(self) -> str:
        return "DocumentShape(…)"

    def decode_untrusted(self, data: bytes | bytearray | memoryview | msgspec.Raw) -> Any:
        """Return the value that *data* (one JSON text) stands for.

        Raises:
            Mismatch: The schema does not admit it, or it is not JSON.
        """
        value = super().decode_untrusted(data)
        if not self._validator.is_valid(value):
            raise self._mismatch(value)
        return value

    def _mismatch(self, value: Any) -> Mismatch:
        for error in self._validator.iter_errors(value):
            return Mismatch(_pointer(error.instance_path), _words(error.message))
        return Mismatch("", "the schema does not admit it")


def _pointer(path: list[str | int]) -> str:
    tokens = []
    for step in path:
        if len(str(step)) > MAX_NAME:
            break
        tokens.append(escape_token(str(step)))
    return "".join(f"/{token}" for token in tokens)


def _words(message: str) -> str:
    shown = "".join(char if char.isprintable() else " " for char in message[: MAX_MESSAGE + 1])
    shown = shown[:1].lower() + shown[1:]
    return shown if len(shown) <= MAX_MESSAGE else f"{shown[: MAX_MESSAGE - 1]}…"

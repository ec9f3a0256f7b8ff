"""JSON Schemas that a peer made: kept as they came, once it is sure that they can be walked."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any
from urllib.parse import unquote

import msgspec

from alknet.call.proto.scan import check_depth_untrusted
from alknet.errors import Malformed

__all__ = ["MAX_SCHEMA_BYTES", "check_schema_untrusted"]

MAX_SCHEMA_BYTES = 256 * 1024
"""One schema: those of hand-written types have a few hundred bytes, those of the largest published
interfaces some 100 KiB."""


def check_schema_untrusted(data: bytes) -> None:
    """Return if *data* is a JSON Schema that a program may follow from end to end.

    Structures that contain themselves are good (a tree is), references that lead nowhere or in a
    circle are not, nor are those into other documents, which somebody might fetch.

    Raises:
        Malformed: It is no schema, too long, nests too deeply, or has such a reference.
    """
    if len(data) > MAX_SCHEMA_BYTES:
        raise Malformed(f"a schema of {len(data)} bytes is over {MAX_SCHEMA_BYTES}")
    check_depth_untrusted(data)
    if data in {b"true", b"false"}:
        return
    if not data.startswith(b"{"):
        raise Malformed("a schema is an object, true or false")
    if b'Ref"' not in data and b'$ref"' not in data and b"\\u" not in data:
        return  # most have none, and then there is nothing to follow
    try:
        root = msgspec.json.decode(data)
    except (msgspec.DecodeError, RecursionError) as exc:
        raise Malformed(f"a schema is not JSON: {str(exc)[:200]}") from None
    settled: set[str] = set()
    for reference in _references(root):
        _check_reference(root, reference, settled)


def _references(root: Any) -> Iterator[object]:
    todo = [root]
    while todo:
        node = todo.pop()
        if isinstance(node, dict):
            for key in _REFERENCES:
                if key in node:
                    yield node[key]
            for key, value in node.items():
                if key in _NAMED and isinstance(value, dict):
                    todo.extend(value.values())  # names may look like keywords
                elif key not in _DATA:
                    todo.append(value)
        elif isinstance(node, list):
            todo.extend(node)


def _check_reference(root: Any, reference: object, settled: set[str]) -> None:
    """Follow references from one to the next, until one leads to something else."""
    passed: set[str] = set()
    while True:
        if not isinstance(reference, str) or not reference.startswith("#"):
            raise Malformed("a schema refers to another document")
        if reference in passed:
            raise Malformed("a schema refers to itself in a circle")
        passed.add(reference)
        if reference in settled:
            break
        target = _resolve(root, reference)
        found = [target[key] for key in _REFERENCES if key in target]
        if len(found) != 1:
            break  # more than one is more than a circle of references
        reference = found[0]
    settled |= passed


def _resolve(root: Any, reference: str) -> dict[str, Any]:
    node = root
    pointer = unquote(reference[1:])
    if pointer and not pointer.startswith("/"):
        raise Malformed("a schema refers to an anchor, which is not followed here")
    for token in pointer.split("/")[1:]:
        key = token.replace("~1", "/").replace("~0", "~")
        if isinstance(node, dict) and key in node:
            node = node[key]
        elif isinstance(node, list) and _INDEX.fullmatch(key) and int(key) < len(node):
            node = node[int(key)]
        else:
            raise Malformed("a schema refers to what it does not have")
    return node if isinstance(node, dict) else {}


_REFERENCES = ("$ref", "$dynamicRef", "$recursiveRef")
# Keywords whose value is schemas by name, and those whose value is data.
_NAMED = frozenset({"properties", "patternProperties", "$defs", "definitions", "dependentSchemas"})
_DATA = frozenset({"default", "enum", "const", "examples"})
_INDEX = re.compile(r"[0-9]{1,6}")

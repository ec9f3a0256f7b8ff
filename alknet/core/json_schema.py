"""JSON Schemas (2020-12) that were written by hand: in files, and by people.

Patterns are matched in linear time (no look-around, no back-references), references stay inside
the document, and a schema with which a small value could take for ever is refused.
"""

from __future__ import annotations

import json
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import jsonschema_rs

from alknet.errors import LocalError

__all__ = ["MAX_SCHEMA_DEPTH", "MAX_SCHEMA_NODES", "Validator", "compile_schema", "read_schema"]

MAX_SCHEMA_DEPTH = 64
"""Levels of a schema: those of a frame, in which it is sent."""

MAX_SCHEMA_NODES = 10_000
"""Objects and lists in a schema, and ways to one: people write a hundred, generators a thousand."""

PATTERN_BYTES = 1024 * 1024
"""What a compiled pattern may take."""

Validator = jsonschema_rs.Draft202012Validator


def read_schema(path: Path, most_bytes: int) -> dict[str, Any]:
    """Return the schema in a JSON file, or in a TOML file named ``.toml``.

    Raises:
        LocalError: It cannot be read, is too long, or is not one object.
    """
    try:
        with path.open("rb") as file:
            data = file.read(most_bytes + 1)
    except (OSError, ValueError) as exc:
        raise LocalError(f"cannot read the schema {str(path)!r}: {exc}") from exc
    if len(data) > most_bytes:
        raise LocalError(f"the schema {str(path)!r} is longer than {most_bytes} bytes")
    try:
        text = data.decode()
        found = tomllib.loads(text) if path.suffix == ".toml" else json.loads(text)
    except (ValueError, RecursionError) as exc:
        raise LocalError(f"the schema {str(path)!r} does not parse: {exc}") from exc
    if not isinstance(found, dict):
        raise LocalError(f"the schema {str(path)!r} is not an object")
    return found


def compile_schema(schema: dict[str, Any]) -> Validator:
    """Return what validates against *schema*.

    Raises:
        LocalError: It is not a schema, refers to another document, or could take for ever.
    """
    check_cost(schema)
    try:
        return Validator(
            schema,
            offline=True,
            mask="the value",  # messages go to callers and logs
            pattern_options=jsonschema_rs.RegexOptions(PATTERN_BYTES, PATTERN_BYTES),
        )
    except jsonschema_rs.ValidationError as exc:
        place = "".join(f"/{step}" for step in exc.instance_path) or "its root"
        raise LocalError(f"not a JSON Schema: at {place}, {exc.message[:200]}") from None
    except (jsonschema_rs.ReferencingError, ValueError) as exc:
        raise LocalError(f"not a JSON Schema that can be used: {str(exc)[:300]}") from None


def check_cost(schema: dict[str, Any]) -> None:
    """Raise LocalError if the work of a validation could grow faster than the value.

    It does where a schema leads back to itself by two ways for the same value: each level of the
    value then doubles the work.
    """
    graph = _Graph(schema)
    for place in graph.places:
        if len(graph.ways_back(place)) > 1:
            where = place or "its root"
            raise LocalError(
                f"the schema leads back to itself by two ways at {where}: values nested in one "
                "another would take for ever"
            )
    if graph.count_ways() > MAX_SCHEMA_NODES:
        raise LocalError(f"the schema has more than {MAX_SCHEMA_NODES} ways through it")


class _Graph:
    """Which subschema leads to which, by JSON Pointer.

    Each has *ways*: groups of others, of which a value, or a part of it, meets at most one.
    """

    def __init__(self, schema: dict[str, Any]) -> None:
        self._root = schema
        self._nodes = 0
        self.places: dict[str, list[list[str]]] = {}
        self._add("", schema, 0)
        self._resolve()
        self._loops = self._find_loops()

    def ways_back(self, place: str) -> list[list[str]]:
        """Return the ways from *place* that can lead to it again."""
        loop = self._loops[place]
        ways = self.places[place]
        return [way for way in ways if any(self._loops[target] == loop for target in way)]

    def count_ways(self) -> int:
        """Count the ways from the root to anywhere, loops gone through once; stops at the limit."""
        counts: dict[int, int] = {}
        for place in self._order:  # what it leads to comes before
            loop = self._loops[place]
            targets = self._targets(place)
            ways = sum(counts[self._loops[one]] for one in targets if self._loops[one] != loop)
            counts[loop] = min(counts.get(loop, 0) + 1 + ways, MAX_SCHEMA_NODES + 1)
        return counts[self._loops[""]]

    def _add(self, place: str, schema: Any, depth: int) -> None:
        self._nodes += 1
        if depth > MAX_SCHEMA_DEPTH or self._nodes > MAX_SCHEMA_NODES:
            raise LocalError(
                f"the schema is larger than {MAX_SCHEMA_DEPTH} levels or {MAX_SCHEMA_NODES} objects"
            )
        ways: list[list[str]] = []
        self.places[place] = ways
        if not isinstance(schema, dict):
            return
        refused = _REFUSED if place else _REFUSED - {"$id"}
        for keyword in refused & schema.keys():
            raise LocalError(f"the schema uses {keyword!r}, which is not supported here")
        groups: dict[str, list[str]] = {}
        for keyword, name, child in _children(schema):
            child_place = f"{place}/{keyword}" + ("" if name is None else f"/{_escaped(name)}")
            if keyword not in _DEFINITIONS:
                groups.setdefault(_GROUPS.get(keyword, child_place), []).append(child_place)
            self._add(child_place, child, depth + 1)
        ways += groups.values()
        reference = schema.get("$ref")
        if isinstance(reference, str):
            ways.append([reference])

    def _resolve(self) -> None:
        """Replace what ``$ref`` says by the place that it means."""
        for ways in list(self.places.values()):
            for way in ways:
                way[:] = [self._target(name) for name in way]

    def _target(self, name: str) -> str:
        if name in self.places:
            return name
        if not name.startswith("#"):
            raise LocalError(f"the schema refers to {name[:100]!r}, outside of itself")
        place = unquote(name[1:])
        if place not in self.places:
            raise LocalError(f"the schema refers to {name[:100]!r}, where no subschema is")
        return place

    def _find_loops(self) -> dict[str, int]:
        """Number the strongly connected parts (Tarjan, without recursion)."""
        self._order: list[str] = []
        numbers: dict[str, int] = {}
        lowest: dict[str, int] = {}
        part: dict[str, int] = {}
        stack: list[str] = []
        for start in self.places:
            if start in numbers:
                continue
            todo = [(start, self._targets(start))]
            while todo:
                place, targets = todo[-1]
                if place not in numbers:
                    numbers[place] = lowest[place] = len(numbers)
                    stack.append(place)
                target = next((one for one in targets if one not in part), None)
                if target is not None and target in numbers:
                    lowest[place] = min(lowest[place], numbers[target])
                elif target is not None:
                    todo.append((target, self._targets(target)))
                else:
                    todo.pop()
                    if todo:
                        above = todo[-1][0]
                        lowest[above] = min(lowest[above], lowest[place])
                    if lowest[place] == numbers[place]:
                        self._close(place, stack, part)
        return part

    def _close(self, place: str, stack: list[str], part: dict[str, int]) -> None:
        number = len(part)  # of no other part, for each has a member
        while True:
            member = stack.pop()
            part[member] = number
            self._order.append(member)
            if member == place:
                return

    def _targets(self, place: str) -> Iterator[str]:
        return iter([target for way in self.places[place] for target in way])


def _children(schema: dict[str, Any]) -> Iterator[tuple[str, str | None, Any]]:
    for keyword, value in schema.items():
        if keyword in _ONE:
            yield keyword, None, value
        elif keyword in _LISTS and isinstance(value, list):
            for index, child in enumerate(value):
                yield keyword, str(index), child
        elif keyword in _NAMED and isinstance(value, dict):
            for name, child in value.items():
                yield keyword, name, child


def _escaped(name: str) -> str:
    return name.replace("~", "~0").replace("/", "~1")


_ONE = frozenset(
    {
        "additionalProperties",
        "contains",
        "else",
        "if",
        "items",
        "not",
        "propertyNames",
        "then",
        "unevaluatedItems",
        "unevaluatedProperties",
    }
)
_LISTS = frozenset({"allOf", "anyOf", "oneOf", "prefixItems"})
_NAMED = frozenset({"$defs", "definitions", "dependentSchemas", "patternProperties", "properties"})
# Those of a group are for different parts of the value.
_GROUPS = {
    "properties": "named parts",
    "additionalProperties": "named parts",
    "prefixItems": "numbered parts",
    "items": "numbered parts",
    "then": "branches",
    "else": "branches",
}
_DEFINITIONS = frozenset({"$defs", "definitions"})
# Names for places, which make references mean other things than they say.
_REFUSED = frozenset({"$id", "$anchor", "$dynamicAnchor", "$dynamicRef", "$recursiveRef"})

"""From tables of TOML to values, collecting every problem instead of stopping at the first."""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args, get_origin, get_type_hints

import msgspec

from alknet.core.config_errors import ConfigProblem, KeyPath, key_text
from alknet.core.config_lines import key_lines, line_of
from alknet.errors import LocalError

__all__ = ["Reader"]

T = TypeVar("T")


class Reader:
    """Reads one file and remembers what is wrong with it.

    Args:
        path: Named in problems.
        text: Valid TOML.
        homes: Which table each key belongs to, for hints about misplaced ones.
    """

    def __init__(self, path: Path, text: str, homes: dict[str, str]) -> None:
        self._path = path
        self._lines = key_lines(text)
        self._homes = homes
        self._problems: list[ConfigProblem] = []

    @property
    def path(self) -> Path:
        """The file."""
        return self._path

    @property
    def problems(self) -> list[ConfigProblem]:
        """What was found so far, in the order of the file."""
        return sorted(self._problems, key=lambda problem: problem.line)

    def line(self, key: KeyPath) -> int:
        """Return the line on which *key* stands."""
        return line_of(self._lines, key)

    def report(self, key: KeyPath, message: str, hint: str = "") -> None:
        """Remember that something is wrong at *key*."""
        problem = ConfigProblem(str(self._path), self.line(key), key_text(key), message, hint)
        self._problems.append(problem)

    def table(
        self, raw: dict[str, Any], shape: type[msgspec.Struct], key: KeyPath
    ) -> dict[str, Any]:
        """Return the keys of a table that fit *shape*; report all others and missing ones."""
        types = get_type_hints(shape, include_extras=True)
        found = {}
        for name, value in raw.items():
            if name not in types:
                self._report_unknown((*key, name), name, list(types))
                continue
            try:
                found[name] = msgspec.convert(value, types[name])
            except msgspec.ValidationError as exc:
                expected = _expected(str(exc), types[name])
                self.report((*key, name), f"found {_shown(value)}, expected {expected}")
        for field in msgspec.structs.fields(shape):
            if field.required and field.name not in raw:
                self.report(key, f"the key {field.name!r} is missing")
        return found

    def parse(self, key: KeyPath, value: str, parse: Callable[[str], T]) -> T | None:
        """Return *value* parsed, or report what the LocalError says and return None."""
        try:
            return parse(value)
        except LocalError as exc:
            self.report(key, str(exc))
            return None

    def parse_all(
        self, key: KeyPath, values: Sequence[str], parse: Callable[[str], T]
    ) -> tuple[T, ...]:
        """Return those of *values* that parse; report the others by their place in the list."""
        parsed = [self.parse((*key, n), value, parse) for n, value in enumerate(values)]
        return tuple(value for value in parsed if value is not None)

    def _report_unknown(self, key: KeyPath, name: str, known: list[str]) -> None:
        close = difflib.get_close_matches(name, known, n=1)
        if close:
            self.report(key, "unknown key", f"did you mean {close[0]!r}?")
            return
        elsewhere = difflib.get_close_matches(name, self._homes, n=1, cutoff=0.8)
        hint = f"known here: {', '.join(known)}"
        if elsewhere:
            hint = f"did you mean {elsewhere[0]!r} of {self._homes[elsewhere[0]]}?"
        self.report(key, "unknown key", hint)


def _shown(value: object) -> str:
    match value:
        case str():
            return f'"{value}"' if len(value) <= 60 else f'"{value[:57]}..."'
        case bool():
            return str(value).lower()
        case int() if value.bit_length() > 64:
            return "a huge number"  # and Python may refuse to write it
        case int() | float():
            return str(value)
        case list():
            return "a list"
        case dict():
            return "a table"
        case _:
            return f"a {type(value).__name__}"


def _expected(error: str, type_: Any) -> str:
    if get_origin(type_) is Literal:
        return "one of " + ", ".join(f'"{choice}"' for choice in get_args(type_))
    if "`$" in error:  # the fault is inside a list
        return f"a list of {_inner(error)}s"
    match = _ERROR.match(error)
    if match is None:
        return error
    return f"{_WORDS.get(match[1], match[1])}{match[2]}"


def _inner(error: str) -> str:
    match = _ERROR.match(error)
    return _WORDS.get(match[1], match[1]).removeprefix("a ") if match else "value"


# msgspec: "Expected `int` >= 1", "Expected `str | null`, got `int` - at `$[0]`"
_ERROR = re.compile(r"Expected `(\w+)[^`]*`(?:, got `[^`]*`)?([^-]*)")
_WORDS = {
    "str": "a string",
    "int": "an integer",
    "float": "a number",
    "bool": "true or false",
    "array": "a list",
    "object": "a table",
}

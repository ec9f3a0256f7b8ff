"""docs/reference/api.md: the public names and the first lines of their docstrings."""

from __future__ import annotations

import inspect
from importlib import import_module
from typing import Any

import alknet
from tests.docs.pages.markdown import GENERATED, first_line, table

__all__ = ["page"]

_KIT = (
    "alknet.testing",
    "alknet.testing.nodes",
    "alknet.testing.operations",
    "alknet.testing.plugin",
    "alknet.testing.resources",
)


def page() -> str:
    """Return the page."""
    return f"""{GENERATED}
# Python API

Everything that is public stands in `alknet.__all__`; `help(alknet.NAME)` says more. Other modules
may be imported too, but their names can change between minor versions.

## alknet

{_names("alknet", alknet.__all__)}
## The test kit

{"".join(f"### {module}{chr(10) * 2}{_module(module)}{chr(10)}" for module in _KIT).rstrip()}
"""


def _module(name: str) -> str:
    return _names(name, import_module(name).__all__)


def _names(module: str, names: list[str]) -> str:
    found = import_module(module)
    rows = []
    for name in names:
        thing = getattr(found, name)
        rows.append((f"`{name}`", _kind(thing), first_line(thing)))
    return table(("name", "kind", "what"), rows)


def _kind(thing: Any) -> str:
    if inspect.isfunction(thing):
        return "function"
    if not inspect.isclass(thing):
        return "fixture"
    if issubclass(thing, Exception):
        return "error"
    return "protocol" if getattr(thing, "_is_protocol", False) else "class"

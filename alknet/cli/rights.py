"""What peers and tokens have in common: options for scopes and grants, and how they are shown."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

import click

from alknet.cli.options import usage_errors

if TYPE_CHECKING:
    from alknet.core.identity import Grant

__all__ = ["check_scopes", "grants", "listed", "rights_options"]

F = TypeVar("F", bound=Callable[..., Any])


def rights_options(function: F) -> F:
    """Add ``--scope`` and ``--resource``, both repeatable."""
    scope = click.option(
        "--scope",
        "scopes",
        metavar="S",
        multiple=True,
        help="What it may do, as 'echo' or 'fs:*'; repeatable.",
    )
    resource = click.option(
        "--resource",
        "resources",
        metavar="TYPE:ID[:ACTION]",
        multiple=True,
        help="A resource that it may use ('*' for any id); repeatable.",
    )
    return scope(resource(function))


def check_scopes(scopes: Sequence[str]) -> tuple[str, ...]:
    """Return *scopes* without doubles. Raises a usage error if one is not a scope."""
    from alknet.core.identity import check_scope

    with usage_errors("--scope"):
        for scope in scopes:
            check_scope(scope)
    return tuple(dict.fromkeys(scopes))


def grants(resources: Sequence[str]) -> tuple[Grant, ...]:
    """Read grants. Raises a usage error if one is not a grant."""
    from alknet.core.identity import Grant

    with usage_errors("--resource"):
        return tuple(dict.fromkeys(map(Grant.parse, resources)))


def listed(values: Sequence[object]) -> str:
    """Return *values* for a cell of a table."""
    return ", ".join(map(str, values)) or "-"

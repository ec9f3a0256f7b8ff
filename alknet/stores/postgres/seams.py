"""What this package uses of psycopg beyond its documented interface, and the guard over it."""

from __future__ import annotations

import psycopg

__all__ = ["missing_names", "require"]

# Methods, and attributes that `__init__` sets.
_METHODS = ("_connect_gen", "_cancel_gen", "wait")
_ATTRIBUTES = ("lock", "_autocommit")


def missing_names(kind: type[object] = psycopg.AsyncConnection) -> list[str]:
    """Return which of the names that we build on psycopg's connection lacks."""
    assigned = set[str]()
    for base in kind.__mro__:
        code = getattr(base.__dict__.get("__init__"), "__code__", None)
        assigned |= set(getattr(code, "co_names", ()))
    missing = [name for name in _METHODS if not hasattr(kind, name)]
    return missing + [name for name in _ATTRIBUTES if name not in assigned]


def require(missing: list[str] | None = None) -> None:
    """Raise ImportError if the installed psycopg lacks what this package builds on."""
    missing = missing_names() if missing is None else missing
    if missing:
        raise ImportError(
            f"this psycopg ({psycopg.__version__}) lacks what alknet builds on: "
            f"{', '.join(missing)}; install psycopg>=3.3,<3.4"
        )

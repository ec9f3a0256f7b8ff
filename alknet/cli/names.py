"""Names that are not known: which of the known ones may have been meant."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

__all__ = ["did_you_mean"]


def did_you_mean(name: str, known: Iterable[str], prefix: str = "") -> str:
    """Return the question whether the name nearest to *name* was meant; empty if none is near.

    Args:
        known: Which names there are.
        prefix: What stands before the name where it is to be typed, as ``@``.
    """
    close = difflib.get_close_matches(name, sorted(known), n=1)
    return f"did you mean '{prefix}{close[0]}'?" if close else ""

"""How results are written: rows for people, one JSON object for scripts."""

from __future__ import annotations

import json
import os
import platform
from pathlib import Path

import msgspec

RESULTS = Path(__file__).with_name("RESULTS.md")


class Row(msgspec.Struct, frozen=True):
    """One measurement.

    Attributes:
        peer: Who was measured.
        case: Under what load.
        value: The median of the rounds.
        unit: Of *value*.
        ratio: *value* divided by the reference peer's of the same case and run.
    """

    peer: str
    case: str
    value: float
    unit: str
    ratio: float


def machine() -> str:
    """Name the machine, as far as figures depend on it."""
    cores = len(os.sched_getaffinity(0))
    return (
        f"{cores} cores, {platform.machine()}, {platform.system()} {platform.release()}, "
        f"CPython {platform.python_version()}"
    )


def markdown(title: str, reference: str, rows: list[Row]) -> str:
    """Write *rows* as a Markdown table; ratios are to *reference*."""
    lines = [
        f"## {title}",
        "",
        f"Ratios are to `{reference}` in the same run. Machine: {machine()}.",
        "",
        "| peer | case | value | unit | ratio |",
        "| --- | --- | ---: | --- | ---: |",
    ]
    lines += [
        f"| {row.peer} | {row.case} | {row.value:,.0f} | {row.unit} | {row.ratio:.2f} |"
        for row in rows
    ]
    return "\n".join([*lines, ""])


def as_json(name: str, rows: list[Row]) -> str:
    """Return one object: the rows, and a map of the ratios."""
    ratios = {f"{row.peer}, {row.case}": row.ratio for row in rows}
    return json.dumps({"bench": name, "rows": msgspec.to_builtins(rows), "ratios": ratios})

"""How results are written: one table a benchmark for people, one JSON object for scripts."""

from __future__ import annotations

import os
import platform
import statistics
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import msgspec

RESULTS = Path(__file__).with_name("RESULTS.md")
OURS = "alknet"


class Row(msgspec.Struct, frozen=True):
    """One measurement.

    Attributes:
        peer: Who was measured; ours begin with "alknet".
        case: Under what load.
        values: By metric, whose name holds its unit; the medians of the rounds.
        spread: Largest less smallest of the first metric, as a part of the median.
    """

    peer: str
    case: str
    values: dict[str, float]
    spread: float = 0.0


def row_of(peer: str, case: str, rounds: Sequence[dict[str, float]]) -> Row:
    """Take the medians of *rounds*, which have the same metrics."""
    values = {metric: statistics.median(r[metric] for r in rounds) for metric in rounds[0]}
    first = next(iter(values))
    found = [r[first] for r in rounds]
    return Row(peer, case, values, (max(found) - min(found)) / values[first])


class Aim(msgspec.Struct, frozen=True):
    """What a ratio should be; *is_at_least* says on which side of *bound*."""

    ratio: str
    bound: float
    is_at_least: bool = True


class Table(msgspec.Struct, frozen=True):
    """The result of one benchmark.

    Attributes:
        reference: The peer, or the case, that the last column divides the first metric by.
        notes: What one must know to read the figures.
        is_by_case: Ratios are between the cases of one peer, not between peers.
    """

    name: str
    title: str
    reference: str
    rows: list[Row]
    notes: list[str] = []
    aims: list[Aim] = []
    is_by_case: bool = False

    def ratios(self) -> dict[str, float]:
        """Divide each of our figures by each other peer's of the same case (or by each case's)."""
        found = {}
        for ours, other in self._pairs():
            for metric, value in ours.values.items():
                if other.values.get(metric):
                    found[self._key(ours, other, metric)] = value / other.values[metric]
        return found

    def _pairs(self) -> Iterator[tuple[Row, Row]]:
        for ours in self.rows:
            for other in self.rows:
                same_peer, same_case = ours.peer == other.peer, ours.case == other.case
                if self.is_by_case:
                    if same_peer and not same_case:
                        yield ours, other
                elif same_case and _is_ours(ours) and not _is_ours(other):
                    yield ours, other

    def _key(self, ours: Row, other: Row, metric: str) -> str:
        if self.is_by_case:
            return f"{ours.case} / {other.case}, {ours.peer}, {metric}"
        return f"{ours.peer} / {other.peer}, {ours.case}, {metric}"

    def markdown(self) -> str:
        metrics = list(dict.fromkeys(metric for row in self.rows for metric in row.values))
        titles = ["peer", "case", *metrics, "spread", f"{metrics[0]} / {self.reference}"]
        lines = [f"## {self.title}", "", f"By `python -m benchmarks {self.name}`.", ""]
        lines += [f"- {note}" for note in self.notes]
        lines += ["", _line(titles), _line(["---", "---", *["---:"] * (len(titles) - 2)])]
        lines += [self._row(row, metrics) for row in self.rows]
        if self.aims:
            lines += ["", *self._aims()]
        return "\n".join([*lines, ""])

    def _row(self, row: Row, metrics: list[str]) -> str:
        figures = [figure(row.values[m]) if m in row.values else "" for m in metrics]
        spread = f"{row.spread:.0%}" if row.spread else ""
        value, base = row.values.get(metrics[0]), self._base(row).get(metrics[0])
        ratio = figure(value / base) if value and base else ""
        return _line([row.peer, row.case, *figures, spread, ratio])

    def _base(self, row: Row) -> dict[str, float]:
        wanted = (row.peer, self.reference) if self.is_by_case else (self.reference, row.case)
        return next((r.values for r in self.rows if (r.peer, r.case) == wanted), {})

    def _aims(self) -> Iterator[str]:
        ratios = self.ratios()
        for aim in self.aims:
            if aim.ratio in ratios:
                value = ratios[aim.ratio]
                is_met = value >= aim.bound if aim.is_at_least else value <= aim.bound
                sign, outcome = "≥" if aim.is_at_least else "≤", "met" if is_met else "missed"
                yield f"- {outcome}: {aim.ratio}: {figure(value)} (aim {sign} {aim.bound:g})"


def as_json(tables: Sequence[Table]) -> bytes:
    """Return one object: the rows of all tables, and a map of all ratios."""
    rows = [{"bench": t.name, **msgspec.to_builtins(row)} for t in tables for row in t.rows]
    ratios = {f"{t.name}: {key}": value for t in tables for key, value in t.ratios().items()}
    return msgspec.json.encode({"machine": machine(), "rows": rows, "ratios": ratios})


def figure(value: float) -> str:
    """Write three figures that count, or more where the number is large."""
    if abs(value) >= 100:
        return f"{value:,.0f}"
    return f"{value:.1f}" if abs(value) >= 10 else f"{value:.2f}"


def machine() -> str:
    """Name the machine, as far as figures depend on it."""
    cores = len(os.sched_getaffinity(0))
    return (
        f"{cores} cores ({_processor()}), {platform.machine()}, {platform.system()} "
        f"{platform.release()}, CPython {platform.python_version()}"
    )


def _processor() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor()


def _is_ours(row: Row) -> bool:
    return row.peer.startswith(OURS)


def _line(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cells)} |"
